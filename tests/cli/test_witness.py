"""`gradwarden witness`, and what its cosignatures are worth to `verify` and `verify-proof`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradwarden.runtime.ledger.cosignature import cosign as cosign_note
from gradwarden.runtime.ledger.keys import Signer, WitnessKey
from tests.cli.conftest import Run
from tests.cli.test_verify import archived, program, record

__all__ = ["program", "record"]

Record = Callable[..., Path]


@pytest.fixture
def witnesses(run: Run, here: Path, record: Record) -> Path:
    """A sealed ledger whose key is `run`, and the keys of two witnesses, `ann` and `bob`."""
    for name in ("ann", "bob"):
        assert run("keygen", name, "--witness").exit_code == 0
    return record()


def cosign(run: Run, name: str, *arguments: object, source: object = "run.ledger") -> Any:
    made = [f"{name}.note"] if "-o" not in arguments else []
    outputs = ["-o", *made] if made else []
    return run(
        "witness", source, "--key", "run.pub", "--sign", f"{name}.key", "--record", f"{name}.json",
        *outputs, *arguments,
    )  # fmt: skip


def verify(run: Run, *options: object) -> tuple[int, dict[str, Any]]:
    result = run("verify", "run.ledger", "--key", "run.pub", "--format", "json", *options)
    return result.exit_code, json.loads(result.stdout)


def codes(document: dict[str, Any]) -> list[str]:
    return [finding["code"] for finding in document["findings"] if finding["severity"] == "error"]


def test_a_witness_has_a_key_of_its_own_kind(run: Run, witnesses: Path, here: Path) -> None:
    key = WitnessKey.load(here / "ann.pub")
    assert key.name == "ann"
    wrong = run("verify", "run.ledger", "--key", "ann.pub")
    assert (wrong.exit_code, "give it with --witness" in wrong.stderr) == (2, True)
    wrong = run("verify", "run.ledger", "--key", "run.pub", "--checkpoint", "x", "--witness", "run.pub")
    assert (wrong.exit_code, "no witness's" in wrong.stderr) == (2, True)


def test_a_witnessed_ledger_says_by_whom(run: Run, witnesses: Path) -> None:
    done = cosign(run, "ann")
    assert done.exit_code == 0
    assert "(the first of this ledger), cosigned by ann" in done.stdout
    status, document = verify(run, "--checkpoint", "ann.note", "--witness", "ann.pub")
    assert (status, document["status"]) == (0, "OK")
    facts = document["facts"]
    assert facts["assurance"] == "witnessed"
    assert facts["witnessed_entries"] == facts["signed_entries"]
    assert [seen["vkey"].split("+")[0] for seen in facts["witnesses"]] == ["ann"]
    told = run(
        "verify", "run.ledger", "--key", "run.pub", "--checkpoint", "ann.note", "--witness", "ann.pub"
    ).stdout
    assert f"assurance: witnessed by ann up to entry {facts['signed_entries'] - 1};" in told
    assert "cosigned by the witness ann at 20" in told


def test_without_witnesses_it_is_self_attested(run: Run, witnesses: Path) -> None:
    cosign(run, "ann")
    status, document = verify(run, "--checkpoint", "ann.note")
    assert (status, document["facts"]["assurance"]) == (0, "self-attested")
    assert any("--witness" in line for line in document["not_checked"])
    assert "assurance: self-attested" in run("verify", "run.ledger", "--key", "run.pub").stdout


def test_too_few_witnesses(run: Run, witnesses: Path) -> None:
    cosign(run, "ann")
    both = ("--checkpoint", "ann.note", "--witness", "ann.pub", "--witness", "bob.pub")
    status, document = verify(run, *both)
    assert (status, document["status"], codes(document)) == (1, "UNWITNESSED", ["unwitnessed"])
    assert document["facts"]["assurance"] == "self-attested"
    assert verify(run, *both, "--witnesses", "1")[0] == 0
    # The second adds its word to the same note, or cosigns on its own.
    cosign(run, "bob", "--head", "ann.note", "-o", "both.note")
    assert verify(run, *both[2:], "--checkpoint", "both.note")[0] == 0
    cosign(run, "bob")
    status, document = verify(run, *both, "--checkpoint", "bob.note")
    assert (status, document["facts"]["assurance"]) == (0, "witnessed")
    assert "the 2 checkpoints given are heads of this ledger" in document["checked"]


def test_a_witness_vouches_only_for_what_it_saw(
    run: Run, witnesses: Path, here: Path, signer: Signer
) -> None:
    (here / "early.note").write_bytes(archived(witnesses, 5, signer))
    cosign(run, "ann", "--head", "early.note")
    status, document = verify(run, "--checkpoint", "ann.note", "--witness", "ann.pub")
    assert (status, document["status"]) == (1, "UNWITNESSED")
    assert document["facts"]["witnessed_entries"] == 5
    assert "vouch for the first 5 only" in document["findings"][-1]["message"]


def test_a_head_that_nobody_or_somebody_else_cosigned(
    run: Run, witnesses: Path, here: Path, signer: Signer
) -> None:
    cosign(run, "ann")
    (here / "plain.note").write_bytes(Path(f"{witnesses}.head").read_bytes())
    for note, key in (("plain.note", "ann.pub"), ("ann.note", "bob.pub")):
        status, document = verify(run, "--checkpoint", note, "--witness", key)
        assert (status, document["status"]) == (1, "UNWITNESSED")
    grafted = cosign_note(archived(witnesses, 5, signer), Signer.load(here / "ann.key"), 9).splitlines()[-1]
    (here / "bad.note").write_bytes((here / "plain.note").read_bytes() + grafted + b"\n")
    status, document = verify(run, "--checkpoint", "bad.note", "--witness", "ann.pub")
    assert (status, document["status"]) == (1, "UNTRUSTED")
    assert "checkpoint_untrusted" in codes(document)


def test_a_cut_ledger_is_told_from_a_rewritten_one(
    run: Run, record: Record, witnesses: Path, here: Path
) -> None:
    cosign(run, "ann")
    trusted = ("--checkpoint", "ann.note", "--witness", "ann.pub")
    whole = witnesses.read_bytes()
    Path(f"{witnesses}.head").unlink()
    witnesses.write_bytes(b"".join(whole.splitlines(keepends=True)[:6]))
    status, document = verify(run, *trusted)
    assert (status, document["status"]) == (1, "ROLLBACK")
    assert "rolled_back" in codes(document)
    refused = cosign(run, "ann", "--head", "ann.note", "--format", "json")
    assert refused.exit_code == 1

    witnesses.unlink()

    def rewrite(_number: int, body: dict[str, object]) -> None:
        body["epoch"] = 1

    record(lie=rewrite)
    status, document = verify(run, *trusted)
    assert (status, document["status"]) == (1, "FORK")
    refused = cosign(run, "ann", "--format", "json")
    assert (refused.exit_code, json.loads(refused.stdout)["refusal"]) == (1, "fork")
    assert "error[fork]" in refused.stderr


def test_a_ledger_that_was_put_back_is_refused(run: Run, record: Record, here: Path, signer: Signer) -> None:
    run("keygen", "ann", "--witness")
    ledger = record()
    cosign(run, "ann")
    (here / "early.note").write_bytes(archived(ledger, 5, signer))
    refused = cosign(run, "ann", "--head", "early.note", "--format", "json")
    assert (refused.exit_code, json.loads(refused.stdout)["refusal"]) == (1, "rollback")
    assert json.loads(refused.stdout)["seen"] == (here / "ann.note").read_text()


def test_a_witness_needs_no_ledger(run: Run, witnesses: Path, here: Path, signer: Signer) -> None:
    (here / "early.note").write_bytes(archived(witnesses, 5, signer))
    cosign(run, "ann", "--head", "early.note")
    run("proof", witnesses, "--from", "ann.note", "-o", "grown.proof")
    run("proof", witnesses, "--from", Path(f"{witnesses}.head"), "-o", "other.proof")
    witnesses.unlink()
    refused = cosign(run, "ann", source="other.proof")
    assert (refused.exit_code, "error[wrong_size]" in refused.stderr) == (1, True)
    done = cosign(run, "ann", source="grown.proof")
    assert done.exit_code == 0
    assert "continues the head over 5" in done.stdout


def test_a_trust_policy_names_keys_and_witnesses(run: Run, witnesses: Path, here: Path) -> None:
    vkeys = {name: (here / f"{name}.pub").read_text().strip() for name in ("run", "ann", "bob")}
    (here / "auditors").write_text(
        f"log {vkeys['run']}\nwitness a {vkeys['ann']}\nwitness b {vkeys['bob']}\ngroup g any a b\nquorum g\n"
    )
    run("proof", witnesses, "--entry", 3, "-o", "plain.tlog-proof")
    assert run("verify-proof", "plain.tlog-proof", "--trust", "auditors").exit_code == 1
    cosign(run, "bob")
    done = run("verify", witnesses, "--trust", "auditors", "--checkpoint", "bob.note")
    assert (done.exit_code, "witnessed by bob up to entry" in done.stdout) == (0, True)
    (here / "strict").write_text((here / "auditors").read_text().replace(" any ", " all "))
    done = run("verify", witnesses, "--trust", "strict", "--checkpoint", "bob.note")
    assert (done.exit_code, done.stdout.split()[0]) == (1, "UNWITNESSED")
    assert "needed: 2 of ann, bob" in done.stderr
    assert run("verify", witnesses, "--trust", "strict", "--key", "run.pub").exit_code == 2
    assert run("verify", witnesses).exit_code == 2
    assert run("verify", witnesses, "--trust", "run.ledger").exit_code == 2


def test_a_proof_carries_its_witnesses(run: Run, witnesses: Path) -> None:
    cosign(run, "ann")
    run("proof", witnesses, "--entry", 3, "-o", "plain.tlog-proof")
    run("proof", witnesses, "--entry", 3, "--head", "ann.note", "-o", "seen.tlog-proof")
    witnesses.unlink()
    options = ("--key", "run.pub", "--witness", "ann.pub")
    plain = run("verify-proof", "plain.tlog-proof", *options)
    assert (plain.exit_code, "error[unwitnessed]" in plain.stderr) == (1, True)
    seen = run("verify-proof", "seen.tlog-proof", *options)
    assert (seen.exit_code, "witnessed by ann (20" in seen.stdout) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["verify", "run.ledger", "--key", "run.pub", "--witness", "ann.pub"], "--checkpoint"),
        (
            [
                "verify",
                "run.ledger",
                "--key",
                "run.pub",
                "--checkpoint",
                "n",
                "--witness",
                "ann.pub",
                "--witnesses",
                "2",
            ],
            "more witnesses than are given",
        ),
        (
            ["verify-proof", "p", "--key", "run.pub", "--witness", "ann.pub", "--witness", "ann.pub"],
            "another witness, `ann`",
        ),
        (["witness", "run.ledger", "--key", "run.pub", "--sign", "ann.pub", "--record", "r"], "GW700"),
        (["witness", "run.ledger", "--key", "run.pub", "--sign", "ann.key", "--record", "."], "GW614"),
        (
            ["witness", "run.ledger", "--key", "run.pub", "--sign", "ann.key", "--record", "run.pub"],
            "damaged",
        ),
        (["witness", "missing", "--key", "run.pub", "--sign", "ann.key", "--record", "r"], "missing"),
        (
            ["witness", "run.pub", "--key", "run.pub", "--sign", "ann.key", "--record", "r"],
            "no entry of a ledger",
        ),
        (["witness", "run.ledger", "--key", "run.pub", "--sign", "run.key", "--record", "r"], "GW614"),
        (
            ["witness", "one.proof", "--key", "run.pub", "--sign", "ann.key", "--record", "r"],
            "about one entry",
        ),
    ],
)
def test_misuse_is_told(
    run: Run, witnesses: Path, here: Path, signer: Signer, arguments: list[str], told: str
) -> None:
    signer.save(here / "run.key")
    run("proof", witnesses, "--entry", 1, "-o", "one.proof")
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert told in result.stderr
    assert "GW999" not in result.stderr
