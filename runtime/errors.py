"""What can go wrong on the training side and in the ledger.

Every class has a stable code: GW5xx the governor, GW6xx the ledger, GW7xx keys, GW8xx masks, training and
privacy. Messages are lowercase, without a full stop, with the user's own text in backticks.
"""

# ruff: noqa: N818 - several classes are named for what happened; `…Error` would only repeat it
from __future__ import annotations

from typing import Literal

from gradwarden.policy.errors import GradwardenError


class RuntimeGovernanceError(GradwardenError):
    """Base of every error of `gradwarden.runtime`."""

    code = "GW500"


class ExampleError(RuntimeGovernanceError):
    """A batch that names its examples wrongly: no id, an unknown id, or metadata that changed."""

    code = "GW530"


class StarvationHalt(RuntimeGovernanceError):
    """A band that no example reached for as many steps as the policy allows, where it says `halt`."""

    code = "GW520"


class BudgetHalt(RuntimeGovernanceError):
    """A privacy budget that is spent, where the policy halts the run."""

    code = "GW851"


class RankError(RuntimeGovernanceError):
    """Processes that train one model and have lost each other, or are not at the same point."""

    code = "GW540"


class InfluenceError(RuntimeGovernanceError):
    """Runs that cannot be compared to measure what a group of examples did."""

    code = "GW560"


class MemorizationError(RuntimeGovernanceError):
    """Something that was asked about memorization and cannot be found out."""

    code = "GW570"


class LedgerError(RuntimeGovernanceError):
    """A ledger that cannot be written, or can no longer be trusted to be written."""

    code = "GW600"


class LedgerBusy(LedgerError):
    """Another writer holds the ledger."""

    code = "GW601"


class MemoryFileError(LedgerError):
    """What an earlier verification remembered, and cannot be read or gone on with."""

    code = "GW606"


class LedgerDamaged(LedgerError):
    """A ledger whose content breaks the format.

    index: the entry at fault, counted from 0. offset: the byte at which its line starts. problem: a stable
    word for the fault (see `entries`).
    """

    code = "GW602"

    def __init__(
        self,
        message: str,
        *,
        index: int,
        offset: int,
        problem: str = "not_canonical",
        help: str | None = None,
    ) -> None:
        super().__init__(message, help=help)
        self.index = index
        self.offset = offset
        self.problem = problem


class LedgerRollback(LedgerError):
    """A ledger that is shorter than, or differs from, a head that was already signed. Never repaired."""

    code = "GW603"


class EntryInvalid(LedgerError):
    """An entry that the caller may not append: unknown kind, wrong shape, too long, or not plain data."""

    code = "GW604"


class ArchiveMissing(LedgerError):
    """Entries that are asked for lie in an archive that is not there."""

    code = "GW605"


NoteFault = Literal["malformed", "unknown_key", "bad_signature", "ambiguous_key"]


class NoteError(LedgerError):
    """A signed note or checkpoint that cannot be trusted; `fault` says in which way."""

    code = "GW610"

    def __init__(self, message: str, *, fault: NoteFault = "malformed", help: str | None = None) -> None:
        super().__init__(message, help=help)
        self.fault: NoteFault = fault


class ProofError(LedgerError):
    """A Merkle proof that was asked for outside the tree."""

    code = "GW611"


class EvidenceError(LedgerError):
    """A proof or an attestation that is malformed, or one that lacks what it is about."""

    code = "GW612"


class HeadMismatch(LedgerError):
    """A signed head that is not of the ledger in hand, as far as the ledger goes."""

    code = "GW613"


class WitnessError(LedgerError):
    """A witness that cannot work: its record is damaged or in use, or it is no witness of this log."""

    code = "GW614"


class TraceError(LedgerError):
    """An index of a ledger that cannot be made, or that is not the ledger's: it is never believed then."""

    code = "GW616"


class JobError(LedgerError):
    """A job whose ranks' ledgers are not what was bound of them, or one that cannot be kept as asked."""

    code = "GW617"


class WeightsError(LedgerError):
    """Weights that cannot be read as such: a safetensors file that is malformed, or files of two models."""

    code = "GW618"


class KeyFileError(RuntimeGovernanceError):
    """A key file that is missing, unreadable, malformed, unsafe, or protected by another passphrase."""

    code = "GW700"


class SigningError(RuntimeGovernanceError):
    """A key that is kept elsewhere gave no signature, or one that does not hold."""

    code = "GW701"


class MaskError(RuntimeGovernanceError):
    """A model, optimizer or batch for which exact masks cannot be given."""

    code = "GW800"


class PrivacyError(RuntimeGovernanceError):
    """Privacy terms that cannot be met or accounted for."""

    code = "GW850"
