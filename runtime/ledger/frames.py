"""Finds what frames a ledger's lines, their indices, kinds and links, and nothing of what most of them say.

The chain, the tree and the signatures need no more. An entry ends with its index, kind and link:

    …,"index":N,"kind":"…","prev":"<64 hex digits>"}

All indices of a block are known once the first is, so that the ends of all lines of a kind can be made and
compared with what stands there. Only the lines of kinds that carry heads, keys and other landmarks are read
whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.ledger.entries import LANDMARKS, MAX_LINE, MalformedLineError, decode
from gradwarden.runtime.ledger.shapes import SHAPES
from gradwarden.runtime.ledger.turns import OddBlockError

Bytes: TypeAlias = npt.NDArray[np.uint8]
Places: TypeAlias = npt.NDArray[np.int64]

Landmarks: TypeAlias = dict[int, tuple[int, bytes]]
"""Lines that need the state of the whole ledger, by index, and the byte of the block at which each begins."""

LINK = len(b'"}') + 64
"""Bytes at the end of a line from its link on."""

INDEX = b',"index":'
"""What stands between the body of an entry and its index."""

_FRAMES = {kind: b',"kind":"%b","prev":"' % kind.encode() for kind in SHAPES}
"""What stands between the index of an entry and its link, by kind."""

_BODY = len(b'\0{"body":')

_TAIL = LINK + max(map(len, _FRAMES.values())) + len(INDEX) + 16
"""Bytes that hold the frame of any line."""

_TELLING = slice(-LINK - 18, -LINK - 10)
"""Bytes of a tail by which kinds are told apart, the last eight that name it."""

_KINDS = {int.from_bytes(frame[-18:-10], "little"): kind for kind, frame in _FRAMES.items()}


@frozen
class Frames:
    """What frames the lines of a block.

    first: the index of the first line. lines: with one byte before each. links: of all lines, joined.
    kinds: the lines of each kind, by number. stops: where the body of each line ends in it.
    """

    first: int
    lines: Sequence[bytes]
    links: bytes
    kinds: dict[str, Places]
    stops: list[int]

    def places(self, kind: str) -> list[int]:
        """Return the lines of a kind, by number."""
        return self.kinds[kind].tolist() if kind in self.kinds else []

    def heads(self, kind: str) -> list[bytes]:
        """Return what stands before the name of the index in each line of a kind."""
        return [self.lines[place][1 : self.stops[place]] for place in self.places(kind)]

    def body(self, place: int) -> bytes:
        """Return the text of the body of a line that is an entry."""
        return self.lines[place][_BODY : self.stops[place]]


def find_frames(first: int, lines: Sequence[bytes]) -> Frames:
    """Return what frames lines. Raises OddBlockError unless all have the frame of a known kind.

    first: the index that the first line must have. lines: with one byte before each. Whether links hold is
    not seen here.
    """
    sizes, tails = np.fromiter(map(len, lines), np.int64, len(lines)), _tails(lines)
    if sizes.max() > MAX_LINE + 1 or not (tails[:, -2:] == np.frombuffer(b'"}', np.uint8)).all():
        raise OddBlockError
    telling = np.ascontiguousarray(tails[:, _TELLING]).view("<u8").ravel()
    kinds: dict[str, Places] = {}
    stops = np.empty(len(tails), np.int64)
    for told in set(telling.tolist()):
        kind = _KINDS.get(told)
        if kind is None:
            raise OddBlockError
        kinds[kind] = np.flatnonzero(telling == told)
    for span, digits in _indices(first, len(tails)):
        for kind, rows in kinds.items():
            here = rows[np.searchsorted(rows, span.start) : np.searchsorted(rows, span.stop)]
            frame = _FRAMES[kind]
            expected = np.empty((len(here), len(INDEX) + digits.shape[1] + len(frame)), np.uint8)
            expected[:, : len(INDEX)] = np.frombuffer(INDEX, np.uint8)
            expected[:, len(INDEX) : -len(frame)] = digits[here - span.start]
            expected[:, -len(frame) :] = np.frombuffer(frame, np.uint8)
            if not np.array_equal(tails[here, -LINK - expected.shape[1] : -LINK], expected):
                raise OddBlockError
            stops[here] = sizes[here] - LINK - expected.shape[1]
    return Frames(first, lines, tails[:, -LINK:-2].tobytes(), kinds, stops.tolist())


def _tails(lines: Sequence[bytes]) -> Bytes:
    """Return the last `_TAIL` bytes of each line (uint8, [lines, bytes])."""
    joined = b"".join([line[-_TAIL:] for line in lines])
    if len(joined) != len(lines) * _TAIL:
        joined = b"".join([line[-_TAIL:].rjust(_TAIL, b"\0") for line in lines])
    return np.frombuffer(joined, np.uint8).reshape(-1, _TAIL)


def _indices(first: int, count: int) -> Iterator[tuple[range, Bytes]]:
    """Yield the digits of so many indices (uint8, [lines, digits]), and the lines, for each length."""
    start, end = first, first + count
    while start < end:
        length = len(str(start))
        stop = min(end, 10**length)
        places = 10 ** np.arange(length - 1, -1, -1)
        digits = np.arange(start, stop)[:, None] // places % 10 + ord("0")
        yield range(start - first, stop - first), digits.astype(np.uint8)
        start = stop


def find_landmarks(frames: Frames) -> Landmarks:
    """Return the landmarks among lines. Raises OddBlockError for one that is no entry."""
    places = [place for kind in LANDMARKS & frames.kinds.keys() for place in frames.places(kind)]
    # Each line has one byte before it instead of the one that ended it.
    begins = list(accumulate(map(len, frames.lines), initial=0)) if places else []
    landmarks: Landmarks = {}
    for place in places:
        line = frames.lines[place][1:]
        try:
            decode(line)
        except MalformedLineError:
            raise OddBlockError from None
        landmarks[frames.first + place] = (begins[place], line)
    return landmarks
