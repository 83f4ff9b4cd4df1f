"""A receipt of a job is of all its ranks: what one hides, rewrote or has not said is never called absence."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import orjson
import pytest

from gradwarden.runtime.commitments import Committer
from gradwarden.runtime.errors import EvidenceError, GradwardenError
from gradwarden.runtime.evidence.job_receipt import JobReceipt, parse_any
from gradwarden.runtime.evidence.job_receipt_check import JobReceiptReport, check_job_receipt
from gradwarden.runtime.evidence.job_receipt_maker import make_job_receipt
from gradwarden.runtime.evidence.prover import last_head
from gradwarden.runtime.evidence.trust import Trust
from gradwarden.runtime.jobs.layout import log_path, rank_path
from gradwarden.runtime.ledger.entries import CANONICAL
from gradwarden.runtime.ledger.keys import Signer
from tests.runtime.evidence.test_receipt import changed
from tests.runtime.jobs.simulated import SECRET, Job
from tests.runtime.jobs.tallied import tally, tally_all

pytestmark = pytest.mark.usefixtures("no_timed_heads")

COMMITTER = Committer(SECRET)

MINE = "mine"
"""An example that ranks 0 and 2 propose, in steps 1 and 3."""


def write_job(folder: Path, signer: Signer, **options: int) -> Job:
    job = Job(folder, signer, **options)
    for step in range(4):
        parts = [list(part) for part in job.batches(step)]
        if step in (1, 3):
            parts[step - 1].append(MINE)
        job.step(parts)
        if step == 1:
            job.bind()
    return job


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory, signer: Signer) -> Job:
    job = write_job(tmp_path_factory.mktemp("job") / "job", signer)
    tally_all(job)
    job.seal()
    return job


@pytest.fixture
def trust(signer: Signer) -> Trust:
    return Trust([signer.public])


def made(job: Job, example: str, *, entries: bool = False) -> JobReceipt:
    head = last_head(log_path(job.folder))
    return make_job_receipt(job.folder, example, COMMITTER, head, entries=entries).receipt


def without(receipt: JobReceipt, rank: int) -> JobReceipt:
    return replace(receipt, ranks={**receipt.ranks, rank: None})


def codes(report: JobReceiptReport) -> set[str]:
    return {fault.code for fault in report.faults}


def test_the_uses_of_all_ranks_are_told(genuine: Job, trust: Trust) -> None:
    receipt = parse_any(made(genuine, MINE, entries=True).encode())
    assert isinstance(receipt, JobReceipt)
    report = check_job_receipt(receipt, trust)
    assert (report.faults, report.used, report.open_ranks) == ((), True, ())
    assert {rank: own.used for rank, own in report.ranks.items()} == {0: True, 1: False, 2: True}
    assert report.leaf is not None
    assert report.leaf["exposed"] == [1, 3]
    assert [(use["times"], use["exposures"], use["learned"]) for use in report.leaf["uses"]] == [
        (2, 2, [1, 3])
    ]
    steps = {rank: [step.step for step in own.steps or ()] for rank, own in report.ranks.items()}
    assert steps == {0: [1], 1: [], 2: [3]}


def test_absence_is_shown_by_all_ranks_together(genuine: Job, trust: Trust) -> None:
    receipt = made(genuine, "nobody's")
    report = check_job_receipt(receipt, trust)
    assert (report.faults, report.used, sorted(report.ranks)) == ((), False, [0, 1, 2])
    assert b"mine" not in receipt.encode()


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_rank_that_is_withheld_is_named_and_absence_is_never_claimed(
    genuine: Job, trust: Trust, rank: int
) -> None:
    report = check_job_receipt(without(made(genuine, "nobody's"), rank), trust)
    assert (report.used, report.withheld, codes(report)) == (None, (rank,), {"withheld_rank"})
    assert f"rank {rank}" in report.faults[0].message
    report = check_job_receipt(without(made(genuine, MINE), rank), trust)
    assert (report.ok, report.used) == (False, True)


def test_a_rank_is_not_left_out_of_sight(genuine: Job, trust: Trust) -> None:
    """Neither by its absence from the file, nor by a rank beside those that there are."""
    receipt = made(genuine, "nobody's")
    for ranks in ({0: receipt.ranks[0], 1: receipt.ranks[1]}, {1: receipt.ranks[0], 2: receipt.ranks[2]}):
        report = check_job_receipt(replace(receipt, ranks=ranks), trust)
        assert report.used is None
        assert {"withheld_rank"} <= codes(report)
    assert check_job_receipt(replace(receipt, ranks={**receipt.ranks, 7: None}), trust).used is False


def test_the_ledger_of_another_rank_or_an_older_head_stands_for_none(
    genuine: Job, trust: Trust, tmp_path: Path, signer: Signer
) -> None:
    receipt = made(genuine, "nobody's")
    report = check_job_receipt(replace(receipt, ranks={**receipt.ranks, 2: receipt.ranks[1]}), trust)
    assert (report.used, codes(report)) == (None, {"wrong_origin", "unbound_rank"})
    job = write_job(tmp_path / "job", signer)
    early = job.ranks[0]
    tally(job, early)
    job.bind()
    old = made(job, "nobody's", entries=True)
    tally_all(job)
    job.seal()
    report = check_job_receipt(replace(made(job, "nobody's"), ranks={**old.ranks}), trust)
    assert "unbound_rank" in codes(report)
    assert report.used is None


def hide(job: Job) -> None:
    rank_path(job.folder, 1).unlink()


def cut(job: Job) -> None:
    path = rank_path(job.folder, 1)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:8]))


def empty(job: Job) -> None:
    rank_path(job.folder, 1).write_bytes(b"")


def rewrite(job: Job) -> None:
    """Write the rank's history anew, with its key and without the example that it used."""
    job.again(1)
    for step in range(4):
        reached = job.ranks[1].propose(job.batches(step)[1])
        job.ranks[1].commit(reached, 9)
    tally(job, job.ranks[1])
    job.ranks[1].seal()


