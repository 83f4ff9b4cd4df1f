"""Checks a ledger's lines block by block, each without what precedes it.

Each line holds the hash of the line before, so a run of lines can be checked by itself; runs are then
stitched by comparing the first link of each with the last hash of the one before (`Links.absorb`). Only what
needs no state is done here: form, shape, order and links. Whatever looks odd ends the whole attempt, and the
caller goes through the file once in order, which also says where the fault is.
"""

from __future__ import annotations

from typing import BinaryIO, Literal, TypeAlias, get_args

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.ledger.entries import MAX_LINE, OddBlockError
from gradwarden.runtime.ledger.frames import Frames, Landmarks, find_frames, find_landmarks
from gradwarden.runtime.ledger.lines import Part, Recogniser
from gradwarden.runtime.ledger.merkle import leaf_hashes

BLOCK = 1 << 20
"""Bytes of a block; a line belongs to the block in which it begins."""

Reading: TypeAlias = Literal["frames", "lines", "columns"]
"""What is read of each line: its index, kind and link alone; whether it is an entry; what it says, too."""

READINGS: tuple[Reading, ...] = get_args(Reading)

_NEAR = 4096
"""Bytes that nearly always hold the end of a line."""


@frozen
class Block:
    """A run of lines that fit each other.

    first, prev: the index and link of the first line (-1 and none where there is no line). leaves: the leaf
    hash of each line, joined. landmarks: the lines that need the state of the whole ledger, by index, and the
    byte of the block at which each begins. size, last: bytes of all lines, and of the last. tail: an
    unfinished line. parts: what the lines say, where that is wanted.
    """

    first: int
    prev: str
    leaves: bytes
    landmarks: Landmarks
    size: int
    last: int
    tail: bytes
    parts: list[Part]


class BlockReader:
    """Checks the blocks of one file.

    total: the size of the file; what is written behind it later is not read. reading: blocks have `parts`
    where it is `columns`. size: of a block, in bytes. start: the byte at which the first line begins.
    """

    def __init__(
        self, file: BinaryIO, total: int, *, reading: Reading, size: int = BLOCK, start: int = 0
    ) -> None:
        self.count = max(1, -(-(total - start) // size))
        self._start = start
        self._size = size
        self._file = file
        self._total = total
        self._reading = reading
        self._recogniser = Recogniser()

    def read(self, number: int) -> Block:
        """Check the lines that begin in one block. Raises OddBlockError for anything but sound lines."""
        start = self._start + number * self._size
        span = (start, min(start + self._size, self._total))
        whole, tail = _whole_lines(self._file, span, self._total, first=number == 0)
        if not whole:
            return Block(-1, "", b"", {}, 0, 0, tail, [])
        lines = whole.split(b"\n")
        lines.pop()
        leaves = leaf_hashes(lines)
        frames = find_frames(whole, lines, leaves)
        parts = self._parts(frames)
        landmarks = find_landmarks(frames)
        last = len(lines[-1]) + 1
        return Block(frames.first, frames.prev, leaves, landmarks, len(whole), last, tail, parts)

    def _parts(self, frames: Frames) -> list[Part]:
        """Check or read what lines say, as far as that is wanted. Raises OddBlockError."""
        if self._reading == "columns":
            return self._recogniser.read(frames)
        if self._reading == "lines":
            self._recogniser.check(frames)
        return []


def _whole_lines(file: BinaryIO, span: tuple[int, int], total: int, *, first: bool) -> tuple[bytes, bytes]:
    """Return the whole lines of a block, and, where they end the file, what follows its last newline.

    span: the bytes in which the lines begin. first: whether a line begins with the first of them.
    """
    start, stop = span
    begin = start if first else _next_line(file, start, total)
    if begin is None:
        return b"", b""
    end = _next_line(file, stop, total) if stop > start else None
    if end is not None:
        return _read(file, begin, end), b""
    read = _read(file, begin, total)
    behind = read.rfind(b"\n") + 1
    if len(read) - behind > MAX_LINE:
        raise OddBlockError
    return read[:behind], read[behind:]


def _next_line(file: BinaryIO, place: int, total: int) -> int | None:
    """Return where the first line begins at a byte that is not the first, or behind it.

    None where none does: what follows the last newline of the file lies around the place.
    """
    # A line begins behind a newline, which may be the byte before the place.
    for size in (_NEAR, MAX_LINE + 2):
        end = min(place - 1 + size, total)
        found = _read(file, place - 1, end).find(b"\n")
        if found >= 0:
            return place + found
        if end == total:
            return None
    raise OddBlockError


def _read(file: BinaryIO, begin: int, end: int) -> bytes:
    file.seek(begin)
    read = file.read(end - begin)
    if len(read) != end - begin:
        raise OddBlockError
    return read
