"""Reads what frames a ledger's lines, their indices and kinds, and nothing of what most of them say.

The chain, the tree and the signatures need no more. An entry ends with its index, kind and link; the lines of
kinds that carry heads, keys and other landmarks are read whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from gradwarden.runtime.ledger.entries import LANDMARKS, MalformedLineError, decode
from gradwarden.runtime.ledger.lines import Landmarks, Part
from gradwarden.runtime.ledger.turns import OddBlockError

_LINK = len(b'0"}') + 63
"""Bytes of a line behind the quote that opens its link."""

_LONGEST = len(b',"index":,"kind":"","prev":"') + 16 + 32
"""Bytes before the link that hold the index and the kind."""

_frames = re.compile(rb',"index":([0-9]+),"kind":"([a-z_]+)","prev":"$', re.MULTILINE).findall

_LANDMARKS = frozenset(kind.encode() for kind in LANDMARKS)


def read_frames(first: int, lines: Sequence[bytes]) -> tuple[Landmarks, list[Part]]:
    """Return the landmarks among lines, and no parts. Raises OddBlockError.

    first: the index that the first line must have. Each line comes with one byte before it.
    """
    found = _frames(b"\n".join([line[-_LINK - _LONGEST : -_LINK] for line in lines]))
    # INVARIANT: a line has one frame at most, since what is behind it ends the line.
    if [index for index, _ in found] != [b"%d" % index for index in range(first, first + len(lines))]:
        raise OddBlockError
    if {line[-2:] for line in lines} != {b'"}'}:
        raise OddBlockError
    kinds = [kind for _, kind in found]
    if _LANDMARKS.isdisjoint(kinds):
        return {}, []
    landmarks: Landmarks = {}
    offset = 0
    for place, (kind, line) in enumerate(zip(kinds, lines, strict=True)):
        if kind in _LANDMARKS:
            landmarks[first + place] = (offset, _whole(line[1:]))
        offset += len(line)
    return landmarks, []


def _whole(line: bytes) -> bytes:
    """Return a line that is an entry. Raises OddBlockError."""
    try:
        decode(line)
    except MalformedLineError:
        raise OddBlockError from None
    return line
