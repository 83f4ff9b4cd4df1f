"""`gradwarden receipt` over a job of many ranks: one receipt of all of them, made and checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradwarden.cli.diagnostics import plural
from gradwarden.cli.failures import complain, give_up
from gradwarden.cli.inputs import head_under
from gradwarden.cli.output import emit_json
from gradwarden.cli.receipt_report import (
    OTHERS,
    SALT,
    SELF_ATTESTED,
    TALLY,
    faults_to_json,
    hand_over,
    leaf_lines,
    show_faults,
    show_lines,
    show_standing,
    standing_to_json,
    steps_line,
    steps_to_json,
)
from gradwarden.policy.frozen import frozen
from gradwarden.runtime.jobs.layout import named_ranks

if TYPE_CHECKING:
    from gradwarden.runtime.evidence.job_receipt import JobReceipt
    from gradwarden.runtime.evidence.job_receipt_check import JobReceiptReport
    from gradwarden.runtime.evidence.proof_check import Fault
    from gradwarden.runtime.evidence.trust import Trust


def make_job(
    folder: Path,
    example: str,
    secret: Path,
    head: Path | None,
    output: Path | None,
    output_format: str,
    *,
    entries: bool,
) -> int:
    """Make the receipt of one example of a job; return the exit status."""
    from gradwarden.runtime.commitments import Committer
    from gradwarden.runtime.errors import EvidenceError, HeadMismatch
    from gradwarden.runtime.evidence.job_receipt_maker import make_job_receipt
    from gradwarden.runtime.jobs.layout import log_path

    under = head_under(head, log_path(folder))
    try:
        made = make_job_receipt(folder, example, Committer.load(secret), under, entries=entries)
    except (EvidenceError, HeadMismatch) as error:
        return give_up(error, output_format)
    hand_over(
        made.receipt.encode().decode(),
        output,
        output_format,
        f"of {plural(len(made.receipt.ranks) - len(made.without), 'rank')}",
        ok=not made.without,
        without_ranks=[{"rank": rank, "message": message} for rank, message in made.without.items()],
    )
    for rank, message in made.without.items():
        told = f"the receipt has nothing of rank {rank}: {message}"
        complain("withheld_rank", told, "it does not show that the example was never used")
    return int(bool(made.without))


@frozen
class _Checked:
    """A receipt and what it shows. faults: of it, and of what it was expected to be."""

    path: Path
    receipt: JobReceipt
    report: JobReceiptReport
    faults: tuple[Fault, ...]
    salt_known: bool

    @property
    def used(self) -> bool | None:
        return self.report.used if self.report.used or not self.faults else None

    def limits(self) -> Iterator[str]:
        """Yield what the receipt does not show."""
        report = self.report
        yield SELF_ATTESTED
        if lacking := [rank for rank in report.bound if rank not in report.ranks]:
            yield f"whether {named_ranks(lacking)} used it"
        if untallied := [rank for rank, own in report.ranks.items() if own.examples is None]:
            yield f"that these are all uses by {named_ranks(untallied)}: not tallied"
        if open_ranks := [rank for rank in report.open_ranks if report.ranks[rank].examples is not None]:
            yield f"steps of {named_ranks(open_ranks)} after the tally: not sealed right behind it"
        if len(untallied) < len(report.ranks):
            yield TALLY
        if not self.used and not self.salt_known:
            yield SALT
        yield OTHERS

    def to_json(self) -> dict[str, Any]:
        report = self.report
        return {
            "ok": not self.faults,
            **standing_to_json(self.path, self.receipt, report.head),
            "policy": next((own.opened["policy"] for own in report.ranks.values()), None),
            "faults": faults_to_json(self.faults),
            "used": self.used,
            "tally": report.leaf,
            "ranks": {
                str(rank): {
                    "used": own.used,
                    "examples": own.examples,
                    "closed": own.closed,
                    "tally": own.leaf,
                    "steps": steps_to_json(own),
                }
                for rank, own in report.ranks.items()
            },
            "withheld_ranks": list(report.withheld),
            "not_shown": list(self.limits()),
        }

    def lines(self) -> Iterator[str]:
        """Yield what became of the example, on all ranks and on each that used it."""
        report = self.report
        if report.ranks:
            policy = next(iter(report.ranks.values())).opened["policy"]
            named = f"{policy['name']} version {policy['version']}"
            yield f"the job began under {named}, {policy['digest'][:16]}…"
        if report.leaf is not None:
            yield from leaf_lines(report.leaf)
        elif tallied := [rank for rank, own in report.ranks.items() if own.examples is not None]:
            yield f"the tallies of {named_ranks(tallied)} do not have its commitment"
        if using := [rank for rank, own in report.ranks.items() if own.used]:
            yield f"used by {named_ranks(using)}"
        for rank, own in report.ranks.items():
            if own.steps:
                yield f"rank {rank}: {steps_line(own)}"


def check_job(
    path: Path,
    receipt: JobReceipt,
    trust: Trust,
    faults: Sequence[Fault],
    output_format: str,
    *,
    salt_known: bool,
    none_after: int | None,
) -> int:
    """Check the receipt of a job; return the exit status. faults: of what it was expected to be."""
    from gradwarden.runtime.evidence.job_receipt_check import check_job_receipt
    from gradwarden.runtime.evidence.receipt_check import used_after

    report = check_job_receipt(receipt, trust)
    late = None
    if none_after is not None:
        late = used_after(report.ranks.values(), none_after, salt_known=salt_known)
    found = (*report.faults, *faults, *(() if late is None else (late,)))
    checked = _Checked(path, receipt, report, found, salt_known)
    emit_json(checked.to_json()) if output_format == "json" else _show(checked)
    return int(bool(checked.faults))


def _show(checked: _Checked) -> None:
    ok = not checked.faults
    known = {
        True: f"`{checked.receipt.id}` was used",
        False: f"`{checked.receipt.id}` was never named",
        None: f"whether `{checked.receipt.id}` was used is not shown",
    }[checked.used]
    what = known if ok else f"the receipt does not hold as a whole; {known}"
    show_standing(checked.path, checked.report.head, what, "job", ok=ok)
    show_lines(checked.lines(), checked.limits())
    show_faults(checked.faults)