@pytest.mark.parametrize("spoil", [hide, cut, empty, rewrite])
def test_of_a_rank_that_hides_or_rewrites_its_ledger_there_is_nothing_in_a_receipt(
    tmp_path: Path, signer: Signer, trust: Trust, spoil: Callable[[Job], None]
) -> None:
    job = write_job(tmp_path / "job", signer)
    job.step([["a"], ["theirs"], ["b"]])
    tally_all(job)
    job.seal()
    spoil(job)
    head = last_head(log_path(job.folder))
    for example in ("theirs", "nobody's"):
        found = make_job_receipt(job.folder, example, COMMITTER, head)
        assert list(found.without) == [1]
        report = check_job_receipt(found.receipt, trust)
        assert (report.used, report.withheld) == (None, (1,))


def test_a_rank_that_goes_on_after_its_tally_is_named_and_absence_not_claimed(
    tmp_path: Path, signer: Signer, trust: Trust
) -> None:
    job = write_job(tmp_path / "job", signer)
    tally_all(job)
    job.step()
    for rank in job.ranks[:2]:
        tally(job, rank)
    job.seal()
    report = check_job_receipt(made(job, "nobody's"), trust)
    assert (report.faults, report.used, report.open_ranks) == ((), None, (2,))
    assert check_job_receipt(made(job, MINE), trust).used is True


def test_a_rank_that_lags_behind_the_others_is_named(tmp_path: Path, signer: Signer, trust: Trust) -> None:
    job = write_job(tmp_path / "job", signer, lag=1)
    tally_all(job)
    for rank in job.ranks[:2]:
        rank.sign()
    job.binder.bind()
    job.leave()
    report = check_job_receipt(made(job, "nobody's", entries=True), trust)
    assert "lagging_rank" in codes(report)
    assert "rank 2 is bound to step 2" in str(report.faults)
    assert report.used is None


def test_a_rank_with_another_secret_is_named(tmp_path: Path, signer: Signer, trust: Trust) -> None:
    """Under it no commitment of the owner's example would be found."""
    job = Job(tmp_path / "job", signer)
    job.again(1, secret_commitment="cd" * 32)
    job.step()
    tally_all(job)
    job.seal()
    found = make_job_receipt(job.folder, "nobody's", COMMITTER, last_head(log_path(job.folder)))
    assert found.without == {1: "the secret is not that of its ledger"}
    assert check_job_receipt(found.receipt, trust).used is None


def test_a_trainer_whose_rank_has_another_secret_cannot_claim_absence_by_it(
    tmp_path: Path, signer: Signer, trust: Trust
) -> None:
    job = Job(tmp_path / "job", signer)
    job.again(1, secret_commitment="cd" * 32)
    job.step()
    tally_all(job)
    job.seal()
    careless = Committer(SECRET)
    careless.secret_commitment = mock.ANY
    found = make_job_receipt(job.folder, "nobody's", careless, last_head(log_path(job.folder)))
    report = check_job_receipt(found.receipt, trust)
    assert "other_secret" in codes(report)
    assert report.used is None


def test_keys_that_are_not_trusted_and_jobs_that_are_not_meant_show_nothing(
    genuine: Job, trust: Trust
) -> None:
    receipt = made(genuine, MINE)
    report = check_job_receipt(receipt, Trust([Signer.generate("other").public]))
    assert (report.used, dict(report.ranks), "unknown_key" in codes(report)) == (None, {}, True)
    report = check_job_receipt(receipt, replace(trust, origin="elsewhere"))
    assert (report.used, codes(report)) == (None, {"wrong_origin"})


def test_a_job_that_was_not_tallied_gives_entries_alone(tmp_path: Path, signer: Signer, trust: Trust) -> None:
    job = write_job(tmp_path / "job", signer)
    job.seal()
    with pytest.raises(EvidenceError, match="rank 0: the run was not tallied"):
        made(job, MINE)
    assert check_job_receipt(made(job, MINE, entries=True), trust).used is True
    assert check_job_receipt(made(job, "nobody's", entries=True), trust).used is None


def test_a_job_without_a_binding_has_no_receipt(tmp_path: Path, signer: Signer) -> None:
    job = Job(tmp_path / "job", signer)
    job.step()
    job.binder.close()
    with pytest.raises(EvidenceError, match="binds no heads"):
        made(job, MINE)


@pytest.mark.parametrize("example", [MINE, "nobody's"])
def test_no_changed_receipt_says_anything_else(genuine: Job, trust: Trust, example: str) -> None:
    receipt, chance = made(genuine, example, entries=True), random.Random(7)
    data = receipt.encode()
    report = check_job_receipt(receipt, trust)
    for _ in range(60):
        other = orjson.dumps(changed(orjson.loads(data), chance), option=CANONICAL) + b"\n"
        try:
            parsed = parse_any(other)
            if not isinstance(parsed, JobReceipt):
                continue
            found = check_job_receipt(parsed, trust)
        except GradwardenError:
            continue
        if parsed.commitment == receipt.commitment:
            assert found.used in (report.used, None)  # less may be shown, and nothing else
            assert not found.ok or found.leaf == report.leaf
