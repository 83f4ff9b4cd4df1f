"""One index over the ledgers of all ranks of a job: its answers are those of one ledger for all."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
import pytest

from gradwarden.policy.evaluation.chosen_steps import is_chosen
from gradwarden.runtime.commitments import Committer
from gradwarden.runtime.errors import TraceError
from gradwarden.runtime.jobs.layout import rank_path
from gradwarden.runtime.ledger.keys import Signer
from gradwarden.runtime.ledger.ledger import Ledger
from gradwarden.runtime.provenance.index import build_index, check_index, open_index
from gradwarden.runtime.provenance.queries import Queries
from gradwarden.runtime.records.recorder import Recorder
from tests.runtime.jobs.simulated import SECRET, Job, Rank, program

STEPS, RANKS = 30, 3
GOVERNED = program(
    rules='suppress shy { when kind == concept because "none" } gradient { record 1 in 2 steps }'
)
COMMITTER = Committer(SECRET)


def parts(step: int) -> list[list[str]]:
    """What each rank proposes: examples of its own, one that goes around, and a concept on rank 0."""
    return [
        [f"{step % 5}-{rank}", *(["guest"] if step % RANKS == rank else []), *(["C"] if rank == 0 else [])]
        for rank in range(RANKS)
    ]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traced")
    made = Job(folder / "job", Signer.generate("run"), RANKS, governed_by=GOVERNED)
    for step in range(STEPS):
        made.step(parts(step))
    made.bind()
    made.seal()
    whole = Job(folder / "whole", made.signer, 1, governed_by=GOVERNED)
    for step in range(STEPS):
        whole.step([[name for part in parts(step) for name in part]])
    whole.seal()
    return made.folder


def test_progress_goes_through_the_ledgers_of_all_ranks_without_a_step_back(job: Path) -> None:
    told: list[tuple[int, int]] = []
    build_index(job, progress=lambda done, total: told.append((done, total)))
    size = sum(rank_path(job, rank).stat().st_size for rank in range(RANKS))
    assert {total for _, total in told} == {size}
    assert told == sorted(told)
    assert told[-1] == (size, size)


def test_answers_are_those_of_one_ledger_for_all(job: Path) -> None:
    build_index(job)
    check_index(job)
    index = open_index(job)
    alone = build_index(rank_path(job.with_name("whole"), 0))
    together, one = Queries(index), Queries(alone)
    assert (index.steps, index.uses, index.examples) == (alone.steps, alone.uses, alone.examples)
    assert index.behind == 0
    for steps in ((0, None), (4, 17)):
        for band in ("shallow", "deep"):
            found, other = together.band(band, steps), one.band(band, steps)
            assert (found.examples, found.uses, found.weight) == (other.examples, other.uses, other.weight)
            assert {s.commitment: s.weight for s in found.top} == {s.commitment: s.weight for s in other.top}
            assert {s.commitment: s.added for s in found.top} == {s.commitment: s.added for s in other.top}
            assert any(s.added for s in found.top) == bool(found.top)
            assert found.moved == other.moved
        found, other = together.rule("shy", steps), one.rule("shy", steps)
        assert (found.declared, found.parts, found.top) == (other.declared, other.parts, other.top)
    guest = COMMITTER.commit("guest")
    found, other = together.example(guest), one.example(guest)
    assert (found.uses, found.weights, found.chapters) == (other.uses, other.weights, other.chapters)
    assert found.added == other.added
    assert found.added["shallow"].steps == sum(is_chosen(step, 2) for step in range(STEPS))
    assert [step["rank"] for step in found.steps] == [step % RANKS for step in range(STEPS)]
    assert together.footprint("shy").stopped == 1
    assert together.programs() == one.programs()


def test_a_cluster_engine_reads_the_rank_from_the_folders(job: Path) -> None:
    folder = build_index(job).folder
    rows = duckdb.sql(f"SELECT rank, count(*) FROM read_parquet('{folder}/uses/*/*/*.parquet') GROUP BY rank")
    assert sorted(rows.fetchall()) == [(0, STEPS * 2 + 10), (1, STEPS + 10), (2, STEPS + 10)]


def test_an_index_of_other_ledgers_is_refused(job: Path, tmp_path: Path) -> None:
    build_index(job)
    copy = tmp_path / "job"
    shutil.copytree(job, copy)
    shutil.copytree(open_index(job).folder, tmp_path / "job.trace")
    open_index(copy)
    shutil.copy(rank_path(job, 1), rank_path(copy, 2))
    with pytest.raises(TraceError, match="another ledger"):
        open_index(copy)
    rank_path(copy, 2).unlink()
    with pytest.raises(TraceError, match="another ledger"):
        open_index(copy)


def test_a_job_that_a_crash_left_is_indexed_as_far_as_it_goes(tmp_path: Path) -> None:
    """One rank's last line is torn, and one has steps that it left out."""
    made = Job(tmp_path / "job", Signer.generate("run"), 2, governed_by=GOVERNED)
    for _ in range(3):
        made.step([["a"], ["b"]])
    made.ranks[0].propose(["a"])
    made.leave()
    late: Rank = made.ranks[1]
    late.ledger = Ledger.open(rank_path(made.folder, 1), made.signer, "os")
    late.recorder = Recorder(late.ledger)
    late.roster.change_program(GOVERNED)
    late.recorder.event("skipped", {"step": 3, "until": 4})
    late.next_step = 4
    late.commit(late.propose(["b"]), 1)
    late.ledger.close()
    with rank_path(made.folder, 0).open("ab") as file:
        file.write(b'{"body":')
    rank_path(made.folder, 0).with_name("rank-0000.ledger.head").unlink()
    queries = Queries(build_index(made.folder))
    assert queries.index.steps == 5
    assert [step["step"] for step in queries.example(COMMITTER.commit("b")).steps] == [0, 1, 2, 4]
    assert [step["outcome"] for step in queries.example(COMMITTER.commit("a")).steps][-1] == "open"
