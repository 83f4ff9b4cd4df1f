"""Jobs of simulated ranks that are tallied, as `Governor.tally` does on every rank."""

from __future__ import annotations

from gradwarden.runtime.evidence.tally import KIND, tally_ledger
from gradwarden.runtime.jobs.layout import rank_path
from tests.runtime.jobs.simulated import Job, Rank


def tally(job: Job, rank: Rank) -> None:
    rank.ledger.flush()
    rank.recorder.event(KIND, tally_ledger(rank_path(job.folder, rank.rank)).body())


def tally_all(job: Job) -> None:
    for rank in job.ranks:
        tally(job, rank)
