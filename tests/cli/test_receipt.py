"""`gradwarden receipt`: what an owner is given, and what it says when checked far from the ledger."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradwarden.runtime.commitments import open_commitment
from gradwarden.runtime.evidence.prover import last_head
from gradwarden.runtime.evidence.receipt_maker import make_receipt
from gradwarden.runtime.ledger.cosignature import witness_key
from gradwarden.runtime.ledger.keys import Signer
from tests.cli.conftest import Run
from tests.runtime.provenance.small_runs import COMMITTER, write_run


@pytest.fixture
def ledger(here: Path, signer: Signer) -> Path:
    (here / "run.secret").write_text(bytes(32).hex() + "\n")
    signer.public.save(here / "run.pub")
    return write_run(here / "run.ledger", signer, tallied=True)


def make(run: Run, example: str, *arguments: str) -> None:
    made = run("receipt", "make", "run.ledger", "--id", example, "--secret", "run.secret", *arguments)
    assert made.exit_code == 0, made.output


def test_an_owner_learns_how_deep_the_example_went(run: Run, ledger: Path) -> None:
    make(run, "e2", "-o", "r.json")
    ledger.unlink()
    checked = run("receipt", "check", "r.json", "--key", "run.pub", "--id", "e2")
    assert checked.exit_code == 0
    assert checked.stdout.startswith("OK r.json: `e2` was used\n")
    assert (
        "1 time admitted (rules granted) under abababababababab…: learned from 1 time, at deep 1"
        in checked.stdout
    )
    assert "1 time refused (rules granted, closed) under abababababababab…: no weight" in checked.stdout
    assert "learned from in steps" in checked.stdout
    assert "self-attested" in checked.stdout.split("not shown")[1]
    document = json.loads(run("receipt", "check", "r.json", "--key", "run.pub", "--format", "json").stdout)
    assert (document["ok"], document["used"], document["closed"]) == (True, True, True)
    assert document["tally"]["exposed"][0] >= 0


def test_whom_an_owner_trusts_may_stand_in_one_file(
    run: Run, ledger: Path, here: Path, signer: Signer
) -> None:
    make(run, "e2", "-o", "r.json")
    ann = witness_key(Signer.generate("ann.example"))
    log = f"log {signer.public.vkey}\n"
    (here / "keys").write_text(log + "quorum none\n")
    (here / "others").write_text(f"log {Signer.generate('another').public.vkey}\nquorum none\n")
    (here / "witnessed").write_text(log + f"witness ann {ann.vkey}\nquorum ann\n")
    for name, fault in (("keys", ""), ("others", "error[unknown_key]"), ("witnessed", "error[unwitnessed]")):
        checked = run("receipt", "check", "r.json", "--trust", name)
        assert (checked.exit_code, fault in checked.stderr) == (int(bool(fault)), True), checked.stderr
    both = run("receipt", "check", "r.json", "--trust", "keys", "--key", "run.pub")
    assert (both.exit_code, "--trust names all keys" in both.stderr) == (2, True)
    nobody = run("receipt", "check", "r.json")
    assert (nobody.exit_code, "--key PUB, or --trust FILE" in nobody.stderr) == (2, True)
    makes = run("receipt", "make", "run.ledger", "--id", "e2", "--secret", "run.secret", "--trust", "keys")
    assert (makes.exit_code, "`make` takes" in makes.stderr) == (2, True)


def test_an_owner_learns_that_an_example_was_never_named(run: Run, ledger: Path) -> None:
    make(run, "mine", "-o", "r.json")
    checked = run("receipt", "check", "r.json", "--key", "run.pub")
    assert checked.stdout.startswith("OK r.json: `mine` was never named\n")
    assert "a wrong one finds nothing, too" in checked.stdout
    salt = COMMITTER.salt("mine").hex()
    assert "a wrong one" not in run("receipt", "check", "r.json", "--key", "run.pub", "--salt", salt).stdout
    wrong = run("receipt", "check", "r.json", "--key", "run.pub", "--salt", "00" * 32)
    assert wrong.exit_code == 1
    assert "error[wrong_salt]" in wrong.stderr


def test_an_owner_asks_that_nothing_was_learned_after_a_revocation(run: Run, ledger: Path) -> None:
    make(run, "e2", "-o", "r.json")
    salt = COMMITTER.salt("e2").hex()
    check = ("receipt", "check", "r.json", "--key", "run.pub", "--salt", salt, "--none-after")
    told = json.loads(run(*check, "0", "--format", "json").stdout)
    last = told["tally"]["exposed"][1]
    assert run(*check, last).exit_code == 0  # it was proposed later on, and refused
    without = run("receipt", "check", "r.json", "--key", "run.pub", "--none-after", last)
    assert (without.exit_code, "give the one that you had before (--salt)" in without.stderr) == (1, True)
    assert max(use["times"] for use in told["tally"]["uses"] if not use["exposures"]) > 0
    late = run(*check, last - 1)
    assert (late.exit_code, late.stdout.startswith("FAILED r.json: `e2` was used")) == (1, True)
    assert (
        f"error[used_after]: the model learned from it in step {last}, after step {last - 1}" in late.stderr
    )
    assert "learned from in steps" in late.stdout
    told = json.loads(run(*check, last - 1, "--format", "json").stdout)
    assert (told["ok"], told["used"], told["faults"][0]["code"]) == (False, True, "used_after")


def test_a_wrong_salt_shows_no_end_of_use(run: Run, ledger: Path, here: Path) -> None:
    salt = b"\x01" * 32
    lie = make_receipt(ledger, "e2", salt, open_commitment(salt, "e2"), last_head(ledger))
    (here / "lie.json").write_bytes(lie.encode())
    check = ("receipt", "check", "lie.json", "--key", "run.pub", "--id", "e2", "--none-after", "0")
    late = run(*check)
    assert (late.exit_code, late.stdout.startswith("FAILED lie.json: `e2` was never named")) == (1, True)
    assert "error[used_after]: it is not shown that nothing was learned from it after step 0" in late.stderr
    assert "give the one that you had before (--salt)" in late.stderr
    told = json.loads(run(*check, "--format", "json").stdout)
    assert (told["ok"], told["faults"][0]["code"]) == (False, "used_after")
    assert "error[wrong_salt]" in run(*check, "--salt", COMMITTER.salt("e2").hex()).stderr


def test_the_salt_that_an_owner_had_shows_that_nothing_was_learned(run: Run, ledger: Path) -> None:
    make(run, "nobody", "-o", "r.json")
    check = ("receipt", "check", "r.json", "--key", "run.pub", "--none-after", "-1")
    assert run(*check).exit_code == 1
    assert run(*check, "--salt", COMMITTER.salt("nobody").hex()).exit_code == 0


def test_of_a_run_that_was_not_tallied_no_end_of_use_is_shown(run: Run, here: Path, signer: Signer) -> None:
    (here / "run.secret").write_text(bytes(32).hex() + "\n")
    signer.public.save(here / "run.pub")
    write_run(here / "run.ledger", signer)
    make(run, "e2", "--entries", "-o", "r.json")
    assert run("receipt", "check", "r.json", "--key", "run.pub").exit_code == 0
    late = run("receipt", "check", "r.json", "--key", "run.pub", "--none-after", "99")
    assert (late.exit_code, "was not sealed right behind a tally" in late.stderr) == (1, True)


def test_entries_are_added_on_demand(run: Run, ledger: Path, here: Path) -> None:
    make(run, "e2", "--entries", "-o", "full.json")
    make(run, "e2", "-o", "r.json")
    assert (here / "full.json").stat().st_size > 2 * (here / "r.json").stat().st_size
    assert "proved by their entries: step" in run("receipt", "check", "full.json", "--key", "run.pub").stdout


def test_a_receipt_of_something_else_does_not_hold(run: Run, ledger: Path, here: Path) -> None:
    make(run, "e2", "-o", "r.json")
    assert run("receipt", "check", "r.json", "--key", "run.pub", "--id", "e3").exit_code == 1
    Signer.generate("other").public.save(here / "other.pub")
    wrong = run("receipt", "check", "r.json", "--key", "other.pub")
    assert (wrong.exit_code, "error[unknown_key]" in wrong.stderr) == (1, True)
    assert run("receipt", "check", "r.json", "--key", "run.pub", "--origin", "elsewhere").exit_code == 1
    told = json.loads((here / "r.json").read_text())
    told["listed"]["leaf"] = told["listed"]["leaf"].replace('"times":', '"times":1')
    (here / "r.json").write_text(
        json.dumps(told, separators=(",", ":"), sort_keys=True, ensure_ascii=False) + "\n"
    )
    changed = run("receipt", "check", "r.json", "--key", "run.pub")
    assert (changed.exit_code, "error[not_listed]" in changed.stderr) == (1, True)


def test_a_run_that_was_not_tallied_says_what_to_do(
    run: Run, ledger: Path, here: Path, signer: Signer
) -> None:
    write_run(here / "plain.ledger", signer)
    arguments = ["plain.ledger", "--id", "e2", "--secret", "run.secret"]
    refused = run("receipt", "make", *arguments)
    assert (refused.exit_code, "--entries" in refused.stderr) == (1, True)
    assert run("receipt", "make", *arguments, "--entries", "-o", "r.json").exit_code == 0
    checked = run("receipt", "check", "r.json", "--key", "run.pub")
    assert "that these are all uses: the run was not tallied" in checked.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["make", "run.ledger"],
        ["make", "run.ledger", "--id", "a"],
        ["make", "run.ledger", "--id", "a", "--secret", "other.secret"],
        ["make", "run.ledger", "--id", "a", "--secret", "run.secret", "--key", "run.pub"],
        ["check", "run.ledger", "--key", "run.pub"],
        ["check", "run.ledger"],
    ],
)
def test_misuse_is_told(run: Run, ledger: Path, here: Path, arguments: list[str]) -> None:
    (here / "other.secret").write_text("11" * 32)
    result = run("receipt", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
