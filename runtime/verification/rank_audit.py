"""What is wrong with one rank of a job: with its ledger by itself, and held against the log of logs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gradwarden.runtime.jobs.layout import rank_origin, ranks_found
from gradwarden.runtime.ledger.chain import first_error
from gradwarden.runtime.verification.job_report import JobFinding, finding
from gradwarden.runtime.verification.log_of_logs import LogOfLogs, bound_of
from gradwarden.runtime.verification.rank_steps import RankSteps
from gradwarden.runtime.verification.verify import VerifyReport


def rank_findings(
    log: LogOfLogs,
    rank: int,
    report: VerifyReport | None,
    steps: RankSteps | None,
    most: int,
    known: int = 0,
) -> Iterator[JobFinding]:
    """Say what is wrong with one rank.

    most: the next step of the rank that is most advanced. known: up to which size its ledger was held against
    the log of logs before.
    """
    last = log.last.get(rank)
    if report is None or steps is None:
        if last is not None and last.size:
            message = f"the ledger of rank {rank} is missing; {last.size} of its entries were bound"
            yield finding("lost_rank", message, [rank])
        else:
            yield finding("missing_rank", f"the ledger of rank {rank} is missing", [rank])
        return
    yield from _place(log, rank, steps)
    yield from _bound(log, rank, report, steps, known)
    yield from _by_itself(log, rank, report, steps, most)
    if steps.misplaced is not None:
        index, step = steps.misplaced
        message = f"step {step} of rank {rank} has an example whose home is another rank"
        yield finding("misplaced_example", message, [rank], index)
    if steps.misfit is not None and report.facts["only"]:  # else the replay of the ledger names it
        index, step = steps.misfit
        yield finding("out_of_turn", f"rank {rank} records step {step} out of turn", [rank], index)


def _place(log: LogOfLogs, rank: int, steps: RankSteps) -> Iterator[JobFinding]:
    """Check that a ledger is that of its rank."""
    assert log.opened is not None
    opened = log.opened
    member = (steps.opened or {}).get("job")
    if steps.opened is None:
        return
    if member is None:
        yield finding("other_rank", f"a ledger of no job stands in the place of rank {rank}", [rank], 0)
        return
    due = {"id": opened["origin"], "rank": rank, "ranks": opened["ranks"], "placement": opened["placement"]}
    for name, value in due.items():
        if member[name] != value:
            message = f"another ledger stands in the place of rank {rank}: {name} {member[name]}, not {value}"
            yield finding("other_rank", message, [rank], 0)
            return
    if steps.opened["origin"] != rank_origin(opened["origin"], rank):
        yield finding("other_rank", f"the ledger of rank {rank} has another origin than it must", [rank], 0)


def _bound(
    log: LogOfLogs, rank: int, report: VerifyReport, steps: RankSteps, known: int
) -> Iterator[JobFinding]:
    """Check that a ledger holds every head that was bound of it; name the first that it does not."""
    size = report.facts["entries"]
    for index, head in bound_of(log.bindings, rank):
        found = steps.heads.get(head.size)
        if head.size <= known or found == (head.root, head.step):
            continue
        if found is None and size <= head.size:
            if not _broken(report):
                message = f"the ledger of rank {rank} ends after {size} entries; {head.size} were bound"
                yield finding("cut_rank", message, [rank], size)
        elif found is not None and found[0] == head.root:
            message = f"rank {rank} was at step {found[1]} where the log of logs has step {head.step}"
            yield finding("wrong_binding", message, [rank], index)
        else:
            message = f"the ledger of rank {rank} is not a continuation of its first {head.size} entries"
            yield finding("forked_rank", f"{message}, which were bound", [rank], head.size)
        return


def _broken(report: VerifyReport) -> bool:
    """Whether a ledger was only gone through up to a fault; what comes behind it is not known."""
    errors = {found.code for found in report.findings if found.severity == "error"}
    return report.status == "TAMPERED" and errors != {"truncated"}


def _by_itself(
    log: LogOfLogs, rank: int, report: VerifyReport, steps: RankSteps, most: int
) -> Iterator[JobFinding]:
    """Say what is wrong with a ledger by itself, and with its end."""
    first = first_error(report.findings)
    size = report.facts["entries"]
    if report.status not in ("OK", "INCOMPLETE"):
        told = f"{first.code}: {first.message}" if first else report.status
        index = None if first is None else first.index
        yield finding("rank", f"the ledger of rank {rank}: {told}", [rank], index, report.status)
    elif report.status == "INCOMPLETE":
        broken = _breaking_off(report, steps, most)
        if broken is None:
            yield finding("unsealed_rank", f"the ledger of rank {rank} is not sealed", [rank], size)
        else:
            yield finding("cut_off", f"rank {rank} was cut off: {broken}", [rank], size)
    elif log.sealed is not None and not _bound_whole(log, rank, size):
        message = f"the job is sealed, and the end of the ledger of rank {rank} was not bound"
        yield finding("unbound_end", message, [rank], size - 1)


def _bound_whole(log: LogOfLogs, rank: int, size: int) -> bool:
    """Whether the last head of a sealed ledger, its last entry, is the one that was bound last."""
    last = log.last.get(rank)
    return last is not None and last.size == size - 1


def _breaking_off(report: VerifyReport, steps: RankSteps, most: int) -> str | None:
    """Say how a ledger that is not sealed breaks off; None where it was left in order, as far as one sees."""
    unsigned = report.facts["entries"] - report.facts["signed_entries"] - 1
    if any(found.code == "torn_tail" for found in report.findings):
        return "its last line is unfinished"
    if unsigned > 0:
        step = f", and step {steps.unfinished} has no outcome" if steps.unfinished is not None else ""
        return f"no head covers the last {unsigned} entries{step}"
    if steps.steps < most:
        return f"it ends before step {steps.steps}, which others have begun"
    return None


def unnamed(folder: Path, ranks: int) -> Iterator[JobFinding]:
    """Name the ledgers of ranks that a job does not have."""
    for rank in ranks_found(folder):
        if rank >= ranks:
            message = f"there is a ledger of rank {rank}, and the job has {ranks} ranks"
            yield finding("unnamed_rank", message, [rank])
