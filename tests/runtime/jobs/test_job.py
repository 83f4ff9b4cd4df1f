"""A job of many ranks: each with its own ledger, and a log of logs that holds them to what they signed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Literal

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden.policy.evaluation.chosen_steps import is_chosen
from gradwarden.runtime.errors import JobError, LedgerBusy
from gradwarden.runtime.jobs import binder as binder_module
from gradwarden.runtime.jobs.binder import Binder
from gradwarden.runtime.jobs.follower import RankHead
from gradwarden.runtime.jobs.layout import home, log_path, rank_origin, rank_path, ranks_found
from gradwarden.runtime.ledger.entries import JOB_OPENING, Entry, schema
from gradwarden.runtime.ledger.keys import Signer
from gradwarden.runtime.ledger.ledger import Ledger
from gradwarden.runtime.ledger.reader import read_entries
from gradwarden.runtime.records.branches import Branches
from gradwarden.runtime.records.recorder import Recorder
from gradwarden.runtime.verification.job_report import JobReport
from gradwarden.runtime.verification.job_verify import verify_job
from gradwarden.runtime.verification.log_of_logs import Binding, LogOfLogs
from gradwarden.runtime.verification.rank_audit import rank_findings
from gradwarden.runtime.verification.verify import verify_ledger
from tests.runtime.jobs.simulated import SECRET, TODAY, Job, Rank, program, sealed_job

RANKS = 4
STEPS = 6


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer.generate("run")


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory, signer: Signer) -> Path:
    """A sealed job, for tests to copy and spoil."""
    return sealed_job(tmp_path_factory.mktemp("job") / "job", signer, RANKS, STEPS)


@pytest.fixture
def job(tmp_path: Path, signer: Signer) -> Job:
    return Job(tmp_path / "job", signer)


def verified(folder: Path, signer: Signer) -> JobReport:
    return verify_job(folder, [signer.public])


def codes(report: JobReport) -> set[str]:
    return {finding.code for finding in report.findings}


def named(report: JobReport, *of: str) -> set[int]:
    """The ranks that findings name, of some codes or of all."""
    return {rank for finding in report.findings if not of or finding.code in of for rank in finding.ranks}


def test_a_genuine_job_holds(genuine: Path, signer: Signer) -> None:
    report = verified(genuine, signer)
    assert (report.status, report.findings) == ("OK", ())
    assert report.facts["exposures"] == RANKS * STEPS * 3
    assert report.facts["bound_to_step"] == STEPS
    assert {found.status for found in report.ranks.values()} == {"OK"}


def test_a_ledger_of_a_rank_is_an_ordinary_one(genuine: Path, signer: Signer) -> None:
    """It names its place in the job, and verifies without the others."""
    entries = list(read_entries(rank_path(genuine, 2)))
    member = entries[0].body["job"]
    assert (member["id"], member["rank"], member["ranks"]) == (_origin(genuine), 2, RANKS)
    assert verified(genuine, signer).ranks[2].ok


def _origin(folder: Path) -> str:
    origin: str = next(read_entries(log_path(folder))).body["origin"]
    return origin


def test_every_entry_fits_the_published_schema(genuine: Path) -> None:
    validator = jsonschema.Draft202012Validator(schema())
    for path in (log_path(genuine), rank_path(genuine, 0)):
        for entry in read_entries(path):
            validator.validate(json.loads(entry.line))


@pytest.mark.parametrize("batch", [2, None])
def test_a_batch_that_is_smaller_than_a_share_or_not_stated_is_found(
    job: Job, signer: Signer, batch: int | None
) -> None:
    """In the middle of many steps, which a verifier judges together first."""
    for step in range(30):
        reached = [rank.propose(part) for rank, part in zip(job.ranks, job.batches(step), strict=True)]
        for rank in job.ranks:
            rank.commit(set().union(*reached), batch if (step, rank.rank) == (19, 1) else 9)
    job.leave()
    found = [f for f in verified(job.folder, signer).ranks[1].findings if f.severity == "error"]
    assert [f.code for f in found] == ["wrong_outcome"]
    assert "step 19" in found[0].message


def test_a_run_of_no_job_states_no_batch(tmp_path: Path, signer: Signer) -> None:
    job = Job(tmp_path / "job", signer, 1)
    job.step()
    job.leave()
    alone = tmp_path / "run.ledger"
    with Ledger.open(alone, signer, origin=job.ranks[0].ledger.origin) as ledger:
        for entry in read_entries(rank_path(job.folder, 0)):
            if entry.kind != "head":
                body = {name: value for name, value in entry.body.items() if name != "job"}
                ledger.append(entry.kind, body)
    report = verify_ledger(alone, [signer.public])
    assert [finding.code for finding in report.findings if finding.severity == "error"] == ["wrong_outcome"]


# --- dropped, cut, forked, swapped --------------------------------------------------------------------------


def drop(folder: Path, rank: int, other: int, draw: Callable[[int], int]) -> None:
    rank_path(folder, rank).unlink()


def cut(folder: Path, rank: int, other: int, draw: Callable[[int], int]) -> None:
    """Cut a ledger after some line, or in the middle of it; the head beside it goes, too, or stays."""
    path = rank_path(folder, rank)
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    kept = b"".join(lines[: draw(len(lines) - 1)])
    path.write_bytes(kept + lines[-1][: draw(3)])
    if draw(1):
        path.with_name(f"{path.name}.head").unlink()


def fork(folder: Path, rank: int, other: int, draw: Callable[[int], int]) -> None:
    """Write a rank's whole history anew, with the true key: in one step it has other examples."""
    signer = fork.signer  # type: ignore[attr-defined]
    lie = draw(STEPS - 1)
    apart = Job.__new__(Job)
    apart.folder, apart.signer, apart.size = folder, signer, RANKS
    apart.placement, apart.program = "anywhere", program()
    apart.binder = type("Named", (), {"job": _origin(folder)})()  # type: ignore[assignment]
    path = rank_path(folder, rank)
    path.unlink()
    path.with_name(f"{path.name}.head").unlink()
    forged = apart.rank(rank)
    apart.ranks = [forged] * RANKS
    for step in range(STEPS):
        names = [f"{name}!" if step == lie else name for name in apart.batches(step)[rank]]
        forged.commit(forged.propose(names), 3 * RANKS)
        if step % 2:
            forged.sign()
    forged.seal()


