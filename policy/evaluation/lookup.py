"""Tables that grow: arrays with room at the end, and the table from combinations to decision numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwarden.policy.array_types import Array

MAX_TABLE = 1 << 22
"""Entries of a table of decision numbers; where more combinations are possible, a dictionary is used."""

MAX_LEAVES = 30
"""Row leaves whose truth fits a table key beside the class number."""


class GrowingArray:
    """An array that is extended in place; capacity doubles."""

    def __init__(self, dtype: Any, width: int | None = None) -> None:
        self.count = 0
        self._room: Array = np.zeros((16,) if width is None else (16, width), dtype)

    @property
    def array(self) -> Array:
        """The elements so far. A view: elements do not change, but a later one may be another array."""
        return self._room[: self.count]

    def extend(self, values: Array) -> None:
        needed = self.count + len(values)
        if needed > len(self._room):
            room = np.zeros((max(needed, 2 * len(self._room)), *self._room.shape[1:]), self._room.dtype)
            room[: self.count] = self.array
            self._room = room
        self._room[self.count : needed] = values
        self.count = needed


MOST_STATES = 4
"""Truths of the clock leaves with a table each, which may be large."""


class Lookups:
    """A table for each truth of the clock leaves that was met lately.

    leaves: how many row leaves there are. entry: asked once by a table for every class number, truth of the
    clock leaves and truth of the row leaves that is met.
    """

    def __init__(self, leaves: int, entry: Callable[[int, int, int], int]) -> None:
        self._leaves = leaves
        self._entry = entry
        self._tables: dict[int, Lookup] = {}

    def at(self, clocks: int) -> Lookup:
        """Return the table for a truth of the clock leaves (bit i: leaf i)."""
        known = self._tables.get(clocks)
        if known is None:
            if len(self._tables) == MOST_STATES:
                self._tables.clear()
            known = Lookup(self._leaves, lambda number, rows: self._entry(number, clocks, rows))
            self._tables[clocks] = known
        return known


class Lookup:
    """From a class number and the truth of the row leaves to a decision number.

    `entry(class, leaves)` is asked once for every combination that is met.
    """

    def __init__(self, leaves: int, entry: Callable[[int, int], int]) -> None:
        self._leaves = leaves
        self._entry = entry
        self._table = np.empty(0, np.int32)
        self._met: dict[tuple[int, int], int] = {}

    def find(self, classes: npt.NDArray[np.int32], bits: Sequence[Any], bound: int) -> npt.NDArray[np.int32]:
        """Return decision numbers, [B].

        bits: per leaf a bool for all rows, or a bool array [B]. bound: class numbers are below it.
        """
        if self._leaves > MAX_LEAVES or bound << self._leaves > MAX_TABLE:
            return self._by_dictionary(classes, bits)
        keys = classes.astype(np.intp)
        if bits:
            np.left_shift(keys, self._leaves, keys)
        for place, bit in enumerate(bits):
            if isinstance(bit, np.ndarray):
                np.bitwise_or(keys, bit.astype(np.intp) << place, keys)
            elif bit:
                np.bitwise_or(keys, 1 << place, keys)
        if bound << self._leaves > len(self._table):
            self._grow(bound << self._leaves)
        ids: npt.NDArray[np.int32] = self._table.take(keys)
        if len(ids) and ids.min() < 0:
            mask = (1 << self._leaves) - 1
            for key in np.unique(keys[ids < 0]).tolist():
                self._table[key] = self._entry(key >> self._leaves, key & mask)
            ids = self._table.take(keys)
        return ids

    def _grow(self, size: int) -> None:
        grown = np.full(min(2 * size, MAX_TABLE), -1, np.int32)
        grown[: len(self._table)] = self._table
        self._table = grown

    def _by_dictionary(self, classes: npt.NDArray[np.int32], bits: Sequence[Any]) -> npt.NDArray[np.int32]:
        stacked = np.empty((len(classes), len(bits)), bool)
        for place, bit in enumerate(bits):
            stacked[:, place] = bit
        packed = np.packbits(stacked, axis=1, bitorder="little")
        ids = np.empty(len(classes), np.int32)
        for row, (number, leaves) in enumerate(zip(classes.tolist(), packed, strict=True)):
            key = (number, int.from_bytes(leaves.tobytes(), "little"))
            known = self._met.get(key)
            if known is None:
                known = self._met[key] = self._entry(*key)
            ids[row] = known
        return ids
