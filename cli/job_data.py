"""What `verify FOLDER` can say with the data set and the job's secret: whether the ranks recorded metadata
truly, and what another policy would have decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gradwarden.cli.inputs import load_program
from gradwarden.cli.job_judging import with_findings
from gradwarden.cli.job_verdict import JobVerdict
from gradwarden.cli.judging import SOUND
from gradwarden.cli.opened import open_data, program_of


def job_with_data(
    verdict: JobVerdict, data: Path, secret: Path, supplier_files: Sequence[Path], other: Path | None
) -> JobVerdict:
    """Open the commitments of every rank whose ledger holds, and compare with the data set.

    other: another policy, under which all of these ranks are decided again where the job holds, as far as it
    goes.
    """
    from gradwarden.runtime.evidence.supply import check_supply
    from gradwarden.runtime.jobs.layout import rank_path
    from gradwarden.runtime.ledger.keys import PublicKey
    from gradwarden.runtime.verification.job_report import JobFinding
    from gradwarden.runtime.verification.metadata_audit import MetadataAudit
    from gradwarden.runtime.verification.what_if import what_if_of_ranks

    verdict, report = replace(verdict, other=other), verdict.report
    program = None if other is None else load_program(other)
    ledgers = {
        rank: rank_path(verdict.folder, rank) for rank, found in report.ranks.items() if found.status in SOUND
    }
    recorded = next((program_of(path) for path in ledgers.values()), None)
    if recorded is None:
        return verdict
    opened, examples = open_data(data, secret, recorded), 0
    suppliers = [PublicKey.load(path) for path in supplier_files]
    found: list[JobFinding] = []
    for rank, path in ledgers.items():
        audit = MetadataAudit(path, opened)
        for one in (*audit.findings(), *check_supply(path, data, suppliers)):
            told = f"rank {rank}: {one.message}"
            found.append(JobFinding(one.code, told, (rank,), one.index, status="VIOLATION"))
        examples += audit.examples
    verdict = replace(verdict, report=with_findings(report, found), opened=None if found else examples)
    if program is None or verdict.status not in (*SOUND, "LAGGING"):
        return verdict
    return replace(verdict, difference=what_if_of_ranks(ledgers, opened, program))
