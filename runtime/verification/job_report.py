"""What verifying a job gives: findings that name ranks, and the status that they add up to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, Literal

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.verification.verify import VerifyReport

if TYPE_CHECKING:
    from gradwarden.runtime.verification.job_memory import JobMemory

STATUSES = (
    "TAMPERED", "FORK", "ROLLBACK", "UNTRUSTED", "VIOLATION", "INCOMPLETE", "LAGGING", "UNWITNESSED", "OK",
)  # fmt: skip
"""Every status of a job, the worst first."""

CODES: Mapping[str, str] = {
    "no_log_of_logs": "INCOMPLETE",
    "not_a_job": "UNTRUSTED",
    "log_of_logs": "",
    "wrong_binding": "VIOLATION",
    "missing_rank": "INCOMPLETE",
    "lost_rank": "ROLLBACK",
    "cut_rank": "ROLLBACK",
    "forked_rank": "FORK",
    "other_rank": "FORK",
    "rank": "",
    "cut_off": "INCOMPLETE",
    "unsealed_rank": "INCOMPLETE",
    "unbound_end": "VIOLATION",
    "contradiction": "VIOLATION",
    "left_out_step": "VIOLATION",
    "wrong_shares": "VIOLATION",
    "other_terms": "VIOLATION",
    "other_weights": "VIOLATION",
    "misplaced_example": "VIOLATION",
    "out_of_turn": "VIOLATION",
    "wrong_totals": "VIOLATION",
    "unnamed_rank": "VIOLATION",
    "lagging_rank": "LAGGING",
    "weights_mismatch": "VIOLATION",
    "wrong_tensors": "VIOLATION",
    "weights_unnamed": "INCOMPLETE",
}
"""The status that each finding makes of a job; empty: that of the ledger which it is about."""


@frozen
class JobFinding:
    """One thing that is wrong with a job.

    ranks: those it names; none where it is about the log of logs. index: of an entry of their ledger, or of
    the log of logs. status: what it makes of the job.
    """

    code: str
    message: str
    ranks: tuple[int, ...] = ()
    index: int | None = None
    status: str = "OK"
    severity: Literal["error", "warning"] = "error"


@frozen
class JobReport:
    """The outcome of verifying a job.

    ranks: what was found of each rank's ledger by itself. memory: what a later verification can go on from,
    where that was asked for, and the job holds as far as it goes.
    """

    status: str
    findings: tuple[JobFinding, ...]
    ranks: Mapping[int, VerifyReport] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    memory: JobMemory | None = field(default=None, compare=False, repr=False)

    @property
    def ok(self) -> bool:
        return self.status == "OK"


def finding(
    code: str, message: str, ranks: Iterable[int] = (), index: int | None = None, status: str = ""
) -> JobFinding:
    """Return a finding. status: where its code alone does not say what it makes of the job."""
    return JobFinding(code, message, tuple(ranks), index, CODES[code] or status)


def worst(findings: Sequence[JobFinding]) -> str:
    """Return the worst that findings make of a job."""
    return min((found.status for found in findings), key=STATUSES.index, default="OK")
