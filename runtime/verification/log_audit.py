"""What is wrong with a job's log of logs, and with what it says of the ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gradwarden.runtime.jobs.binder import job_seal
from gradwarden.runtime.ledger.chain import ChainReport, first_error
from gradwarden.runtime.verification.job_report import JobFinding, finding
from gradwarden.runtime.verification.log_of_logs import LogOfLogs
from gradwarden.runtime.verification.rank_steps import RankSteps

MOST_NAMED = 8
"""Bindings at which lagging ranks are named; the facts count them all."""


def log_findings(log: LogOfLogs, chain: ChainReport) -> Iterator[JobFinding]:
    """Say what is wrong with the log of logs by itself."""
    first = first_error(chain.findings)
    if first is not None:
        message = f"the log of logs: {first.code}: {first.message}"
        yield finding("log_of_logs", message, index=first.index, status=chain.status)
    elif chain.status == "INCOMPLETE":
        message = "the log of logs is not sealed: the job has not ended, or not in order"
        yield finding("log_of_logs", message, index=chain.size, status=chain.status)
    if log.odd is not None:
        code = "not_a_job" if log.opened is None else "wrong_binding"
        yield finding(code, f"the log of logs: {log.odd[1]}", index=log.odd[0])


def lagging(log: LogOfLogs) -> Iterator[JobFinding]:
    """Name the ranks whose signed heads were too far behind the most advanced one at a binding."""
    assert log.opened is not None
    allowed, named = log.opened["lag"], 0
    for binding in log.bindings:
        behind = {head.rank: binding.step - head.step for head in binding.heads}
        late = {rank: steps for rank, steps in behind.items() if steps > allowed}
        if late and named < MOST_NAMED:
            named += 1
            told = ", ".join(f"rank {rank} by {steps}" for rank, steps in late.items())
            yield finding(
                "lagging_rank",
                f"at step {binding.step} the signed heads are behind by more than {allowed} steps: {told}",
                late,
                binding.index,
            )


def totals(log: LogOfLogs, steps: Mapping[int, RankSteps]) -> Iterator[JobFinding]:
    """Hold the seal of the job against those of the ranks, where all have one."""
    assert log.opened is not None
    seals = [found.sealed for found in steps.values() if found.sealed is not None]
    if log.sealed is None or len(seals) < log.opened["ranks"]:
        return
    due = job_seal(seals)
    if dict(log.sealed) != due:
        message = f"the seal of the job says {dict(log.sealed)}; the ranks' seals add up to {due}"
        yield finding("wrong_totals", message)
