"""Finds what frames a ledger's lines, their indices, kinds and links, and nothing of what most of them say.

The chain, the tree and the signatures need no more. An entry ends with its index, kind and link:

    …,"index":N,"kind":"…","prev":"<64 hex digits>"}

All indices of a block are known once the first is, and all links once the lines are hashed, so that the ends
of all lines of a kind can be made and compared with what stands there. Only the lines of kinds that carry
heads, keys and other landmarks are read whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gradwarden.policy.array_types import Bytes, Numbers
from gradwarden.policy.frozen import frozen
from gradwarden.runtime.ledger.entries import (
    ENTRY_START,
    LANDMARKS,
    MAX_LINE,
    MalformedLineError,
    OddBlockError,
    decode,
)
from gradwarden.runtime.ledger.merkle import HASH_SIZE
from gradwarden.runtime.ledger.shapes import SHAPES

Landmarks: TypeAlias = dict[int, tuple[int, bytes]]
"""Lines that need the state of the whole ledger, by index, and the byte of the block at which each begins."""

DIGITS = 2 * HASH_SIZE
"""Hex digits of a link."""

LINK = DIGITS + len(b'"}')
"""Bytes at the end of a line from its link on."""

INDEX = b',"index":'
"""What stands between the body of an entry and its index."""

_FRAMES = {kind: b',"kind":"%b","prev":"' % kind.encode() for kind in SHAPES}
"""What stands between the index of an entry and its link, by kind."""

_TELLING = LINK + 18
"""Bytes at the end of a line from those on by which kinds are told apart, the last eight that name it."""

_KINDS = {int.from_bytes(frame[-18:-10], "little"): kind for kind, frame in _FRAMES.items()}

_SHORTEST = len(ENTRY_START + INDEX) + min(map(len, _FRAMES.values())) + LINK
"""No entry has fewer bytes."""

_PLACE = re.compile(rb'"index":([0-9]{1,16}),"kind":"[a-z_]+","prev":"([0-9a-f]{64})"\}\Z')

_THREE_DIGITS = np.frombuffer(b"".join([b"%03d" % number for number in range(1000)]), "V3")


@frozen
class Frames:
    """What frames the lines of a block.

    first, prev: the index and link of the first line. lines: without their newlines. begins: the byte of the
    block at which each begins. kinds: the lines of each kind, by number. stops: where the body of each line
    ends in it.
    """

    first: int
    prev: str
    lines: Sequence[bytes]
    begins: Numbers
    kinds: dict[str, Numbers]
    stops: Numbers

    def places(self, kind: str) -> list[int]:
        """Return the lines of a kind, by number."""
        return self.kinds[kind].tolist() if kind in self.kinds else []

    def heads(self, kind: str) -> list[bytes]:
        """Return what stands before the name of the index in each line of a kind."""
        if kind not in self.kinds:
            return []
        stops = self.stops[self.kinds[kind]].tolist()
        return [self.lines[place][:stop] for place, stop in zip(self.places(kind), stops, strict=True)]

    def bodies(self, places: Sequence[int]) -> list[bytes]:
        """Return the texts of the bodies of lines that are entries."""
        begin, stops = len(ENTRY_START), self.stops[places].tolist()
        return [self.lines[place][begin:stop] for place, stop in zip(places, stops, strict=True)]


def find_frames(text: bytes, lines: Sequence[bytes], leaves: bytes) -> Frames:
    """Return what frames the lines of a text.

    lines: without the newline that each has behind it in the text. leaves: their hashes, joined. Raises
    OddBlockError unless all have the frame of a known kind, each the index after that of the line before, and
    the hash of that line for its link.
    """
    sizes = np.fromiter(map(len, lines), np.int64, len(lines))
    if sizes.max() > MAX_LINE or sizes.min() < _SHORTEST:
        raise OddBlockError
    first, prev = _place(lines[0])
    ends = np.cumsum(sizes + 1) - 1
    links = np.frombuffer(prev + leaves[:-HASH_SIZE].hex().encode(), f"V{DIGITS}")
    telling = _cut(text, ends - _TELLING, 8).view("<u8")
    kinds: dict[str, Numbers] = {}
    stops = np.empty(len(ends), np.int64)
    others = np.arange(len(ends))
    while len(others):
        told = telling[others[0]]
        kind = _KINDS.get(int(told))
        if kind is None:
            raise OddBlockError
        kinds[kind] = np.flatnonzero(telling == told)
        others = others[telling[others] != told]
    for span, digits in _indices(first, len(ends)):
        for kind, rows in kinds.items():
            here = rows[np.searchsorted(rows, span.start) : np.searchsorted(rows, span.stop)]
            expected = _ends(kind, digits[here - span.start], links[here])
            stops[here] = sizes[here] - expected.shape[1]
            if stops[here].min(initial=MAX_LINE) < len(ENTRY_START):
                raise OddBlockError
            if _cut(text, ends[here] - expected.shape[1], expected.shape[1]).tobytes() != expected.tobytes():
                raise OddBlockError
    return Frames(first, prev.decode(), lines, ends - sizes, kinds, stops)


def _place(line: bytes) -> tuple[int, bytes]:
    """Return the index and the link at the end of a line; whether they stand there rightly is seen later."""
    found = _PLACE.search(line, max(0, len(line) - 200))
    if found is None:
        raise OddBlockError
    return int(found[1]), found[2]


def _cut(text: bytes, begins: Numbers, size: int) -> npt.NDArray[np.void]:
    """Return so many bytes of a text from each place on."""
    every = np.ndarray((len(text) - size + 1,), f"V{size}", text, strides=(1,))
    return every[begins]


def _ends(kind: str, digits: Bytes, links: npt.NDArray[np.void]) -> Bytes:
    """Return the ends of lines from the name of their index on, [lines, bytes].

    digits: of the indices, [lines, digits].
    """
    count, length = digits.shape
    frame = INDEX + bytes(length) + _FRAMES[kind] + bytes(DIGITS) + b'"}'
    ends = np.empty((count, len(frame)), np.uint8)
    ends[:] = np.frombuffer(frame, np.uint8)
    ends[:, len(INDEX) : len(INDEX) + length] = digits
    ends[:, -LINK:-2] = links.view(np.uint8).reshape(-1, DIGITS)
    return ends


def _indices(first: int, count: int) -> Iterator[tuple[range, Bytes]]:
    """Yield the digits of so many indices (uint8, [lines, digits]), and the lines, for each length."""
    start, end = first, first + count
    while start < end:
        length = len(str(start))
        stop = min(end, 10**length)
        thousands, rest = np.divmod(np.arange(start, stop), 1000)
        digits = np.empty((stop - start, max(length, 3)), np.uint8)
        digits[:, -3:] = _THREE_DIGITS[rest].view(np.uint8).reshape(-1, 3)
        if length > 3:
            least = start // 1000
            before = b"".join([b"%d" % number for number in range(least, (stop - 1) // 1000 + 1)])
            digits[:, :-3] = np.frombuffer(before, np.uint8).reshape(-1, length - 3)[thousands - least]
        yield range(start - first, stop - first), digits[:, -length:]
        start = stop


def find_landmarks(frames: Frames) -> Landmarks:
    """Return the landmarks among lines. Raises OddBlockError for one that is no entry."""
    landmarks: Landmarks = {}
    for kind in LANDMARKS & frames.kinds.keys():
        for place in frames.places(kind):
            line = frames.lines[place]
            try:
                decode(line)
            except MalformedLineError:
                raise OddBlockError from None
            landmarks[frames.first + place] = (int(frames.begins[place]), line)
    return landmarks
