"""`gradwarden verify FOLDER`: a job of many ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradwarden.runtime.jobs.layout import log_path, rank_path
from gradwarden.runtime.ledger.keys import Signer
from tests.cli.conftest import Run
from tests.runtime.jobs.simulated import Job, sealed_job


@pytest.fixture
def job(here: Path, signer: Signer) -> Path:
    signer.public.save(here / "run.pub")
    return sealed_job(here / "job", signer)


def test_a_job_is_verified_as_a_whole(run: Run, job: Path) -> None:
    result = run("verify", "job", "--key", "run.pub")
    assert result.exit_code == 0
    assert result.stdout.startswith("OK job")
    assert "rank 2: OK" in result.stdout
    assert "that they agree" in result.stdout


def test_a_rank_that_is_missing_is_named(run: Run, job: Path) -> None:
    rank_path(job, 1).unlink()
    result = run("verify", "job", "--key", "run.pub")
    assert result.exit_code == 1
    assert result.stdout.startswith("ROLLBACK")
    assert "error[lost_rank]: the ledger of rank 1 is missing" in result.stderr
    told = json.loads(run("verify", "job", "--key", "run.pub", "--format", "json").stdout)
    assert (told["ok"], told["status"], told["findings"][0]["ranks"]) == (False, "ROLLBACK", [1])
    assert sorted(told["facts"]["members"]) == ["0", "2"]


def test_agreement_is_claimed_only_of_ranks_that_were_compared(run: Run, job: Path) -> None:
    Signer.generate("other").public.save(job.parent / "other.pub")
    untrusted = run("verify", "job", "--key", "other.pub").stdout
    checked, _, unchecked = untrusted.partition("not checked")
    assert untrusted.startswith("UNTRUSTED")
    assert ("agree" in checked, "whether the ranks agree" in unchecked) == (False, True)
    rank_path(job, 1).unlink()
    checked, _, unchecked = run("verify", "job", "--key", "run.pub").stdout.partition("not checked")
    assert "that ranks 0, 2 agree: programs, epochs, outcomes, gradients\n" in checked
    assert "whether the others agree with rank 1: no ledger that holds" in unchecked
    assert "whether the shares of each batch add up" in unchecked


def test_one_head_kept_elsewhere_holds_the_whole_job(run: Run, job: Path, here: Path, signer: Signer) -> None:
    head = here / "kept.note"
    head.write_bytes(log_path(job).with_name("job.ledger.head").read_bytes())
    verify = ("verify", "job", "--key", "run.pub", "--checkpoint", "kept.note")
    assert run(*verify).exit_code == 0
    for path in job.iterdir():
        path.unlink()
    sealed_job(job, signer)  # the same again, by a holder of the key: another history
    result = run(*verify)
    assert result.exit_code == 1
    assert result.stdout.startswith("TAMPERED")  # another origin: each log of logs has one of its own


def test_the_first_bad_entry_is_told_with_its_rank(run: Run, job: Path) -> None:
    path = rank_path(job, 2)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[7] = lines[7].replace(b'"prev":"', b'"prev":"0', 1)
    path.write_bytes(b"".join(lines))
    result = run("verify", "job", "--key", "run.pub")
    assert (result.exit_code, result.stdout.startswith("TAMPERED")) == (1, True)
    assert "rank 2, entry 7, the first bad one: error[rank]" in result.stderr
    told = json.loads(run("verify", "job", "--key", "run.pub", "--format", "json").stdout)
    assert told["first_bad"] == {"rank": 2, "index": 7}
    assert {rank: member["first_bad"] for rank, member in told["facts"]["members"].items()} == {
        "0": None, "1": None, "2": 7,
    }  # fmt: skip


def test_a_job_is_witnessed_by_a_head_of_its_log_of_logs(run: Run, job: Path, here: Path) -> None:
    for name in ("ann", "bob"):
        assert run("keygen", name, "--witness").exit_code == 0
    asked = ("verify", "job", "--key", "run.pub", "--witness", "ann.pub")
    assert run(*asked).exit_code == 2  # of which head?
    cosigned = ("--sign", "ann.key", "--record", "ann.json", "-o", "ann.note")
    assert run("witness", "job/job.ledger", "--key", "run.pub", *cosigned).exit_code == 0
    told = json.loads(run(*asked, "--checkpoint", "ann.note", "--format", "json").stdout)
    assert (told["status"], told["facts"]["assurance"]) == ("OK", "witnessed")
    for member in told["facts"]["members"].values():
        assert member["witnessed_entries"] == member["bound_entries"] > 0
    other = ("verify", "job", "--key", "run.pub", "--witness", "bob.pub", "--checkpoint", "ann.note")
    told = json.loads(run(*other, "--format", "json").stdout)
    assert (told["ok"], told["status"]) == (False, "UNWITNESSED")
    assert told["facts"]["assurance"] == "self-attested"
    assert {member["witnessed_entries"] for member in told["facts"]["members"].values()} == {0}


def test_what_is_about_one_rank_is_misuse_with_a_job(run: Run, job: Path) -> None:
    assert run("verify", "job/job.ledger", "--key", "run.pub").exit_code == 2
    result = run("verify", "job", "--key", "run.pub", "--only", "chain")
    assert (result.exit_code, "--only entries is the least" in result.stderr) == (2, True)


def test_of_a_job_the_decisions_may_be_left_open(run: Run, job: Path) -> None:
    result = run("verify", "job", "--key", "run.pub", "--only", "entries")
    checked, _, unchecked = result.stdout.partition("not checked")
    assert (result.exit_code, "step by step that they agree" in checked) == (0, True)
    assert ("nothing was decided again" in checked, "exposure" in checked) == (True, False)
    assert "made again" not in checked
    assert "the decisions, exposures, budgets and outcomes of each rank (--only entries)" in unchecked
    result = run("verify", "job", "--key", "run.pub", "--only", "entries", "--policy", "run.pub")
    assert (result.exit_code, "replays nothing" in result.stderr) == (2, True)


def test_a_schedule_of_rotation_is_held_against_every_ledger(run: Run, job: Path) -> None:
    result = run("verify", "job", "--key", "run.pub", "--rotate-every", "7")
    assert result.exit_code == 0  # the verifier's schedule, and no verdict
    for ledger in ("the log of logs", *(f"the ledger of rank {rank}" for rank in range(3))):
        assert f"{ledger}: the key of the ledger signed from entry 0 on for " in result.stderr
    assert "rotation_overdue" not in run("verify", "job", "--key", "run.pub", "--rotate-every", "900").stderr
    dayless = run("verify", "job", "--key", "run.pub", "--only", "entries", "--rotate-every", "90d")
    assert (dayless.exit_code, "give --rotate-every in entries" in dayless.stderr) == (2, True)
    log_path(job).unlink()
    assert run("verify", "job", "--key", "run.pub", "--rotate-every", "7").exit_code == 1


def test_a_job_is_gone_on_from_what_was_remembered_of_all_ranks(run: Run, here: Path, signer: Signer) -> None:
    signer.public.save(here / "run.pub")
    job = Job(here / "job", signer)
    job.run(4)
    job.leave()
    asked = ("verify", "job", "--key", "run.pub", "--format", "json")
    told = json.loads(run(*asked, "--remember", "mine.memory").stdout)
    assert (told["status"], told["facts"]["since"]) == ("INCOMPLETE", None)
    told = json.loads(run(*asked, "--since", "mine.memory").stdout)
    assert told["facts"]["since"]["steps"] == 4
    assert sorted(told["facts"]["since"]["ranks"]) == ["0", "1", "2"]
    assert "taken on trust (--since)" in told["not_checked"][0]
    assert "behind the first" in told["checked"][0]
    rank_path(here / "job", 1).unlink()
    result = run("verify", "job", "--key", "run.pub", "--since", "mine.memory")
    assert (result.exit_code, result.stdout.startswith("ROLLBACK")) == (1, True)
    assert "error[rolled_back]: the ledger of rank 1: " in result.stderr
    (here / "run.memory").write_text("gradwarden/memory/1 00\n{}\n")
    assert run("verify", "job", "--key", "run.pub", "--since", "run.memory").exit_code == 2


def test_a_ledger_of_a_rank_verifies_alone(run: Run, job: Path) -> None:
    assert run("verify", "job/rank-0001.ledger", "--key", "run.pub").exit_code == 0


def test_an_empty_folder_is_no_job(run: Run, job: Path, here: Path) -> None:
    (here / "nothing").mkdir()
    result = run("verify", "nothing", "--key", "run.pub")
    assert result.exit_code == 1
    assert "no_log_of_logs" in result.stderr


def test_the_log_shows_bindings(run: Run, job: Path) -> None:
    result = run("log", "job/job.ledger", "--kind", "bound")
    assert "binding 0 of 3 ranks, at steps 2 to 2" in result.stdout


def test_a_job_that_was_left_is_bound_and_sealed_by_another_process(
    run: Run, here: Path, signer: Signer
) -> None:
    signer.public.save(here / "run.pub")
    watcher = Signer.generate("watcher")
    watcher.save(here / "watcher.key")
    job = Job(here / "job", signer, keys=[watcher.public])
    job.run(4)
    job.binder.close()
    bind = ("bind", "job", "--sign", "watcher.key", "--key", "run.pub")
    assert "0 new bindings; it goes on" in run(*bind).stdout
    job.step()
    for rank in job.ranks:
        rank.seal()
    result = run(*bind)
    assert result.exit_code == 0
    assert "1 new binding; sealed" in result.stdout
    watcher.public.save(here / "watcher.pub")
    assert run("verify", "job", "--key", "run.pub", "--key", "watcher.pub").exit_code == 0


def test_a_rank_that_was_cut_is_not_bound_again(run: Run, here: Path, signer: Signer) -> None:
    signer.save(here / "run.key")
    job = Job(here / "job", signer)
    job.run(4)
    job.leave()
    path = rank_path(job.folder, 2)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:9]))
    result = run("bind", "job", "--sign", "run.key")
    assert result.exit_code == 1
    assert "the ledger of rank 2" in result.stderr
    assert run("bind", "nothing", "--sign", "run.key").exit_code == 2
