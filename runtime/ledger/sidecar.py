"""The file `<ledger>.head`: the ledger's latest signed head, kept beside it so that a cut ledger shows.

It is replaced as a whole (temporary file, fsync, rename), and only after the `head` entry with the same note
is durable in the ledger itself. So a ledger with a sidecar of size N has an entry N, whatever crashed when.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gradwarden.runtime.errors import LedgerError, NoteError
from gradwarden.runtime.ledger.durable import replace_durably
from gradwarden.runtime.ledger.keys import PublicKey
from gradwarden.runtime.ledger.note import Checkpoint, open_note, parse_checkpoint, parse_note
from gradwarden.runtime.ledger.unwaiting import without_waiting

SUFFIX = ".head"

MAX_SIDECAR = 65_536

Trust = Literal["verified", "unknown_key", "bad_signature", "malformed"]


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What a sidecar claims; `checkpoint` is None where it is malformed. note: as it stands in the file."""

    checkpoint: Checkpoint | None
    note: bytes

    @property
    def size(self) -> int | None:
        return None if self.checkpoint is None else self.checkpoint.size

    def trust(self, keys: Sequence[PublicKey]) -> Trust:
        """Say whether one of these keys has signed it."""
        if self.checkpoint is None:
            return "malformed"
        try:
            open_note(self.note, keys)
        except NoteError as error:
            return "unknown_key" if error.fault == "unknown_key" else "bad_signature"
        return "verified"


def sidecar_path(path: str | os.PathLike[str]) -> str:
    return os.fspath(path) + SUFFIX


def read_sidecar(path: str | os.PathLike[str]) -> Sidecar | None:
    """Read the sidecar of a ledger, None where there is none. Raises LedgerError for an unreadable file."""
    try:
        with open(sidecar_path(path), "rb", opener=without_waiting) as file:
            data = file.read(MAX_SIDECAR + 1) or b""  # None from a pipe that somebody holds open
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LedgerError(f"cannot read `{sidecar_path(path)}`: {error.strerror}") from error
    if len(data) > MAX_SIDECAR:
        return Sidecar(None, b"")
    try:
        return Sidecar(parse_checkpoint(parse_note(data).text), data)
    except NoteError:
        return Sidecar(None, data)


def write_sidecar(path: str | os.PathLike[str], note: str) -> None:
    """Replace the sidecar durably. Raises OSError."""
    replace_durably(sidecar_path(path), note.encode())
