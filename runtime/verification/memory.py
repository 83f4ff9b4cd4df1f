"""What a verification remembers of a ledger, so that the next one need only look at what is new.

A memory is the verifier's own: it is believed, as one's own notes are, and nobody else's should be. It is a
file of two lines: `gradwarden/memory/3` and the SHA-256 of the second, which shows damage and protects from
nobody; and a JSON object. That holds what the chain comes to (`Links.remember`: the roots of the
complete subtrees, the last hash, the keys) and what the run comes to (the state of a `RunReplay`: programs,
classes, decisions, exposures, budgets, anchors), after so many entries, and what was asked for.

Only of a ledger that held as far as it went is anything remembered. A memory goes on where the ledger still
has its last entry, with the same hash, at the same byte. What stands before that is not read again: it was
verified when the memory was made, and that the bytes are still the same is taken on trust. A head that is
signed later covers the remembered entries, not those bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from gradwarden.policy.errors import GradwardenError
from gradwarden.policy.evaluation.lookup import GrowingArray
from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import Maintenance, Program, Rehearsal
from gradwarden.runtime.errors import LedgerError, MemoryFileError
from gradwarden.runtime.ledger.archived_head import prefix
from gradwarden.runtime.ledger.chain import Finding
from gradwarden.runtime.ledger.durable import replace_durably
from gradwarden.runtime.ledger.entries import MAX_LINE
from gradwarden.runtime.ledger.links import Links
from gradwarden.runtime.ledger.merkle import leaf_hash
from gradwarden.runtime.ledger.program_signature import NOBODY, Approvers
from gradwarden.runtime.ledger.reader import absent, open_ledger
from gradwarden.runtime.ledger.sidecar import read_sidecar
from gradwarden.runtime.records.branches import Branches, Saved
from gradwarden.runtime.records.history import PendingStep
from gradwarden.runtime.verification.approval_audit import ApprovalAudit
from gradwarden.runtime.verification.budget_audit import BudgetAudit
from gradwarden.runtime.verification.contribution_audit import ContributionAudit
from gradwarden.runtime.verification.decision_audit import DecisionAudit
from gradwarden.runtime.verification.decision_tally import DecisionTally
from gradwarden.runtime.verification.drift_measure import AnchoredBand
from gradwarden.runtime.verification.example_audit import ExampleAudit
from gradwarden.runtime.verification.key_periods import Calendar
from gradwarden.runtime.verification.maintenance_audit import MaintenanceAudit
from gradwarden.runtime.verification.memory_shape import fits
from gradwarden.runtime.verification.plain_data import PlainData
from gradwarden.runtime.verification.program_audit import ProgramAudit
from gradwarden.runtime.verification.restart_audit import RestartAudit
from gradwarden.runtime.verification.run_replay import HistoryWithoutExamples, RunReplay
from gradwarden.runtime.verification.stretch import Tables
from gradwarden.runtime.verification.terms import Terms
from gradwarden.runtime.verification.violation import ViolationError
from gradwarden.runtime.verification.weight_audit import SavedWeights, WeightAudit
from gradwarden.runtime.weights.record import PartsReader
from gradwarden.runtime.weights.tree import TensorDigest

FORMAT = "gradwarden/memory/3"

_MOST_BYTES = 1 << 62
"""No file is as large."""

STATE = PlainData(
    {
        RunReplay: {"_in_force": lambda: None, "_first": lambda: None},
        ProgramAudit: {"_expected": tuple},
        DecisionAudit: {"_judge": lambda: None},
        HistoryWithoutExamples: {},
        PendingStep: {},
        Tables: {"_array": lambda: np.zeros(0, np.int64)},
        GrowingArray: {},
        DecisionTally: {},
        # Readers number examples anew.
        ExampleAudit: {"_numbered": dict},
        ApprovalAudit: {"_approvers": lambda: NOBODY},
        BudgetAudit: {"_terms": dict, "_plan": lambda: None, "to_the_step": lambda: False},
        MaintenanceAudit: {},
        ContributionAudit: {},
        RestartAudit: {},
        Calendar: {},
        Branches: {},
        Saved: {},
        WeightAudit: {},
        SavedWeights: {},
        PartsReader: {},
        TensorDigest: {},
        AnchoredBand: {},
        Maintenance: {},
        Rehearsal: {},
    }
)
"""The objects that make up a replay, and what is worked out again of each (`RunReplay.go_on`)."""

FAULTS = (
    *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, RuntimeError),
    *(ViolationError, GradwardenError),
)
"""What reading data of another make may raise."""


@frozen
class Memory:
    """A ledger as a verification found it.

    terms: what that was asked for. at: when, by the verifier's clock (ISO 8601). by: the version of
    gradwarden. root: over its entries (hex). steps, decisions: that were replayed. links, replay: as JSON
    holds them; no replay where decisions were not replayed.
    """

    terms: Terms
    at: str
    by: str | None
    root: str
    steps: int
    decisions: int
    links: Mapping[str, Any]
    replay: Mapping[str, Any] | None

    @property
    def size(self) -> int:
        """How many entries are remembered."""
        size: int = self.links["size"]
        return size

    def facts(self) -> dict[str, Any]:
        """Return what is taken on trust, for a report."""
        counted = {"entries": self.size, "steps": self.steps, "decisions": self.decisions}
        return {**counted, "root": self.root, "at": self.at, "by": self.by}

    def write(self, path: Path) -> None:
        """Write the memory to a file, which is replaced as a whole. Raises MemoryFileError."""
        write_memory(path, FORMAT, self)

    def replayed(self, programs: Sequence[Program], approvers: Approvers) -> RunReplay:
        """Return the replay that was remembered; see `believing`."""
        replay: RunReplay = STATE.read(self.replay)
        replay.go_on(programs, approvers)
        return replay


@contextmanager
def believing(path: Path) -> Iterator[None]:
    """Blame what fails meanwhile on the memory in a file, which is believed. Raises MemoryFileError."""
    try:
        yield
    except FAULTS as error:
        if isinstance(error, LedgerError):
            raise
        raise of_no_use(path) from error


def remembered(links: Links, replay: RunReplay | None, asked: Terms) -> Memory:
    """Return what to remember of a ledger that holds as far as it goes."""
    facts = {} if replay is None else replay.facts()
    return Memory(
        terms=asked,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        by=_version(),
        root=links.tree.root().hex(),
        steps=facts.get("steps", 0),
        decisions=facts.get("decisions_replayed", 0),
        links=links.remember(),
        replay=None if replay is None else STATE.write(replay),
    )


def read_memory(path: Path, asked: Terms) -> Memory:
    """Return the memory in a file. asked: what it must have been asked for. Raises MemoryFileError."""
    fields = read_written(path, FORMAT, "a verification")
    try:
        memory = memory_from(fields)
    except FAULTS as error:
        raise of_another_make(path) from error
    check_asked(path, memory, asked)
    return memory


def write_memory(path: Path, form: str, memory: Any) -> None:
    """Write data to a file, which is replaced as a whole. form: its format. Raises MemoryFileError."""
    data = orjson.dumps(memory)
    head = f"{form} {sha256(data).hexdigest()}\n".encode()
    try:
        replace_durably(os.fspath(path), head + data + b"\n")
    except OSError as error:
        raise MemoryFileError(f"cannot write `{path}`: {error.strerror}") from error


def read_written(path: Path, form: str, of: str) -> Any:
    """Return what was written to a file in a format. of: what, in words. Raises MemoryFileError.

    Of a file that does not begin with the name of the format, no more than that is read.
    """
    begin = f"{form} ".encode()
    try:
        with path.open("rb") as file:
            told = file.read(len(begin))
            head, _, rest = (file.read() if told == begin else b"").partition(b"\n")
    except OSError as error:
        raise MemoryFileError(f"cannot read `{path}`: {error.strerror}") from error
    if told != begin and told.startswith(begin[: begin.rindex(b"/") + 1]):
        raise _damaged(f"`{path}` was written in another form than `{form}`, which this version reads")
    data = rest.removesuffix(b"\n")
    if head != sha256(data).hexdigest().encode():
        raise _damaged(f"`{path}` is no memory of {of}, or it is damaged")
    try:
        return orjson.loads(data)
    except ValueError as error:
        raise of_another_make(path) from error


def memory_from(fields: Mapping[str, Any]) -> Memory:
    """Return a memory from its fields. Raises what reading data of another make may raise (`FAULTS`)."""
    if not fits(fields):
        raise ValueError("the fields are not those of a memory")
    memory = Memory(**{**fields, "terms": Terms(**fields["terms"])})
    links = Links.recalled(memory.links, ())
    told = memory.links
    if not 0 < told["line_before"] <= min(told["offset"], MAX_LINE + 1):
        raise ValueError("no ledger has such a last line")
    if not 0 <= links.signed_size <= links.size <= told["offset"] < _MOST_BYTES:
        raise ValueError("no ledger has so many entries")
    return memory


def check_asked(path: Path, memory: Memory, asked: Terms) -> None:
    """Raise MemoryFileError where a memory is not by this version, or was asked for something else."""
    if memory.by != _version():
        raise MemoryFileError(
            f"`{path}` was written by gradwarden {memory.by}; this is {_version()}", help=FROM_THE_START
        )
    if memory.terms != asked:
        raise MemoryFileError(
            f"`{path}` remembers a verification that was asked for something else: "
            f"{', '.join(_differences(memory.terms, asked))}",
            help=f"give the same again, or {FROM_THE_START}",
        )


def goes_on(memory: Memory, ledger: str | os.PathLike[str]) -> bool:
    """Whether a ledger still has the last entry that is remembered, and no head beside it that is older.

    An older head would have to be held against entries that are not read again. Where archives are missing it
    is gone through from what is kept of them.
    """
    if absent(ledger) is not None:
        return False
    end, length = memory.links["offset"], memory.links["line_before"]
    with open_ledger(ledger) as file:
        file.seek(end - length)
        line = file.read(length)
    if line[-1:] != b"\n" or leaf_hash(line[:-1]).hex() != memory.links["prev"]:
        return False
    sidecar = read_sidecar(ledger)
    size = None if sidecar is None else sidecar.size
    return size is None or size >= memory.size or size == memory.links["last_head"]


def contradictions(memory: Memory, ledger: str | os.PathLike[str]) -> list[Finding]:
    """Return what a ledger lacks of what is remembered of it.

    `rolled_back` and `forked` where a head covered it. What no head covered yet a crash may have taken: then
    the warning `unsigned_lost`.
    """
    size, root = prefix(ledger, memory.size)
    if (size, root.hex()) == (memory.size, memory.root):
        return []
    signed = memory.links["last_head"] or 0
    kept, root = prefix(ledger, signed)
    if kept < signed:
        message = f"{signed:,} entries were signed when it was last verified; the ledger has {kept:,}"
        return [Finding("rolled_back", max(kept - 1, 0), message)]
    if signed and root.hex() != memory.links["last_root"]:
        message = f"the first {signed:,} entries are not those that were signed when it was last verified"
        return [Finding("forked", signed - 1, message)]
    message = (
        f"of the {memory.size:,} entries that were there when it was last verified, "
        f"those behind the first {signed:,} are gone or are others; no head covered them"
    )
    return [Finding("unsigned_lost", signed, message, "warning")]


FROM_THE_START = "verify from the start, without --since"


def _differences(before: Terms, now: Terms) -> list[str]:
    names = {
        "keys": "the keys",
        "programs": "the policies",
        "approvers": "who must have signed them",
        "needed": "how many of these",
        "only": "how far to go (--only)",
    }
    return [said for name, said in names.items() if getattr(before, name) != getattr(now, name)]


def of_another_make(path: Path) -> MemoryFileError:
    """Return the error for a file whose data have not the form that is expected."""
    return _damaged(f"`{path}` is a memory of another make")


def of_no_use(path: Path) -> MemoryFileError:
    """Return the error for a memory of which no sense could be made later on."""
    return _damaged(f"`{path}` cannot be gone on from")


def _damaged(message: str) -> MemoryFileError:
    return MemoryFileError(message, help=FROM_THE_START)


def _version() -> str | None:
    try:
        return version("gradwarden")
    except PackageNotFoundError:
        return None
