"""Comes to a verdict on a job, for the verbs that need one: what the files given to it say about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradwarden.cli.inputs import read_head_note
from gradwarden.cli.job_verdict import JobVerdict
from gradwarden.cli.judging import SOUND, Asked, checked_stamps, kept, size_of_weights, stamped
from gradwarden.cli.output import arrived, progress
from gradwarden.cli.signing import load_authorities
from gradwarden.cli.verdict import STATUSES

if TYPE_CHECKING:
    from gradwarden.runtime.evidence.stamped import Stamped
    from gradwarden.runtime.evidence.trust import Trust
    from gradwarden.runtime.ledger.chain import Finding
    from gradwarden.runtime.verification.job_report import JobFinding, JobReport
    from gradwarden.runtime.verification.key_periods import Schedule


def judge_job(folder: Path, trust: Trust, asked: Asked) -> JobVerdict:
    """Verify a job's folder, and compare its log of logs with heads that were kept elsewhere."""
    from gradwarden.runtime.jobs.layout import log_path
    from gradwarden.runtime.jobs.progress import size_of_ranks
    from gradwarden.runtime.ledger.program_signature import NOBODY
    from gradwarden.runtime.verification.job_verify import verify_job

    paths = [*asked.checkpoints, *stamped(log_path(folder), asked.checkpoints, asked.authority_files)]
    notes = [read_head_note(path) for path in paths]
    authorities = load_authorities(asked.authority_files)
    total = size_of_ranks(folder) + size_of_weights(asked.weights)
    with progress(f"verifying {folder.name}", total, "bytes") as advance:
        report = verify_job(
            folder,
            trust.keys,
            program=asked.programs,
            approvers=asked.approvers or NOBODY,
            weights=asked.weights,
            earlier=asked.earlier,
            only="entries" if asked.only else None,
            since=asked.since,
            remember=asked.remember is not None,
            progress=arrived(advance),
            hashed=advance,
        )
    assurance, own = "self-attested", (False,) * len(notes)
    if notes and log_path(folder).exists():
        report, assurance, own = _compared(folder, report, notes, trust)
    if authorities:
        stamps, unstamped = checked_stamps(paths, notes, own, authorities)
        report = _dated(folder, report, stamps, unstamped)
    return JobVerdict(
        folder,
        report,
        policy_given=bool(asked.programs),
        heads_compared=len(asked.checkpoints),
        assurance=assurance,
        weights=tuple(asked.weights),
        memory=asked.since,
        remembered=kept(report.memory if report.status in (*SOUND, "LAGGING") else None, asked.remember),
    )


def _compared(
    folder: Path, report: JobReport, notes: Sequence[bytes], trust: Trust
) -> tuple[JobReport, str, tuple[bool, ...]]:
    """Compare the log of logs with heads of it.

    Return the report with what that shows, on whose word, and of each head whether it is of this log.
    """
    from gradwarden.runtime.evidence.witnessed import compare_notes
    from gradwarden.runtime.jobs.layout import log_path

    known = compare_notes(log_path(folder), notes, trust, report.facts)
    facts = known.facts()
    assurance: str = facts.get("assurance", "self-attested")
    if "witnessed_entries" in facts:
        members = _witnessed_members(folder, report, facts["witnessed_entries"])
        report = replace(report, facts={**report.facts, **facts, "members": members})
    return with_findings(report, _of_the_log(known.findings)), assurance, known.own


def _of_the_log(findings: Iterable[Finding]) -> list[JobFinding]:
    """Return findings about heads of the log of logs as those of its job."""
    from gradwarden.runtime.verification.job_report import JobFinding

    return [
        JobFinding(one.code, f"the log of logs: {one.message}", index=one.index, status=STATUSES[one.code])
        for one in findings
    ]


def _dated(
    folder: Path, report: JobReport, stamps: Sequence[Stamped], findings: Sequence[Finding]
) -> JobReport:
    """Add what time stamps of heads of the log of logs show: of it, and of what they bind of each rank."""
    told = [
        {**stamp.facts(), "ranks": {str(rank): size for rank, size in _bound(folder, stamp.size).items()}}
        for stamp in stamps
    ]
    report = replace(report, facts={**report.facts, "timestamps": told})
    return with_findings(report, _of_the_log(findings))


def job_held_to(verdict: JobVerdict, schedule: Schedule) -> JobVerdict:
    """Add what a schedule of rotation warns of, by ledger; the log of logs tells no days, only entries."""
    from gradwarden.runtime.verification.job_report import JobFinding
    from gradwarden.runtime.verification.key_periods import overdue

    report = verdict.report
    late = [
        JobFinding(one.code, f"the log of logs: {one.message}", (), one.index, severity=one.severity)
        for one in overdue(report.facts.get("key_periods", ()), schedule)
    ]
    for rank, own in report.ranks.items():
        for one in overdue(own.facts["key_periods"], schedule):
            message = f"the ledger of rank {rank}: {one.message}"
            late.append(JobFinding(one.code, message, (rank,), one.index, severity=one.severity))
    return replace(verdict, report=with_findings(report, late))


def _witnessed_members(folder: Path, report: JobReport, size: int) -> dict[str, Any]:
    """Return the facts of each rank, with the entries that are bound under a witnessed head.

    size: the entries of the log of logs that such a head covers.
    """
    heads = _bound(folder, size)
    return {
        rank: {**member, "witnessed_entries": heads.get(int(rank), 0)}
        for rank, member in report.facts["members"].items()
    }


def _bound(folder: Path, size: int) -> dict[int, int]:
    """Return how many entries of each rank are bound in the first `size` entries of the log of logs."""
    from gradwarden.runtime.errors import LedgerError
    from gradwarden.runtime.evidence.job_receipt_maker import last_binding
    from gradwarden.runtime.jobs.layout import log_path

    with suppress(LedgerError):  # nothing is bound there, or the log of logs does not hold
        return {rank: head.size for rank, head in last_binding(log_path(folder), size).heads.items()}
    return {}


def with_findings(report: JobReport, found: Sequence[JobFinding]) -> JobReport:
    """Return a report with more findings, and the status that these make of it."""
    from gradwarden.runtime.verification.job_report import STATUSES as WORST_FIRST

    status = min([report.status, *(one.status for one in found)], key=WORST_FIRST.index)
    return replace(report, status=status, findings=(*report.findings, *found))
