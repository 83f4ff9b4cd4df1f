"""A job that is gone on from gets the verdict that the whole gets, with the rank named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradwarden.runtime.errors import MemoryFileError
from gradwarden.runtime.jobs.layout import log_path, rank_path
from gradwarden.runtime.ledger.keys import Signer
from gradwarden.runtime.verification.job_report import JobReport
from gradwarden.runtime.verification.job_verify import verify_job
from tests.runtime.jobs.simulated import TODAY, Job, Rank, program

pytestmark = pytest.mark.usefixtures("no_timed_heads")

SIGNER = Signer.generate("run")


def verified(job: Job, **options: Any) -> JobReport:
    return verify_job(copied(job), [SIGNER.public], **options)


def copied(job: Job) -> Path:
    """Copy a job as it is: nobody writes in the copy."""
    for rank in job.ranks:
        rank.ledger.flush()
    job.binder._ledger.flush()
    copy = job.folder.parent / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for ending in ("*.head", "*.ledger"):  # no head may be newer than its ledger
        for path in job.folder.glob(ending):
            shutil.copy(path, copy)
    return copy


def remember(job: Job, since: Path | None = None) -> Path:
    report = verified(job, remember=True, since=since)
    assert report.memory is not None
    path = job.folder.parent / "mine.memory"
    report.memory.write(path)
    return path


def told(report: JobReport) -> Any:
    facts = {name: fact for name, fact in report.facts.items() if name != "since"}
    return report.status, sorted(map(repr, report.findings)), facts


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path / "job", SIGNER)


# --- what happens after what is remembered ------------------------------------------------------------------


def another_gradient(job: Job) -> None:
    _all_but_one(job, lambda rank, reached: rank.commit(reached, 9, "0.125"))


def left_out(job: Job) -> None:
    parts = job.batches(job.ranks[0].next_step)
    reached = [rank.propose(part) for rank, part in zip(job.ranks[:2], parts, strict=False)]
    for rank in job.ranks[:2]:
        rank.commit(set().union(*reached), 6)
    step = job.ranks[2].next_step
    job.ranks[2].recorder.event("skipped", {"step": step, "until": step + 1})


def another_share(job: Job) -> None:
    reached = [rank.propose(part) for rank, part in zip(job.ranks, job.batches(9), strict=True)]
    job.commit(set().union(*reached), [3, 2, 3])


def another_day(job: Job) -> None:
    job.ranks[1].propose(["x"], today=TODAY.replace(day=2))


def another_program(job: Job) -> None:
    job.ranks[1].change_policy(program(2))
    job.step()


def refusal(job: Job) -> None:
    for rank in job.ranks:
        rank.propose(["y"])
        rank.refuse()


def lag(job: Job) -> None:
    for _ in range(5):
        job.step()
        for rank in job.ranks[:2]:
            rank.sign()
        job.binder.bind()


def bound(job: Job) -> None:
    job.bind()


def nothing(job: Job) -> None:
    """Leave all as it is."""


def _all_but_one(job: Job, other: Callable[..., None]) -> None:
    parts = job.batches(job.ranks[0].next_step)
    reached = [rank.propose(part) for rank, part in zip(job.ranks, parts, strict=True)]
    for rank in job.ranks[:2]:
        rank.commit(set().union(*reached), 9)
    other(job.ranks[2], set().union(*reached))


def other_weights(job: Job) -> None:
    """Two ranks have named these weights before, see `begun`."""
    save(job.ranks[2], "cd" * 32)


def save(rank: Rank, digest: str) -> None:
    body = {"step": rank.next_step, "file": "w.safetensors", "digest": digest, "tensors": None}
    rank.recorder.event("checkpoint", body)


LIES = (
    (another_gradient, "contradiction", 2),
    (another_share, "wrong_shares", 1),
    (another_program, "contradiction", 1),
    (left_out, "left_out_step", 2),
    (other_weights, "other_weights", 2),
    (lag, "lagging_rank", 2),
)
OTHERWISE = (another_day, refusal, bound, nothing)


def begun(job: Job, steps: int, ahead: bool) -> Callable[[], None]:
    """Let a job train; return what brings all ranks to the same step where some were left ahead of others."""
    for _ in range(steps):
        job.step()
    job.bind()
    for rank in job.ranks[:2]:
        save(rank, "ab" * 32)
    if not ahead:
        return lambda: None
    parts = job.batches(job.ranks[0].next_step)
    reached = [rank.propose(part) for rank, part in zip(job.ranks[:2], parts, strict=False)]

    def catch_up() -> None:
        active = set().union(*reached, job.ranks[2].propose(parts[2]))
        job.commit(active, list(map(len, parts)))

    return catch_up


def same_verdict(job: Job, memory: Path) -> JobReport:
    """Return what is found from a memory on, which is what is found from the start."""
    folder = copied(job)
    found = verify_job(folder, [SIGNER.public], since=memory)
    assert told(found) == told(verify_job(folder, [SIGNER.public]))
    assert found.facts["since"]["entries"] > 0
    return found


@pytest.mark.parametrize("happens", OTHERWISE)
def test_what_is_new_gets_the_verdict_that_the_whole_gets(job: Job, happens: Callable[[Job], None]) -> None:
    begun(job, 3, False)
    memory = remember(job)
    happens(job)
    same_verdict(job, memory)
    job.leave()


@pytest.mark.soak
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 5),
    st.integers(0, 3),
    st.sampled_from([*OTHERWISE, *(lie for lie, _, _ in LIES)]),
    st.booleans(),
    st.booleans(),
)
def test_wherever_it_was_left_it_is_gone_on_from(
    before: int, after: int, happens: Callable[[Job], None], ahead: bool, twice: bool
) -> None:
    """Once or twice, whatever happens then; ranks need not be at the same step."""
    with TemporaryDirectory() as folder:
        job = Job(Path(folder) / "job", SIGNER, lag=4)
        catch_up = begun(job, before, ahead)
        memory = remember(job)
        catch_up()
        if twice:
            memory = remember(job, memory)
        for _ in range(after):
            job.step()
        happens(job)
        same_verdict(job, memory)
        job.leave()


@pytest.mark.parametrize(("happens", "code", "rank"), LIES)
def test_a_rank_that_lies_or_lags_after_what_is_remembered_is_named(
    job: Job, happens: Callable[[Job], None], code: str, rank: int
) -> None:
    """Where two ranks were ahead of it when the job was remembered."""
    catch_up = begun(job, 2, happens is not other_weights)
    memory = remember(job)
    catch_up()
    happens(job)
    report = same_verdict(job, memory)
    assert {rank for found in report.findings if found.code == code for rank in found.ranks} == {rank}
    job.leave()


def test_an_outcome_after_an_intent_that_is_remembered_is_compared(job: Job) -> None:
    job.run(2)
    reached = set().union(*(rank.propose(part) for rank, part in zip(job.ranks, job.batches(2), strict=True)))
    memory = remember(job)
    for rank in job.ranks:
        rank.commit(reached, 9, "0.125" if rank.rank == 1 else "0.25")
    report = same_verdict(job, memory)
    [found] = [found for found in report.findings if found.code == "contradiction"]
    assert found.ranks == (1,)
    assert "at step 2 rank 1 has another gradient" in found.message
    job.leave()


@pytest.mark.parametrize("ahead", [False, True])
def test_a_move_that_one_rank_tells_otherwise_after_what_is_remembered_is_named(
    tmp_path: Path, ahead: bool
) -> None:
    """Also of a step of which the others' moves are remembered, and that one's is not there yet."""
    recording = program(rules="gradient { record 1 in 1 steps }")
    job = Job(tmp_path / "job", SIGNER, governed_by=recording)
    job.run(3)
    reached = set().union(*(rank.propose(part) for rank, part in zip(job.ranks, job.batches(3), strict=True)))
    first = job.ranks[: 2 if ahead else 0]
    for rank in first:
        rank.commit(reached, 9)
    memory = remember(job)
    job.ranks[2].moved = "0.75"
    for rank in job.ranks[len(first) :]:
        rank.commit(reached, 9)
    report = same_verdict(job, memory)
    [found] = [found for found in report.findings if found.code == "contradiction"]
    assert (found.ranks, "at step 3 rank 2 has another move of the bands" in found.message) == ((2,), True)
    job.leave()


def test_only_what_is_new_is_read_and_little_is_kept(job: Job) -> None:
    job.run(10)
    memory = remember(job)
    path = rank_path(job.folder, 1)
    path.write_bytes(path.read_bytes().replace(b'"epoch":0', b'"epoch":1', 1))  # on trust: not read again
    job.run(4)
    report = verified(job, since=memory)
    assert report.status == "INCOMPLETE"
    assert verified(job).status == "TAMPERED"
    assert (report.facts["steps"], report.facts["since"]["steps"]) == (14, 10)
    kept = verified(job, since=memory, remember=True).memory
    assert kept is not None
    assert all(len(rank.steps["outcomes"]) < 8 for rank in kept.ranks.values())
    job.leave()


# --- what is remembered and no longer there -----------------------------------------------------------------


def withhold(job: Job) -> None:
    rank_path(job.folder, 1).unlink()


def cut(job: Job) -> None:
    _keep(rank_path(job.folder, 1), 12)


def cut_log(job: Job) -> None:
    _keep(log_path(job.folder), 3)


def _keep(path: Path, lines: int) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:lines]))
    path.with_name(f"{path.name}.head").unlink(missing_ok=True)


def rewrite(job: Job) -> None:
    """Write a rank's history anew with its key."""
    job.again(1)
    for step in range(6):
        reached = job.ranks[1].propose([f"other-{step}"])
        job.ranks[1].commit(reached, 9)
    job.ranks[1].sign()
    job.ranks[1].ledger.close()


