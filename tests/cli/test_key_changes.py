"""`gradwarden rotate` and `revoke`, and what `verify` and `log` say afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradwarden.runtime.ledger.keys import FileSigner
from gradwarden.runtime.ledger.ledger import Ledger
from tests.campaign import genuine as campaign
from tests.campaign.genuine import RUN, SAFE, genuine
from tests.cli.conftest import Run
from tests.cli.test_verify import Record, program, record

__all__ = ["program", "record"]


@pytest.fixture
def open_run(run: Run, here: Path, record: Record, signer: FileSigner) -> Path:
    """A ledger whose run has not ended, signed by `run.key`; and another key, `next`."""
    signer.save(here / "run.key")
    assert run("keygen", "next").exit_code == 0
    return record(sealed=False)


def test_a_ledger_is_handed_over_and_verifies_by_its_first_key(run: Run, open_run: Path) -> None:
    done = run("rotate", open_run, "--sign", "run.key", "--to", "next.key", "--format", "json")
    assert done.exit_code == 0
    entry = json.loads(done.stdout)["entry"]
    for key in ("run.pub", "next.pub"):
        result = run("verify", open_run, "--key", key, "--format", "json")
        document = json.loads(result.stdout)
        assert (document["status"], document["first_bad"]) == ("INCOMPLETE", None)
        assert [change["entry"] for change in document["facts"]["key_changes"]] == [entry]
        told = f"the key run handed over to next at entry {entry:,}, and signs nothing after it"
        assert told in document["checked"]
    assert "run hands over to next" in run("log", open_run, "--kind", "rotated").stdout
    again = run("rotate", open_run, "--sign", "run.key", "--to", "next.key")
    assert (again.exit_code, "signed by another key than `run`" in again.stderr) == (2, True)


def test_the_new_key_may_have_a_passphrase_of_its_own(run: Run, open_run: Path, here: Path) -> None:
    (here / "pass").write_text("s3cret\n")
    assert run("keygen", "safe", "--passphrase-file", "pass").exit_code == 0
    before = open_run.read_bytes()
    refused = run("rotate", open_run, "--sign", "run.key", "--to", "safe.key")
    assert (refused.exit_code, "protected by a passphrase" in refused.stderr) == (2, True)
    assert open_run.read_bytes() == before
    options = ["--sign", "run.key", "--to", "safe.key", "--to-passphrase-file", "pass"]
    assert run("rotate", open_run, *options).exit_code == 0


def test_a_key_that_has_handed_over_is_revoked_and_not_the_last_one(run: Run, open_run: Path) -> None:
    run("rotate", open_run, "--sign", "run.key", "--to", "next.key")
    options = ["--sign", "next.key", "--reason", "the laptop was stolen"]
    done = run("revoke", open_run, "run.pub", *options)
    assert (done.exit_code, "run was revoked by next" in done.stdout) == (0, True)
    assert "stolen" in run("log", open_run, "--kind", "revoked").stdout
    itself = run("revoke", open_run, "next.pub", *options)
    assert (itself.exit_code, "revokes itself" in itself.stderr) == (2, True)
    stranger = run("keygen", "stranger") and run("revoke", open_run, "stranger.pub", *options)
    assert (stranger.exit_code, "no key of this ledger" in stranger.stderr) == (2, True)
    assert run("verify", open_run, "--key", "run.pub", "--format", "json").exit_code == 1  # not sealed


@pytest.mark.parametrize("name", ["missing.ledger", "empty.ledger"])
def test_no_ledger_is_made_by_mistake(run: Run, open_run: Path, here: Path, name: str) -> None:
    (here / "empty.ledger").touch()
    result = run("rotate", name, "--sign", "run.key", "--to", "next.key")
    assert (result.exit_code, "is no ledger" in result.stderr) == (2, True)
    assert (here / "empty.ledger").read_bytes() == b""
    assert not (here / "missing.ledger").exists()


def test_a_sealed_ledger_keeps_its_keys(run: Run, open_run: Path, here: Path, record: Record) -> None:
    open_run.unlink()
    Path(f"{open_run}.head").unlink()
    sealed = record()
    before = sealed.read_bytes()
    result = run("rotate", sealed, "--sign", "run.key", "--to", "next.key")
    assert (result.exit_code, "is sealed" in result.stderr) == (2, True)
    assert sealed.read_bytes() == before


def test_a_schedule_of_rotation_warns_and_changes_no_verdict(run: Run, tmp_path: Path) -> None:
    base = genuine("plain")
    path, key = tmp_path / "run.ledger", tmp_path / "run.pub"
    path.write_bytes(base.content)
    key.write_text(f"{base.keys[0].vkey}\n")
    late = run("verify", path, "--key", key, "--rotate-every", 5)
    assert (late.exit_code, "warning[rotation_overdue]" in late.stderr) == (0, True)
    kept = run("verify", path, "--key", key, "--rotate-every", "90d")
    assert (kept.exit_code, kept.stderr) == (0, "")
    assert run("verify", path, "--key", key, "--rotate-every", "soon").exit_code == 2
    for only in ("chain", "entries"):
        asked = ("verify", path, "--key", key, "--only", only, "--rotate-every")
        assert "warning[rotation_overdue]" in run(*asked, 5).stderr
        dayless = run(*asked, "90d")
        assert (dayless.exit_code, f"`--only {only}` reads no days" in dayless.stderr) == (2, True)


def test_who_trusts_only_the_key_that_was_revoked_is_told_which_one_is_missing(run: Run, here: Path) -> None:
    path = here / "run.ledger"
    governed = campaign.Run(path, campaign.HEAD, "gradwarden/test", "seed", [SAFE.public])
    governed.ledger.close()
    governed.ledger = Ledger.open(path, SAFE, "os", keys=[RUN.public])
    governed.ledger.revoke(RUN.public, "the laptop was stolen")
    governed.seal()
    for name, keys, status in (
        ("one", [RUN], "UNTRUSTED"),
        ("both", [RUN, SAFE], "OK"),
        ("the other", [SAFE], "OK"),
    ):
        (here / name).write_text("".join(f"log {key.public.vkey}\n" for key in keys) + "quorum none\n")
        result = run("verify", path, "--trust", name)
        assert (result.exit_code, result.stdout.split()[0]) == (int(status != "OK"), status), name
        assert ("error[untrusted_key]" in result.stderr) == (status != "OK")
