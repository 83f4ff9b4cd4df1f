"""Numbers the commitments that one process reads, so that whoever judges a run looks each up only once.

A commitment is 32 bytes, and a run names each of its examples many times. Where two processes read, each has
numbers of its own. The commitments of a block are unpacked and looked up together: one by one that would take
longer than all else that is read of a step.
"""

from __future__ import annotations

import os
from array import array
from collections import defaultdict
from collections.abc import Sequence
from itertools import count
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gradwarden.policy.evaluation.lookup import GrowingArray
from gradwarden.policy.frozen import frozen
from gradwarden.runtime.ledger.shapes import COMMITMENT_SIZE

MOST = 1 << 18
"""Commitments that are remembered; beyond it numbering begins anew."""

ROOM = 4
"""Slots of the table for each commitment, at least; a new table has twice as many."""

_WORDS = COMMITMENT_SIZE // 8
_HALVES = COMMITMENT_SIZE // 4

Keys: TypeAlias = npt.NDArray[np.uint64]
"""Commitments: [n, words]; the two halves of a word are numbers of four bytes, the greatest first."""

BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
"""Its characters, the padding aside, in order."""

_SIX_BITS = bytes(max(0, BASE64.find(byte)) for byte in range(256))
"""What each byte of base64 stands for; 0 for the padding."""

_GROUP = 16
"""Characters that become whole numbers of four bytes."""

_MOST_PADDED = 4
"""How many times as long texts may become, for all of them to have one length."""

_EMPTY = -1


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
    """The numbers that one process has given.

    Most are found, all together, in a table with a slot for each value of some bits of a commitment. One that
    finds its slot taken is kept in a dictionary.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._keys = GrowingArray(np.uint64, _WORDS)
        """The commitments by number."""
        self._table = np.empty(0, np.int32)
        self._displaced: dict[bytes, int] = {}

    def number(self, texts: Sequence[bytes]) -> Numbered:
        """Return the commitments in texts of sound base64, as numbers."""
        if self._keys.count > MOST:
            self._begin()
        known = self._keys.count
        keys = unpack(texts)
        if ROOM * known >= len(self._table):
            self._make_table(2 * ROOM * (known + len(keys)))
        slots = self._slots(keys)
        numbers = self._table.take(slots)
        same = numbers != _EMPTY
        if known:
            held = self._keys.array.take(numbers, axis=0, mode="clip")
            for word in range(_WORDS):
                same &= held[:, word] == keys[:, word]
        others = np.flatnonzero(~same)
        if len(others):
            numbers[others] = self._look_up(keys[others])
        fresh = self._keys.array[known:].view(np.uint32).astype(">u4").tobytes()
        return Numbered(os.getpid(), array("i", numbers.tobytes()), known, fresh)

    def _slots(self, keys: Keys) -> npt.NDArray[np.intp]:
        return (keys[:, 0] & np.uint64(len(self._table) - 1)).astype(np.intp)

    def _make_table(self, size: int) -> None:
        """Make a table of so many slots or more, for all commitments so far."""
        self._table = np.full(1 << size.bit_length(), _EMPTY, np.int32)
        self._displaced.clear()
        self._place(0, self._keys.array)

    def _look_up(self, keys: Keys) -> list[int]:
        """Return the numbers of commitments that are not in their slots, and remember new ones."""
        displaced, new = self._displaced, defaultdict[bytes, int](count(self._keys.count).__next__)
        names = _names(keys)
        numbers = [displaced[name] if name in displaced else new[name] for name in names]
        if new:
            self._add(np.frombuffer(b"".join(new), np.uint64).reshape(-1, _WORDS))
        return numbers

    def _add(self, new: Keys) -> None:
        """Give commitments the next numbers."""
        first = self._keys.count
        self._keys.extend(new)
        self._place(first, new)

    def _place(self, first: int, keys: Keys) -> None:
        """Put commitments that have the numbers from `first` on where their slots are free."""
        slots, numbers = self._slots(keys), np.arange(first, first + len(keys), dtype=np.int32)
        free = self._table.take(slots) == _EMPTY
        self._table[slots[free]] = numbers[free]
        lost = self._table.take(slots) != numbers
        self._displaced.update(zip(_names(keys[lost]), numbers[lost].tolist(), strict=True))


def _names(keys: Keys) -> list[bytes]:
    names: list[bytes] = keys.view(f"V{COMMITMENT_SIZE}").reshape(-1).tolist()
    return names


def unpack(texts: Sequence[bytes]) -> Keys:
    """Return the commitments in texts of sound base64, one text after the other."""
    if not texts:
        return np.empty((0, _WORDS), np.uint64)
    lengths = set(map(len, texts))
    width = -(-max(lengths) // _GROUP) * _GROUP
    if len(lengths) == 1:
        halves = _halves((b"=" * (width - max(lengths))).join([*texts, b""]), len(texts))
        return _joined(halves[:, : _size(len(texts[0]))])
    if len(texts) * width > _MOST_PADDED * sum(map(len, texts)):
        return np.concatenate([unpack([text]) for text in texts])
    halves = _halves(b"".join([text.ljust(width, b"=") for text in texts]), len(texts))
    sizes = np.array([_size(len(text)) for text in texts])
    return _joined(halves[np.arange(halves.shape[1]) < sizes[:, None]])


def _size(length: int) -> int:
    """Return how many halves of words there are in base64 of a length."""
    return length // 4 * 3 // COMMITMENT_SIZE * _HALVES


def _halves(padded: bytes, count: int) -> npt.NDArray[np.uint32]:
    """Return what so many texts hold, [texts, halves]; each has as many whole groups of characters.

    Four characters are one number of 24 bits, and four of these three of 32 bits.
    """
    sixes = np.frombuffer(padded.translate(_SIX_BITS), np.dtype("<u4"))
    twelves = (sixes & 0x003F003F) << 6 | sixes >> 8 & 0x003F003F
    parts = np.ascontiguousarray(((twelves & 0xFFF) << 12 | twelves >> 16).reshape(-1, 4).T)
    halves = np.empty((parts.shape[1], 3), np.uint32)
    for place, (left, right) in enumerate(((8, 16), (16, 8), (24, 0))):
        np.bitwise_or(parts[place] << left, parts[place + 1] >> right, out=halves[:, place])
    return halves.reshape(count, -1)


def _joined(halves: npt.NDArray[np.uint32]) -> Keys:
    return np.ascontiguousarray(halves).view(np.uint64).reshape(-1, _WORDS)