def swap(folder: Path, rank: int, other: int, draw: Callable[[int], int]) -> None:
    one, two = rank_path(folder, rank), rank_path(folder, other)
    for suffix in ("", ".head"):
        aside = folder / "aside"
        shutil.move(f"{one}{suffix}", aside)
        shutil.move(f"{two}{suffix}", f"{one}{suffix}")
        shutil.move(aside, f"{two}{suffix}")


CODES = {
    drop: {"lost_rank"},
    cut: {"cut_rank", "rank", "cut_off"},
    fork: {"forked_rank"},
    swap: {"other_rank"},
}


@settings(max_examples=25)
@given(data=st.data())
def test_a_rank_whose_ledger_was_dropped_cut_forked_or_swapped_is_named(
    tmp_path_factory: pytest.TempPathFactory, genuine: Path, signer: Signer, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("spoilt") / "job"
    shutil.copytree(genuine, folder)
    rank, other = data.draw(st.permutations(range(RANKS)))[:2]
    spoil = data.draw(st.sampled_from(list(CODES)))
    fork.signer = signer  # type: ignore[attr-defined]
    spoil(folder, rank, other, lambda most: data.draw(st.integers(0, most)))
    report = verified(folder, signer)
    assert report.status not in ("OK", "LAGGING")
    assert named(report) == ({rank, other} if spoil is swap else {rank})
    assert codes(report) & CODES[spoil]
    shutil.rmtree(folder)


def test_a_ledger_that_ends_before_what_was_bound_is_a_rollback(
    tmp_path: Path, genuine: Path, signer: Signer
) -> None:
    """Cut right behind a head, so that nothing of the file itself tells."""
    folder = tmp_path / "job"
    shutil.copytree(genuine, folder)
    path = rank_path(folder, 1)
    lines = path.read_bytes().splitlines(keepends=True)
    first = next(place for place, line in enumerate(lines) if b'"kind":"head"' in line)
    path.write_bytes(b"".join(lines[: first + 1]))
    path.with_name(f"{path.name}.head").unlink()
    report = verified(folder, signer)
    assert (report.status, named(report, "cut_rank")) == ("ROLLBACK", {1})


# --- what the ranks say together ----------------------------------------------------------------------------


def test_a_step_under_another_program_is_found(job: Job, signer: Signer) -> None:
    job.run(2)
    for rank in job.ranks[:2]:
        rank.change_policy(program(2))
    job.run(2)
    job.seal()
    report = verified(job.folder, signer)
    assert (report.status, codes(report), named(report)) == ("VIOLATION", {"contradiction"}, {2})
    assert "step 2" in report.findings[0].message
    assert "program" in report.findings[0].message


def test_a_policy_that_all_change_together_is_no_contradiction(job: Job, signer: Signer) -> None:
    job.run(2)
    for rank in job.ranks:
        rank.change_policy(program(2))
    job.run(2)
    job.seal()
    assert verified(job.folder, signer).ok


def test_another_gradient_is_found(job: Job, signer: Signer) -> None:
    job.run(2)
    reached = [rank.propose(part) for rank, part in zip(job.ranks, job.batches(2), strict=True)]
    for rank, norm in zip(job.ranks, ("0.25", "0.26", "0.25"), strict=True):
        rank.commit(set().union(*reached), 9, norm)
    job.seal()
    report = verified(job.folder, signer)
    assert (report.status, codes(report), named(report)) == ("VIOLATION", {"contradiction"}, {1})
    assert "step 2" in report.findings[0].message


def test_another_move_of_the_bands_is_found(tmp_path: Path, signer: Signer) -> None:
    """Of two ranks both are named; in the steps that record it, and in none where that is the same."""
    recording = program(rules="gradient { record 1 in 3 steps }")
    assert [step for step in range(4) if is_chosen(step, 3)] == [0, 3]
    for lies in (False, True):
        job = Job(tmp_path / f"job-{lies}", signer, 2, governed_by=recording)
        job.run(2)
        job.ranks[1].moved = "0.51" if lies else job.ranks[1].moved
        job.run(2)
        job.seal()
        report = verified(job.folder, signer)
        assert report.ok is not lies
        told = [(found.code, found.ranks, found.message) for found in report.findings]
        message = "at step 3 rank 1 has another move of the bands than rank 0"
        assert told == ([("contradiction", (0, 1), message)] if lies else [])


def test_other_spending_of_a_privacy_budget_is_found(job: Job, signer: Signer) -> None:
    reached = [rank.propose(part) for rank, part in zip(job.ranks, job.batches(0), strict=True)]
    for rank, steps in zip(job.ranks, (1, 1, 2), strict=True):
        spending = {"quiet": {"steps": steps, "epsilon": "0.5"}}
        rank.conclude(set().union(*reached), "0.25", {"batch": 9, "privacy": spending})
    job.seal()
    found = [f for f in verified(job.folder, signer).findings if f.code == "contradiction"]
    assert [(f.ranks, "privacy spending" in f.message) for f in found] == [((2,), True)]


@pytest.mark.parametrize("late", [False, True])
def test_what_is_said_to_be_paid_for_by_other_ranks_must_be_due(job: Job, signer: Signer, late: bool) -> None:
    """Here no rule pays for anything; nor may it be said in the middle of a run."""
    if late:
        job.run(1)
    job.ranks[1].recorder.event("paid", {"step": int(late), "rules": {} if late else {"quiet": 3}})
    job.run(2)
    job.seal()
    found = [f for f in verified(job.folder, signer).ranks[1].findings if f.severity == "error"]
    assert [f.code for f in found] == ["wrong_budget"]
    assert ("out of turn" in found[0].message) == late


def test_where_all_others_agree_the_first_rank_is_the_odd_one(job: Job, signer: Signer) -> None:
    reached = [rank.propose(part) for rank, part in zip(job.ranks, job.batches(0), strict=True)]
    job.ranks[0].refuse()
    for rank in job.ranks[1:]:
        rank.commit(set().union(*reached), 9)
    job.seal()
    report = verified(job.folder, signer)
    assert named(report, "contradiction") == {0}
    assert "outcome" in report.findings[0].message


@pytest.mark.parametrize("begun", [False, True], ids=["behind its end", "where it has no outcome"])
def test_ranks_that_contradict_each_other_where_the_first_was_killed_are_found(
    job: Job, signer: Signer, begun: bool
) -> None:
    job.run(2)
    reached = [rank.propose([f"X{rank.rank}"]) for rank in job.ranks[not begun :]]
    for rank, norm in zip(job.ranks[1:], ("0.25", "0.5"), strict=True):
        rank.commit(reached[-1], 3, norm)
    job.leave()
    report = verified(job.folder, signer)
    assert (report.status, named(report, "contradiction")) == ("VIOLATION", {1, 2})


def test_of_two_ranks_that_contradict_each_other_both_are_named(tmp_path: Path, signer: Signer) -> None:
    job = Job(tmp_path / "job", signer, 2)
    for rank, epoch in zip(job.ranks, (0, 1), strict=True):
        rank.commit(rank.propose(["a"], epoch=epoch), 2)
    job.seal()
    assert named(verified(job.folder, signer), "contradiction") == {0, 1}


def shares_told(job: Job, told: dict[int, int]) -> JobReport:
    """Verify a job whose ranks told each other of other shares of step 3 than they record, three examples."""
    job.run(3)
    reached = [rank.propose(part) for rank, part in zip(job.ranks, job.batches(3), strict=True)]
    job.commit(set().union(*reached), [told.get(rank, 3) for rank in range(len(job.ranks))])
    job.run(2)
    job.seal()
    report = verified(job.folder, job.signer)
    assert (report.status, codes(report)) == ("VIOLATION", {"wrong_shares"})
    assert "step 3" in report.findings[0].message
    return report


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("told", [0, 2, 4])
def test_a_rank_that_records_another_share_than_it_told_is_named(
    job: Job, signer: Signer, rank: int, told: int
) -> None:
    assert named(shares_told(job, {rank: told})) == {rank}


@pytest.mark.parametrize("told", [{0: 2, 2: 1}, {0: 2, 1: 4}, {0: 2, 1: 2, 2: 2}])
def test_of_several_that_do_none_is_named_alone(job: Job, signer: Signer, told: dict[int, int]) -> None:
    """Not even where what one records too much another records too little."""
    assert named(shares_told(job, told)) == {0, 1, 2}


@pytest.mark.parametrize(
    ("told", "differing"),
    [
        ({1: 2}, ["8 examples", "place, 16 is stated, and 18 held", "square of the place, 38 is stated"]),
        (
            {0: 2, 1: 4},
            ["place, 19 is stated, and 18 held", "square of the place, 45 is stated, and 42 held"],
        ),
        ({0: 4, 1: 1, 2: 4}, ["square of the place, 44 is stated, and 42 held"]),
    ],
)
def test_the_sums_that_differ_are_told_and_no_others(
    job: Job, signer: Signer, told: dict[int, int], differing: list[str]
) -> None:
    message = shares_told(job, told).findings[0].message
    parts = message.split("add up: ")[1].split("; rank")[0].split(";")
    assert len(parts) == len(differing)
    assert all(due in part for due, part in zip(differing, parts, strict=True))


def test_a_batch_of_the_first_form_of_the_format_locates_no_share(job: Job, signer: Signer) -> None:
    reached = [rank.propose(part) for rank, part in zip(job.ranks, job.batches(0), strict=True)]
    for rank in job.ranks:
        rank.commit(set().union(*reached), 8)
    job.seal()
    assert named(verified(job.folder, signer), "wrong_shares") == {0, 1, 2}


@pytest.mark.parametrize("early", [False, True])
def test_a_step_that_a_rank_leaves_out_and_others_committed_is_found(
    job: Job, signer: Signer, early: bool
) -> None:
    """As if after a crash, or by a seal that comes too early."""
    job.run(2)
    hiding = job.ranks[2]
    reached = [rank.propose(part) for rank, part in zip(job.ranks[:2], job.batches(2), strict=False)]
    for rank in job.ranks[:2]:
        rank.commit(set().union(*reached), 9)
    if early:
        hiding.seal()
        job.ranks = job.ranks[:2]
    else:
        hiding.ledger.close()
        hiding.ledger = Ledger.open(rank_path(job.folder, 2), signer, "os")
        hiding.recorder = Recorder(hiding.ledger)
        hiding.roster.change_program(job.program)
        hiding.recorder.event("skipped", {"step": 2, "until": 3})
        hiding.next_step = 3
        job.step()
    job.seal()
    report = verified(job.folder, signer)
    assert (report.status, named(report, "left_out_step")) == ("VIOLATION", {2})
    assert "step 2" in next(f.message for f in report.findings if f.code == "left_out_step")


def twice(rank: Rank) -> None:
    """Record the last step once more, differently."""
    rank.next_step -= 1
    rank.commit(rank.propose(["others", "of", "these"]), 9, "0.5")


def another_outcome(rank: Rank) -> None:
    rank.commit({"surface"}, 9, "0.5")


def no_outcome(rank: Rank) -> None:
    rank.propose(["a"])


def at_another_step(kind: str) -> Callable[[Rank], None]:
    """A change of policy, or weights, at a step that never comes, where they are compared with nobody's."""

    def write(rank: Rank) -> None:
        rank.next_step += 1000
        if kind == "policy":
            rank.change_policy(program(2))
        else:
            body = {"step": rank.next_step, "file": "0", "digest": "ef" * 32, "tensors": None}
            rank.recorder.event("checkpoint", body)
        rank.next_step -= 1000

    return write


def endless(rank: Rank) -> None:
    """More steps than are compared are left out, and so is all that comes behind them."""
    rank.recorder.event("skipped", {"step": rank.next_step, "until": 2**52})
    rank.next_step = 2**52
    rank.commit(rank.propose(["a"]), 1)


@pytest.mark.parametrize("more", [0, 30], ids=["at the end", "in the middle"])
@pytest.mark.parametrize(
    "spoil",
    [twice, another_outcome, no_outcome, at_another_step("policy"), at_another_step("weights"), endless],
)
def test_without_a_replay_what_is_compared_with_nobody_is_named(
    job: Job, signer: Signer, spoil: Callable[[Rank], None], more: int
) -> None:
    job.run(2 + more)
    job.ranks[1].sign()
    size = len(list(read_entries(rank_path(job.folder, 1))))
    spoil(job.ranks[1])
    job.run(more)
    job.seal()
    report = verify_job(job.folder, [signer.public], only="entries")
    found = [one for one in report.findings if one.code == "out_of_turn"]
    assert [one.ranks for one in found] == [(1,)]
    assert found[0].status == "VIOLATION"
    assert found[0].index is not None
    assert found[0].index >= size
    whole = verified(job.folder, signer)
    assert (whole.status, 1 in named(whole, "rank", "left_out_step")) == ("VIOLATION", True)


@pytest.mark.parametrize("only", [None, "entries"])
def test_a_job_that_crashed_changed_its_policy_and_went_back_is_in_turn(
    job: Job, signer: Signer, only: Literal["entries"] | None
) -> None:
    branches = Branches()
    body = {"step": 0, "file": "0", "digest": "a0" * 32, "tensors": None}
    branches.apply("checkpoint", body)
    for rank in job.ranks:
        rank.recorder.event("checkpoint", body)
    job.run(20)
    for rank in job.ranks:
        rank.change_policy(program(2))
    for rank in job.ranks[:2]:
        rank.propose([f"x{rank.rank}"])
        rank.expose()
    for rank in job.ranks:
        rank.ledger.close()
        rank.ledger = Ledger.open(rank_path(job.folder, rank.rank), signer, "os")
        rank.recorder = Recorder(rank.ledger)
        rank.roster.change_program(rank.program)
    job.ranks[2].recorder.event("skipped", {"step": 20, "until": 21})
    job.ranks[2].next_step = 21
    (saved,) = branches.saved()
    for rank in job.ranks:
        rank.recorder.event("rewound", branches.rewind(saved, 21))
    first = verify_job(job.folder, [signer.public], only=only, remember=True)
    assert first.memory is not None
    first.memory.write(memory := job.folder.with_name("memory"))
    job.run(20)
    job.seal()
    for since in (None, memory):
        report = verify_job(job.folder, [signer.public], only=only, since=since)
        assert (report.status, [f.message for f in report.findings]) == ("OK", [])


def test_a_rank_has_one_file(genuine: Path, tmp_path: Path) -> None:
    shutil.copytree(genuine, job := tmp_path / "job")
    for name in ("rank-00001", "rank-001", "rank-1", "rank-0000000001"):
        (job / f"{name}.ledger").touch()
    assert list(ranks_found(job)) == list(range(RANKS))
    for rank in (10_000, 123_456_789):
        rank_path(job, rank).touch()
    assert list(ranks_found(job)) == [*range(RANKS), 10_000, 123_456_789]


def test_days_may_differ_by_one(job: Job, signer: Signer) -> None:
    for days, found in ((1, set()), (2, {"contradiction"})):
        late = TODAY + timedelta(days=days)
        for rank in job.ranks:
            rank.commit(rank.propose([f"x{days}"], today=late if rank.rank == 2 else TODAY), 3)
            rank.sign()
        assert codes(verified(job.folder, signer)) & {"contradiction"} == found
    job.leave()


@pytest.mark.parametrize(
    ("facts", "code"),
    [({"weights": "cd" * 32}, "other_weights"), ({"normaliser": "8.0"}, "other_terms")],
)
def test_a_rank_that_began_otherwise_is_named(
    tmp_path: Path, signer: Signer, facts: dict[str, str], code: str
) -> None:
    job = Job(tmp_path / "job", signer)
    job.again(1, **facts)
    job.run(2)
    job.seal()
    report = verified(job.folder, signer)
    assert (report.status, codes(report), named(report)) == ("VIOLATION", {code}, {1})


def test_other_weights_saved_are_found(job: Job, signer: Signer) -> None:
    job.run(2)
    for rank, digest in zip(job.ranks, ("ab", "ab", "cd"), strict=True):
        body = {"step": 2, "file": "model.safetensors", "digest": digest * 32, "tensors": None}
        rank.recorder.event("checkpoint", body)
    job.seal()
    report = verified(job.folder, signer)
    assert (codes(report), named(report)) == ({"other_weights"}, {2})


def test_a_rank_that_says_otherwise_how_the_job_went_back_is_found(tmp_path: Path, signer: Signer) -> None:
    for odd in (False, True):
        job = Job(tmp_path / str(odd), signer)
        branches = Branches()
        for number in range(2):
            body = {"step": 2 * number, "file": f"{number}", "digest": f"a{number}" * 32, "tensors": None}
            branches.apply("checkpoint", body)
            for rank in job.ranks:
                rank.recorder.event("checkpoint", body)
            job.run(2)
        early, late = branches.saved()
        for rank in job.ranks:
            to = early if odd and rank.rank == 1 else late
            rank.recorder.event("rewound", branches.rewind(to, 4))
        job.run(1)
        job.seal()
        report = verified(job.folder, signer)
        wanted = ({"other_weights"}, {1}) if odd else (set(), set())
        assert (codes(report), named(report)) == wanted


def test_an_example_counted_on_two_ranks_is_found(tmp_path: Path, signer: Signer) -> None:
    """Where exposures are limited an example has one home, so that one ledger counts it."""
    from gradwarden.runtime.commitments import Committer

    limited = program(rules="retain few { when kind == surface  at most 1 exposures }")
    committer = Committer(SECRET)
    for spoil in (False, True):
        job = Job(tmp_path / str(spoil), signer, 2, placement="by_example", governed_by=limited)
        own = [[f"e{n}" for n in range(30) if home(committer.commit(f"e{n}"), 2) == rank] for rank in (0, 1)]
        job.step([own[0][:4], own[1][:4]])
        job.step([own[0][4:6], [*own[1][4:6], *own[0][:1]] if spoil else own[1][4:6]])
        job.seal()
        report = verified(job.folder, signer)
        assert report.ok != spoil
        assert named(report, "misplaced_example") == ({1} if spoil else set())


# --- lagging, missing, killed -------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_timed_heads")
def test_a_rank_that_lags_at_a_binding_is_named(job: Job, signer: Signer) -> None:
    job.run(2)
    for _ in range(5):
        job.step()
    for rank in job.ranks[:2]:
        rank.sign()
    job.binder.bind()  # rank 2 has signed nothing since step 2: five behind, four are allowed
    job.seal()
    report = verified(job.folder, signer)
    assert (report.status, codes(report), named(report)) == ("LAGGING", {"lagging_rank"}, {2})


def test_a_rank_behind_by_no_more_than_the_job_allows_is_not(job: Job, signer: Signer) -> None:
    job.run(2)
    for _ in range(4):
        job.step()
    for rank in job.ranks[:2]:
        rank.sign()
    job.binder.bind()
    job.seal()
    assert verified(job.folder, signer).ok


def test_a_rank_that_never_wrote_is_missing(tmp_path: Path, signer: Signer) -> None:
    job = Job(tmp_path / "job", signer)
    job.without(2)
    job.ranks.pop()
    job.run(2)
    with pytest.raises(JobError, match="rank 2"):
        job.seal()
    job.leave()
    report = verified(job.folder, signer)
    assert (report.status, named(report, "missing_rank")) == ("INCOMPLETE", {2})


def test_a_rank_that_was_killed_is_named(tmp_path: Path, signer: Signer) -> None:
    job = Job(tmp_path / "job", signer)
    job.run(3)
    for rank in job.ranks:
        rank.propose([f"x{rank.rank}"])
        rank.ledger.flush()
    killed = job.folder.with_name("killed")
    # As SIGKILL leaves the ledger of rank 1; the log of logs may be writing a head meanwhile.
    shutil.copytree(job.folder, killed, ignore=shutil.ignore_patterns("*.new"))
    job.leave()
    for rank in (0, 2):
        shutil.copy(rank_path(job.folder, rank), rank_path(killed, rank))
    shutil.copy(log_path(job.folder), log_path(killed))
    report = verified(killed, signer)
    assert (report.status, named(report, "cut_off")) == ("INCOMPLETE", {1})
    assert named(report, "unsealed_rank") == {0, 2}
    assert any("step 3 has no outcome" in finding.message for finding in report.findings)


def test_a_rank_that_ends_before_the_others_is_named(job: Job, signer: Signer) -> None:
    """Killed before its next intent reached the disk: its ledger ends with a head, and a step too early."""
    job.run(2)
    for rank in job.ranks[:2]:
        rank.propose([f"x{rank.rank}"])
    job.leave()
    report = verified(job.folder, signer)
    assert (report.status, named(report, "cut_off")) == ("INCOMPLETE", {2})


def test_a_rank_that_missed_steps_in_a_crash_says_so(tmp_path: Path, signer: Signer) -> None:
    """Two ranks began a step that the third did not come to; resumed, it leaves that step out."""
    job = Job(tmp_path / "job", signer)
    job.run(2)
    for rank in job.ranks[:2]:
        rank.propose([f"x{rank.rank}"])
        rank.refuse()
    for rank in job.ranks:
        rank.ledger.close()
    late = job.ranks[2]
    for rank in job.ranks:
        rank.ledger = Ledger.open(rank_path(job.folder, rank.rank), signer, "os")
        rank.recorder = Recorder(rank.ledger)
        rank.roster.change_program(job.program)
        if rank is late:
            rank.recorder.event("skipped", {"step": 2, "until": 3})
            rank.next_step = 3
    job.step([["x0"], ["x1"], ["x2"]])
    job.seal()
    assert verified(job.folder, signer).ok


# --- the one who binds --------------------------------------------------------------------------------------


def test_the_binder_refuses_what_is_not_a_continuation(tmp_path: Path, signer: Signer) -> None:
    for number, (spoil, words) in enumerate(
        [(drop, "is gone"), (cut, "rank 1"), (fork, "was rewritten"), (swap, "of another rank")]
    ):
        folder = tmp_path / str(number)
        job = Job(folder, signer, RANKS)
        job.run(STEPS)
        job.leave()
        fork.signer = signer  # type: ignore[attr-defined]
        spoil(folder, 1, 2, lambda most: min(most, 9))
        with (
            Binder.open(folder, signer, ranks=RANKS, every=2, lag=4) as binder,
            pytest.raises(JobError, match=words),
        ):
            binder.bind()


def test_binding_goes_on_after_a_restart(job: Job, signer: Signer) -> None:
    job.run(4)
    job.binder.close()
    job.binder = Binder.open(job.folder, signer, ranks=3, every=2, lag=4)
    job.run(2)
    assert not job.binder.bind()  # nothing is new
    job.seal()
    report = verified(job.folder, signer)
    assert report.ok
    assert report.facts["bindings"] == 4


def test_a_job_keeps_its_terms_and_has_one_binder(job: Job, signer: Signer) -> None:
    with pytest.raises(LedgerBusy):
        Binder.open(job.folder, signer, ranks=3, every=2, lag=4)
    job.leave()
    with pytest.raises(JobError, match="ranks = 3, not 2"):
        Binder.open(job.folder, signer, ranks=2, every=2, lag=4)


def test_many_ranks_are_bound_in_parts(
    tmp_path: Path, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binder_module, "HEADS_PER_ENTRY", 2)
    folder = sealed_job(tmp_path / "job", signer, 3, 2)
    bound = [entry.body for entry in read_entries(log_path(folder)) if entry.kind == "bound"]
    assert [(body["part"], body["parts"], len(body["heads"])) for body in bound[:2]] == [(0, 2, 2), (1, 2, 1)]
    assert verified(folder, signer).ok


def test_a_log_of_logs_that_no_binder_writes_is_found(job: Job, signer: Signer) -> None:
    """A second binding of fewer entries than the first, signed with the true key."""
    job.run(4)
    entries = [
        e.body for e in read_entries(log_path(job.folder), allow_partial_tail=True) if e.kind == "bound"
    ]
    job.binder._ledger.append("bound", {**entries[0], "binding": 2})
    job.leave()
    report = verified(job.folder, signer)
    assert (report.status, codes(report) & {"wrong_binding"}) == ("VIOLATION", {"wrong_binding"})


def test_a_log_of_logs_that_is_missing_or_another_ledger_is_told(
    tmp_path: Path, genuine: Path, signer: Signer
) -> None:
    folder = tmp_path / "job"
    shutil.copytree(genuine, folder)
    log_path(folder).unlink()
    assert codes(verified(folder, signer)) == {"no_log_of_logs"}
    shutil.copy(rank_path(folder, 0), log_path(folder))
    log_path(folder).with_name("job.ledger.head").unlink()
    report = verified(folder, signer)
    assert "not_a_job" in codes(report)
    assert not report.ok


def test_a_ledger_beyond_the_ranks_of_the_job_is_named(tmp_path: Path, genuine: Path, signer: Signer) -> None:
    folder = tmp_path / "job"
    shutil.copytree(genuine, folder)
    shutil.copy(rank_path(folder, 0), rank_path(folder, RANKS))
    assert named(verified(folder, signer), "unnamed_rank") == {RANKS}


def test_nobody_answers_for_a_job_under_other_keys(genuine: Path) -> None:
    report = verify_job(genuine, [Signer.generate("run").public])
    assert report.status == "UNTRUSTED"


@pytest.mark.parametrize("ranks", [0, 2**50])
def test_a_log_of_logs_of_no_job_that_can_be_is_refused_at_once(
    tmp_path: Path, signer: Signer, ranks: int
) -> None:
    """Signed with the true key: a verifier must not go through so many ranks."""
    with Ledger.open(log_path(tmp_path), signer) as ledger:
        terms = {"ranks": ranks, "every": 1, "lag": 1, "placement": "anywhere", "at": ""}
        opened = {"format": "gradwarden/job/1", "origin": ledger.origin, "keys": ledger.vkeys}
        ledger.append("job_opened", {**opened, **terms})
    assert "not_a_job" in codes(verified(tmp_path, signer))


def test_the_heads_of_a_binding_are_looked_up_and_not_gone_through_for_each_rank() -> None:
    """A file of ten megabytes can name 65,536 ranks."""

    class Heads(tuple[RankHead, ...]):
        passes = 0

        def __iter__(self) -> Iterator[RankHead]:
            Heads.passes += 1
            return super().__iter__()

    log = LogOfLogs()
    log.accept(Entry(0, JOB_OPENING, {"ranks": 40, "origin": "j", "lag": 4, "placement": "anywhere"}, b""))
    heads = [RankHead(rank, rank_origin("j", rank), 3, "ab" * 32, 1) for rank in range(40)]
    bound = {"part": 0, "parts": 1, "binding": 0, "heads": [head.body() for head in heads]}
    log.accept(Entry(1, "bound", bound, b""))
    log.bindings[-1] = Binding(1, Heads(heads))
    found = [one.code for rank in range(40) for one in rank_findings(log, rank, None, None, 0)]
    assert (found, Heads.passes) == (["lost_rank"] * 40, 0)


def test_a_ledger_that_leaves_out_endless_steps_is_told_in_bounded_memory(job: Job, signer: Signer) -> None:
    job.ranks[1].recorder.event("skipped", {"step": 0, "until": 2**52})
    job.ranks[1].next_step = 2**52
    job.ranks[1].commit(job.ranks[1].propose(["a"]), 1)
    job.leave()
    report = verified(job.folder, signer)
    assert report.status == "INCOMPLETE"


@settings(max_examples=20)
@given(data=st.data())
def test_no_bytes_in_a_job_make_the_verifier_raise(
    tmp_path_factory: pytest.TempPathFactory, genuine: Path, signer: Signer, data: st.DataObject
) -> None:
    """One file of a job is spoilt at random: the job is reported, never OK, and nothing is raised."""
    folder = tmp_path_factory.mktemp("spoilt") / "job"
    shutil.copytree(genuine, folder)
    path = data.draw(st.sampled_from([log_path(folder), *(rank_path(folder, r) for r in range(RANKS))]))
    content = path.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    put = data.draw(st.binary(max_size=3))
    spoilt = content[:at] + put + content[at + data.draw(st.integers(0, 40)) :]
    path.write_bytes(spoilt)
    report = verified(folder, signer)
    assert report.ok == (spoilt == content)
    shutil.rmtree(folder)
