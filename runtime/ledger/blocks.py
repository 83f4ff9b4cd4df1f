"""Checks a ledger's lines block by block, each without what precedes it.

Each line holds the hash of the line before, so a run of lines can be checked by itself; runs are then
stitched by comparing the first link of each with the last hash of the one before (`Links.absorb`). Only what
needs no state is done here: form, shape, order and links. Whatever looks odd ends the whole attempt, and the
caller goes through the file once in order, which also says where the fault is.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import BinaryIO, Literal, TypeAlias, get_args

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.ledger.entries import MAX_LINE
from gradwarden.runtime.ledger.frames import Frames, Landmarks, find_frames, find_landmarks
from gradwarden.runtime.ledger.lines import Part, Recogniser
from gradwarden.runtime.ledger.merkle import HASH_SIZE
from gradwarden.runtime.ledger.turns import OddBlockError

BLOCK = 1 << 19
"""Bytes of a block; a line belongs to the block in which it begins."""

Reading: TypeAlias = Literal["frames", "lines", "columns"]
"""What is read of each line: its index, kind and link alone; whether it is an entry; what it says, too."""

READINGS: tuple[Reading, ...] = get_args(Reading)

_INDEX = re.compile(rb'"index":([0-9]{1,16}),"kind":"[a-z_]+","prev":"[0-9a-f]{64}"\}\Z')


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
        # Each line behind the byte that a leaf hash begins with.
        lines = (b"\0" + whole.replace(b"\n", b"\n\0")).split(b"\n")[:-1]
        frames = find_frames(_index(lines[0]), lines)
        leaves = b"".join([sha256(line).digest() for line in lines])
        prev, links = frames.links[:64].decode("ascii", "replace"), frames.links[64:]
        if links != leaves[:-HASH_SIZE].hex().encode():
            raise OddBlockError
        parts = self._parts(frames)
        landmarks = find_landmarks(frames)
        return Block(frames.first, prev, leaves, landmarks, len(whole), len(lines[-1]), tail, parts)

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
    # A line begins behind a newline: that of the first may be the byte before the block.
    origin = start if first else start - 1
    end = min(stop + MAX_LINE + 1, total)
    file.seek(origin)
    read = file.read(end - origin)
    if len(read) != end - origin:
        raise OddBlockError
    begin = 0 if first else read.find(b"\n") + 1
    behind = read.find(b"\n", stop - 1 - origin) + 1 if stop > start else 0
    """Where the first line of the next block begins."""
    if behind and (begin or first):
        return read[begin:behind], b""
    if end < total or len(read) - max(begin, read.rfind(b"\n") + 1) > MAX_LINE:
        raise OddBlockError
    if not begin and not first:
        return b"", b""
    behind = max(begin, read.rfind(b"\n") + 1)
    return read[begin:behind], read[behind:]


def _index(line: bytes) -> int:
    """Return the index at the end of a line; whether it stands there rightly is seen later."""
    found = _INDEX.search(line, max(0, len(line) - 200))
    if found is None:
        raise OddBlockError
    return int(found[1])
