"""Time stamps of the heads of a ledger: `NOTE.tsr` beside the note that it is of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.errors import EvidenceError
from gradwarden.runtime.evidence.timestamp import MAX_STAMP, Timestamp, check_stamp
from gradwarden.runtime.ledger.chain import Finding
from gradwarden.runtime.ledger.note import parse_checkpoint, parse_note


@frozen
class Stamped:
    """A head that existed at a time: so did the first `size` entries, as they are. note: the file."""

    note: Path
    size: int
    stamp: Timestamp

    def facts(self) -> dict[str, Any]:
        """Return it as plain data, for a report."""
        return {
            "entries": self.size,
            "time": self.stamp.time.isoformat().replace("+00:00", "Z"),
            "authority": self.stamp.name,
        }


def request_path(note: Path) -> Path:
    return note.with_name(f"{note.name}.tsq")


def stamp_path(note: Path) -> Path:
    return note.with_name(f"{note.name}.tsr")


def check_stamps(
    notes: Sequence[tuple[Path, bytes]], authorities: Sequence[x509.Certificate]
) -> tuple[tuple[Stamped, ...], tuple[Finding, ...]]:
    """Check the stamps of heads, given with their files; a note that has none beside it is passed over.

    Return those that hold, and as findings (`timestamp_invalid`) those that do not. Whether the heads are
    the ledger's is not asked here. Raises NoteError for a note that is no head, OSError.
    """
    holding, findings = [], []
    for path, note in notes:
        if not stamp_path(path).exists():
            continue
        size = parse_checkpoint(parse_note(note).text).size
        try:
            stamp = check_stamp(read_stamp(stamp_path(path)), note, authorities)
        except EvidenceError as error:
            message = f"`{stamp_path(path)}` proves nothing: {error.message}"
            findings.append(Finding("timestamp_invalid", max(size - 1, 0), message))
        else:
            holding.append(Stamped(path, size, stamp))
    return tuple(holding), tuple(findings)


def read_stamp(path: Path) -> bytes:
    """Return a file as far as a stamp may be long, and one byte more. Raises OSError."""
    with path.open("rb") as file:
        return file.read(MAX_STAMP + 1)