@pytest.mark.parametrize(
    ("spoil", "status", "ranks"),
    [
        (withhold, "ROLLBACK", (1,)),
        (cut, "ROLLBACK", (1,)),
        (rewrite, "FORK", (1,)),
        (cut_log, "ROLLBACK", ()),
    ],
)
def test_a_ledger_that_lacks_what_was_there_is_named(
    job: Job, spoil: Callable[[Job], None], status: str, ranks: tuple[int, ...]
) -> None:
    job.run(6)
    memory = remember(job)
    job.leave()
    spoil(job)
    report = verify_job(job.folder, [SIGNER.public], since=memory, remember=True)
    assert report.status == status
    assert report.memory is None
    found = [one for one in report.findings if "when it was last verified" in one.message]
    assert [one.ranks for one in found] == [ranks]
    assert report.facts["since"] is None


def test_a_job_that_does_not_hold_or_lacks_a_rank_is_not_remembered(job: Job) -> None:
    job.run(4)
    another_gradient(job)
    assert verified(job, remember=True).memory is None
    job.leave()
    rank_path(job.folder, 2).unlink()
    assert verify_job(job.folder, [SIGNER.public], remember=True).memory is None


def test_a_rank_without_a_ledger_is_compared_from_its_start_once_it_has_one(job: Job) -> None:
    """A rank of which nothing was remembered: its ledger was not there, or is of no complete program yet."""
    for _ in range(3):
        job.step()
    job.leave()
    kept = job.folder.parent / "kept"
    rank_path(job.folder, 2).rename(kept)
    first = verify_job(job.folder, [SIGNER.public], remember=True)
    assert [one.code for one in first.findings if one.ranks == (2,)] == ["missing_rank"]
    assert first.memory is not None
    first.memory.write(job.folder.parent / "mine.memory")
    memory = job.folder.parent / "mine.memory"
    again = verify_job(job.folder, [SIGNER.public], since=memory, remember=True)
    assert told(again) == told(first)
    assert again.memory is not None
    again.memory.write(memory)
    kept.rename(rank_path(job.folder, 2))
    found = verify_job(job.folder, [SIGNER.public], since=memory)
    assert told(found) == told(verify_job(job.folder, [SIGNER.public]))
    assert found.facts["compared_ranks"] == [0, 1, 2]
    assert sorted(found.facts["since"]["ranks"]) == ["0", "1"]


