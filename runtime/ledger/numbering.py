"""Numbers the commitments that one process reads, so that whoever judges a run looks each up only once.

A commitment is 32 bytes, and a run names each of its examples many times. Where two processes read, each has
numbers of its own.
"""

from __future__ import annotations

import os
from array import array
from binascii import a2b_base64
from collections import defaultdict
from collections.abc import Iterable
from itertools import count, islice
from operator import itemgetter
from struct import iter_unpack

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.ledger.shapes import COMMITMENT_SIZE

MOST = 1 << 18
"""Commitments that are remembered; beyond it numbering begins anew."""


@frozen
class Numbered:
    """Commitments as numbers. reader: the process that numbered them. numbers: of each commitment (int32).

    known: how many numbers were given before; 0 where numbering began anew. fresh: the commitments that got
    the next ones, joined.
    """

    reader: int
    numbers: array[int]
    known: int
    fresh: bytes


class Numbering:
    """The numbers that one process has given."""

    def __init__(self) -> None:
        self._given: defaultdict[bytes, int] = defaultdict(count().__next__)

    def number(self, texts: Iterable[bytes]) -> Numbered:
        """Return the commitments in texts of sound base64, as numbers."""
        if len(self._given) > MOST:
            self._given = defaultdict(count().__next__)
        known = len(self._given)
        packed = b"".join(map(a2b_base64, texts))
        commitments = map(itemgetter(0), iter_unpack(f"{COMMITMENT_SIZE}s", packed))
        numbers = array("i", list(map(self._given.__getitem__, commitments)))
        fresh = list(islice(reversed(self._given), len(self._given) - known))
        return Numbered(os.getpid(), numbers, known, b"".join(reversed(fresh)))
