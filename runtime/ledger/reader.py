"""Reads ledgers: lines in bounded memory, and entries whose order and links hold.

No signature is checked here; `chain` does that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import BinaryIO, cast

from gradwarden.runtime.errors import LedgerDamaged, LedgerError
from gradwarden.runtime.ledger.archive import Archives, WholeFile, find_archives, missing_error
from gradwarden.runtime.ledger.entries import (
    ENTRY_START,
    MAX_LINE,
    ZERO_HASH,
    Entry,
    MalformedLineError,
    decode,
)
from gradwarden.runtime.ledger.unwaiting import without_waiting

CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """Whole lines of a file without their newlines, and where the first of them starts.

    rest: what follows the last newline of the file; None before the end. An overlong line ends the reading:
    it is cut after MAX_LINE + 1 bytes and stands last in `lines`.
    """

    lines: list[bytes]
    offset: int
    rest: bytes | None = None


def open_ledger(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a ledger for reading, its archives included (`archive`).

    Raises LedgerError for anything that cannot be read as a file.
    """
    try:
        file = open(path, "rb", buffering=0, opener=without_waiting)  # noqa: SIM115 - the caller closes it
    except OSError as error:
        raise LedgerError(f"cannot read the ledger `{os.fspath(path)}`: {error.strerror}") from error
    try:
        archives = find_archives(path, file)
    except BaseException:
        file.close()
        raise
    return file if archives is None else cast(BinaryIO, WholeFile(file, archives))


def size_of(file: BinaryIO) -> int:
    """Return how many bytes an open ledger has, archives included; 0 where that cannot be told."""
    try:
        return file.seek(0, os.SEEK_END)
    except OSError:
        return 0


def readable_from(file: BinaryIO) -> int:
    """Return the byte from which on an open ledger can be read: beyond 0 where archives are missing."""
    return file.start if isinstance(file, WholeFile) else 0


def pieces(file: BinaryIO, start: int = 0, stop: int | None = None) -> Iterator[Piece]:
    """Yield the lines of a file piece by piece, in memory bounded by one chunk and one line.

    start, stop: byte offsets at which lines begin; the whole file by default.
    """
    file.seek(start)
    offset, rest = start, b""
    while True:
        wanted = CHUNK if stop is None else min(CHUNK, stop - offset - len(rest))
        chunk = file.read(wanted) if wanted else b""
        if not chunk:
            yield Piece([], offset, rest)
            return
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        if len(rest) > MAX_LINE:
            yield Piece([*lines, rest[: MAX_LINE + 1]], offset)
            return
        yield Piece(lines, offset)
        offset += sum(map(len, lines)) + len(lines)


def has_entries(path: str | os.PathLike[str]) -> bool:
    """Return whether a file begins with a whole line that opens as an entry's does, or with archives.

    Whether the line is an entry is not looked at. Raises as `open_ledger`.
    """
    with open_ledger(path) as file:
        if isinstance(file, WholeFile):
            return True
        if file.read(len(ENTRY_START)) != ENTRY_START:
            return False
        return any(piece.lines for piece in pieces(file))


def archives_of(path: str | os.PathLike[str]) -> Archives | None:
    """Return the archives of a ledger, None where it has none. Raises as `open_ledger`."""
    with open_ledger(path) as file:
        return file.archives if isinstance(file, WholeFile) else None


def absent(path: str | os.PathLike[str]) -> Archives | None:
    """Return the archives of a ledger where some of their files are missing, else None."""
    archives = archives_of(path)
    return archives if archives is not None and archives.missing() else None


def check_whole(path: str | os.PathLike[str]) -> None:
    """Raise ArchiveMissing where entries of a ledger lie in an archive that is missing."""
    missing = absent(path)
    if missing is not None:
        raise missing_error(missing)


def _pieces_held(path: str | os.PathLike[str]) -> Iterator[Piece]:
    """Yield the pieces of a ledger, which stays open."""
    with open_ledger(path) as file:
        yield from pieces(file)


def _pieces_apart(path: str | os.PathLike[str]) -> Iterator[Piece]:
    """Yield the pieces of a ledger, each read by itself: in between the file is closed."""
    offset, whole = 0, True
    while whole:
        with open_ledger(path) as file:
            for piece in pieces(file, offset):
                whole = bool(piece.lines)
                if whole:
                    break
        yield piece
        offset += sum(map(len, piece.lines)) + len(piece.lines)


def read_entries(
    path: str | os.PathLike[str], *, allow_partial_tail: bool = False, held: bool = True
) -> Iterator[Entry]:
    """Yield the entries of a ledger in order; their shape, index and link to the entry before are checked.

    allow_partial_tail: end quietly at an unfinished last line, as a ledger has that is being written. held:
    whether the file stays open; else it is opened for a piece at a time, so that thousands can be gone
    through side by side. Raises LedgerDamaged at the first line that is not what must stand there,
    LedgerError for a file that cannot be read.
    """
    index, prev = 0, ZERO_HASH
    for piece in _pieces_held(path) if held else _pieces_apart(path):
        offset = piece.offset
        for line in piece.lines:
            entry = read_line(line, index, offset, prev)
            yield entry
            prev = sha256(b"\x00" + line).hexdigest()
            offset += len(line) + 1
            index += 1
        if piece.rest and not allow_partial_tail:
            raise LedgerDamaged(
                f"entry {index} at byte {offset} is cut off",
                index=index,
                offset=offset,
                problem="torn_tail",
                help="open the ledger for writing to set the torn tail aside",
            )


def read_line(line: bytes, index: int, offset: int, prev: str) -> Entry:
    """Return the entry on a line that must have this index and link. Raises LedgerDamaged."""
    try:
        found, kind, link, body = decode(line)
    except MalformedLineError as error:
        raise _damaged(str(error), index, offset, error.problem) from None
    if found != index:
        raise _damaged(f"the entry has the index {found}", index, offset, "wrong_index")
    if link != prev:
        raise _damaged("the entry does not link to the one before", index, offset, "wrong_link")
    return Entry(index, kind, body, line)


def _damaged(what: str, index: int, offset: int, problem: str) -> LedgerDamaged:
    return LedgerDamaged(
        f"entry {index} at byte {offset}: {what}", index=index, offset=offset, problem=problem
    )