def test_a_rank_that_lied_while_its_ledger_was_kept_back_is_named(job: Job) -> None:
    job.step()
    another_gradient(job)
    job.leave()
    kept = job.folder.parent / "kept"
    rank_path(job.folder, 2).rename(kept)
    memory = job.folder.parent / "mine.memory"
    first = verify_job(job.folder, [SIGNER.public], remember=True).memory
    assert first is not None
    first.write(memory)
    kept.rename(rank_path(job.folder, 2))
    report = verify_job(job.folder, [SIGNER.public], since=memory)
    assert [found.ranks for found in report.findings if found.code == "contradiction"] == [(2,)]


def test_a_job_by_its_entries_alone_is_gone_on_from_alike(job: Job) -> None:
    job.run(3)
    report = verified(job, only="entries", remember=True)
    assert report.memory is not None
    assert (report.facts["decisions_replayed"], report.facts["compared_ranks"]) == (0, [0, 1, 2])
    memory = job.folder.parent / "mine.memory"
    report.memory.write(memory)
    job.step()
    another_gradient(job)
    found = verified(job, only="entries", since=memory)
    assert told(found) == told(verified(job, only="entries"))
    assert [one.ranks for one in found.findings if one.code == "contradiction"] == [(2,)]
    with pytest.raises(MemoryFileError, match="how far to go"):
        verified(job, since=memory)
    job.leave()


def test_a_memory_that_is_damaged_or_of_something_else_is_refused(job: Job, tmp_path: Path) -> None:
    job.run(2)
    memory = remember(job)
    with pytest.raises(MemoryFileError, match="something else: the policies"):
        verified(job, since=memory, program=program())
    with pytest.raises(MemoryFileError, match="cannot read"):
        verified(job, since=tmp_path / "nothing")
    memory.write_bytes(memory.read_bytes()[:-9])
    with pytest.raises(MemoryFileError, match="or it is damaged"):
        verified(job, since=memory)
    job.leave()
