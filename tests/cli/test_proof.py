"""`gradwarden proof` and `gradwarden verify-proof`: what is shown to those who do not get the ledger."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gradwarden.runtime.ledger.keys import Signer
from gradwarden.runtime.ledger.merkle import leaf_hash, tree_root
from gradwarden.runtime.ledger.note import Checkpoint, sign_note
from tests.cli.conftest import Run

Write = Callable[..., Path]


@pytest.fixture
def ledger(write_ledger: Write, here: Path, signer: Signer) -> Path:
    signer.public.save(here / "run.pub")
    return write_ledger()


def keep(ledger: Path, size: int, signer: Signer) -> str:
    """Write the head over the first entries to a file, as somebody may have kept it."""
    leaves = [leaf_hash(line) for line in ledger.read_bytes().splitlines()[:size]]
    note = sign_note(Checkpoint("gradwarden/test", size, tree_root(leaves)).text(), [signer])
    ledger.with_name("kept.note").write_text(note)
    return "kept.note"


def test_an_entry_is_proved_and_checked_without_the_ledger(run: Run, ledger: Path) -> None:
    written = run("proof", ledger, "--entry", 3, "-o", "3.tlog-proof")
    assert written.exit_code == 0
    assert "entry 3 is covered by the head over" in written.stdout
    ledger.unlink()
    checked = run("verify-proof", "3.tlog-proof", "--key", "run.pub")
    assert checked.exit_code == 0
    assert checked.stdout.startswith("OK 3.tlog-proof: entry 3, `committed` of step 0, is in the ledger\n")
    assert "signed by run" in checked.stdout
    document = json.loads(run("verify-proof", "3.tlog-proof", "--key", "run.pub", "--format", "json").stdout)
    assert document["ok"]
    assert document["entry"]["body"]["loss"] == "2.25"


def test_the_proof_goes_to_standard_output_or_is_told_as_json(run: Run, ledger: Path, here: Path) -> None:
    shown = run("proof", ledger, "--entry", 0)
    assert shown.stdout.startswith("c2sp.org/tlog-proof@v1\nextra ")
    told = json.loads(run("proof", ledger, "--entry", 0, "--format", "json", "-o", "0.tlog-proof").stdout)
    assert (here / "0.tlog-proof").read_bytes() == shown.stdout_bytes
    assert told["note"] in shown.stdout
    assert told["leaf"] == leaf_hash(told["entry"].encode()).hex()
    assert len(told["path"]) == shown.stdout.partition("\n\n")[0].count("\n") - 2


def test_a_withheld_entry_is_given_apart(run: Run, ledger: Path, here: Path) -> None:
    run("proof", ledger, "--entry", 3, "--withhold", "-o", "3.tlog-proof")
    assert run("verify-proof", "3.tlog-proof", "--key", "run.pub").exit_code == 2
    (here / "line.json").write_bytes(ledger.read_bytes().splitlines(keepends=True)[3])
    assert run("verify-proof", "3.tlog-proof", "--key", "run.pub", "--entry", "line.json").exit_code == 0
    (here / "line.json").write_bytes(ledger.read_bytes().splitlines()[2])
    wrong = run("verify-proof", "3.tlog-proof", "--key", "run.pub", "--entry", "line.json")
    assert (wrong.exit_code, wrong.stdout.split()[0]) == (1, "FAILED")
    assert "error[wrong_path]" in wrong.stderr


def test_a_ledger_is_shown_to_have_only_grown(run: Run, ledger: Path, signer: Signer) -> None:
    kept = keep(ledger, 4, signer)
    assert run("proof", ledger, "--from", kept, "-o", "grown.proof").exit_code == 0
    ledger.unlink()
    checked = run("verify-proof", "grown.proof", "--old", kept, "--key", "run.pub")
    assert checked.exit_code == 0
    assert "the first 4 entries are unchanged" in checked.stdout


def test_a_rewritten_ledger_gives_no_proof(
    run: Run, ledger: Path, write_ledger: Write, signer: Signer
) -> None:
    head = Checkpoint("gradwarden/test", 4, b"\x07" * 32)
    ledger.with_name("kept.note").write_text(sign_note(head.text(), [signer]))
    refused = run("proof", ledger, "--from", "kept.note", "--format", "json")
    assert refused.exit_code == 1
    assert not json.loads(refused.stdout)["ok"]
    assert "the ledger was rewritten after that head was signed" in refused.stderr


def test_strangers_prove_nothing(run: Run, ledger: Path, here: Path) -> None:
    Signer.generate("other").public.save(here / "other.pub")
    run("proof", ledger, "--entry", 3, "-o", "3.tlog-proof")
    checked = run("verify-proof", "3.tlog-proof", "--key", "other.pub")
    assert (checked.exit_code, "error[unknown_key]" in checked.stderr) == (1, True)
    assert "none of the given keys" in checked.stdout
    elsewhere = run("verify-proof", "3.tlog-proof", "--key", "run.pub", "--origin", "gradwarden/other")
    assert (elsewhere.exit_code, "error[wrong_origin]" in elsewhere.stderr) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["proof", "run.ledger"], "say what to prove"),
        (["proof", "run.ledger", "--entry", "1", "--from", "run.ledger.head"], "say what to prove"),
        (["proof", "run.ledger", "--withhold", "--from", "run.ledger.head"], "--withhold"),
        (["proof", "run.ledger", "--entry", "999"], "not among them"),
        (["proof", "run.ledger", "--entry", "1", "--head", "run.pub"], "GW610"),
        (["proof", "missing.ledger", "--entry", "1"], "missing.ledger"),
        (["proof", ".", "--entry", "1"], "cannot read"),
        (["verify-proof", "run.ledger", "--key", "run.pub"], "GW612"),
        (["verify-proof", "missing", "--key", "run.pub"], "missing"),
        (["verify-proof", "3.tlog-proof", "--key", "run.pub", "--old", "run.ledger.head"], "--old"),
        (["verify-proof", "grown.proof", "--key", "run.pub"], "--old"),
        (["verify-proof", "3.tlog-proof", "--key", "run.ledger"], "GW700"),
    ],
)
def test_misuse_is_told(run: Run, ledger: Path, arguments: list[str], told: str) -> None:
    run("proof", ledger, "--entry", 3, "-o", "3.tlog-proof")
    run("proof", ledger, "--from", "run.ledger.head", "-o", "grown.proof")
    result = run(*arguments)
    assert result.exit_code == 2
    assert told in result.stderr
    assert "GW999" not in result.stderr
