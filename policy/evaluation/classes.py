"""Dense class numbers from the truth of many conditions, by lookup tables: no sorting of rows.

Eight truth columns make one byte. The first two bytes index a table of numbers; each further byte is joined
to the number so far and looked up in a table of its own. A number is given when a chunk first shows its key,
in the order of keys within the chunk; the same rows always get the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from gradwarden.policy.array_types import BoolArray
from gradwarden.policy.evaluation.arrays import CODES
from gradwarden.policy.evaluation.tape import CHUNK, Tape, Views

Ids = npt.NDArray[np.int32]

Numbers = TypeVar("Numbers", bound=npt.NDArray[np.integer])

MAX_NARROW = 7
"""So many outputs are numbered by their truth itself: a byte, with one number to spare."""

MAX_TABLE = 1 << 24
"""Entries of a lookup table; a stage that needs more keeps a dictionary of the keys it has met."""


class Numbering:
    """Gives the numbers 0, 1, 2, … to keys as they appear. `keys[i]` is the key with number i."""

    def __init__(self) -> None:
        self.keys: list[int] = []
        self._table = np.empty(0, np.int32)
        self._met: dict[int, int] | None = None

    def numbers(self, keys: npt.NDArray[np.intp], bound: int) -> Ids:
        """Return the number of every key; keys are below `bound`, which never falls."""
        if bound > MAX_TABLE or self._met is not None:
            return self._from_dictionary(keys)
        if bound > len(self._table):
            grown = np.full(min(2 * bound, MAX_TABLE), -1, np.int32)
            grown[: len(self._table)] = self._table
            self._table = grown
        ids: Ids = self._table.take(keys)
        if len(ids) and ids.min() < 0:
            fresh = np.unique(keys[ids < 0])
            self._table[fresh] = np.arange(len(self.keys), len(self.keys) + len(fresh))
            self.keys += fresh.tolist()
            ids = self._table.take(keys)
        return ids

    def _from_dictionary(self, keys: npt.NDArray[np.intp]) -> Ids:
        if self._met is None:
            self._met = {key: number for number, key in enumerate(self.keys)}
            self._table = np.empty(0, np.int32)
        distinct, inverse = np.unique(keys, return_inverse=True)
        numbers = [self._met.setdefault(key, len(self._met)) for key in distinct.tolist()]
        self.keys += list(self._met)[len(self.keys) :]
        return np.array(numbers, np.int32)[inverse]


class Packer:
    """Turns the truth of a tape's outputs into class numbers."""

    def __init__(self, outputs: Sequence[bool | int]) -> None:
        self._constant = np.array([output is True for output in outputs], bool)
        varying = [(i, output) for i, output in enumerate(outputs) if not isinstance(output, bool)]
        self._positions = [i for i, _ in varying]
        self.width = len(varying)
        slots = [slot for _, slot in varying]
        self._groups = [slots[at : at + 8] for at in range(0, len(slots), 8)]
        self._stages = [Numbering() for _ in range(max(1, len(self._groups) - 1))]
        self._bytes = [np.empty(CHUNK, np.uint8) for _ in self._groups]
        self._shifted = np.empty(CHUNK, np.uint8)
        self._keys = np.empty(CHUNK, np.intp)

    def numbers(self, views: Views, size: int) -> Ids:
        """Return the class number of every row of a chunk of `size` rows."""
        packed = [self._pack(at, views, size) for at in range(len(self._groups))]
        keys = self._keys[:size]
        if not packed:
            keys[:] = 0
            return self._stages[0].numbers(keys, 1)
        if len(packed) == 1:
            keys[:] = packed[0]
            return self._stages[0].numbers(keys, 1 << 8)
        ids = self._stages[0].numbers(self._joined(packed[1], packed[0], keys), 1 << 16)
        for number, byte in enumerate(packed[2:], 1):
            bound = len(self._stages[number - 1].keys) << 8
            ids = self._stages[number].numbers(self._joined(ids, byte, keys), bound)
        return ids

    def _pack(self, group: int, views: Views, size: int) -> npt.NDArray[np.uint8]:
        out, shifted = self._bytes[group][:size], self._shifted[:size]
        first, *others = self._groups[group]
        out[:] = views[first].view(np.uint8)
        for place, slot in enumerate(others, 1):
            np.left_shift(views[slot].view(np.uint8), place, shifted)
            np.bitwise_or(out, shifted, out)
        return out

    @staticmethod
    def _joined(
        high: npt.NDArray[np.integer], low: npt.NDArray[np.uint8], out: npt.NDArray[np.intp]
    ) -> npt.NDArray[np.intp]:
        out[:] = high
        np.left_shift(out, 8, out)
        np.bitwise_or(out, low, out)
        return out

    def byte(self, views: Views, size: int) -> npt.NDArray[np.uint8]:
        """Return the truth of at most eight varying outputs, packed, of every row of a chunk."""
        return self._pack(0, views, size) if self._groups else np.zeros(size, np.uint8)

    def truth(self) -> BoolArray:
        """Return the truth of all outputs in every class numbered so far, [classes, outputs]."""
        keys = np.array(self._stages[0].keys, np.int64)[:, None]
        packed = np.concatenate((keys & 255, keys >> 8), axis=1)
        for stage in self._stages[1:]:
            keys = np.array(stage.keys, np.int64)
            packed = np.concatenate((packed[keys >> 8], keys[:, None] & 255), axis=1)
        return self.unpacked(packed.astype(np.uint8))

    def unpacked(self, packed: npt.NDArray[np.uint8]) -> BoolArray:
        """Return the truth of all outputs, [n, outputs], from that of those that vary, packed in bytes."""
        truth = np.tile(self._constant, (len(packed), 1))
        bits = np.unpackbits(packed, axis=1, bitorder="little")
        truth[:, self._positions] = bits[:, : self.width]
        return truth


def number_rows(tape: Tape, count: int) -> tuple[Ids, list[int]]:
    """Run a tape over `count` rows; return each row's class number and the truth of all outputs by class.

    The truth of a class is packed in one int (bit i: output i).
    """
    packer = Packer(tape.outputs)
    ids = _over_chunks(tape, packer.numbers, np.empty(count, np.int32))
    packed = np.packbits(packer.truth(), axis=1, bitorder="little")
    return ids, [int.from_bytes(row.tobytes(), "little") for row in packed]


def number_kinds(tape: Tape, count: int) -> tuple[npt.NDArray[np.integer], BoolArray]:
    """Do as `number_rows`, and return the truth as a table, [kinds, outputs].

    Where few outputs vary, each of their combinations has a number, whether or not a row shows it.
    """
    packer = Packer(tape.outputs)
    if packer.width > MAX_NARROW:
        return _over_chunks(tape, packer.numbers, np.empty(count, np.int32)), packer.truth()
    ids = _over_chunks(tape, packer.byte, np.empty(count, np.uint8))
    return ids, packer.unpacked(np.arange(1 << packer.width, dtype=np.uint8)[:, None])


def _over_chunks(tape: Tape, number: Callable[[Views, int], Numbers], ids: Numbers) -> Numbers:
    for start in range(0, len(ids), tape.chunk):
        stop = min(start + tape.chunk, len(ids))
        ids[start:stop] = number(tape.run(start, stop), stop - start)
    return ids


def number_faults(
    ids: Ids, faults: Sequence[tuple[str, npt.NDArray[np.uint8]]], first: int
) -> list[tuple[tuple[str, str], ...]]:
    """Give rows with problems class numbers of their own, from `first` on, in place.

    faults: names of attributes or signals, with [N] numbers of `CODES`. Returns the problems of each new
    class, as (name, code) pairs.
    """
    if not faults:
        return []
    names = [name for name, _ in faults]
    found = np.stack([column for _, column in faults], axis=1)
    rows = np.flatnonzero(found.any(axis=1))
    kinds, which = np.unique(found[rows], axis=0, return_inverse=True)
    ids[rows] = first + which.reshape(-1)
    return [
        tuple((name, CODES[code]) for name, code in zip(names, kind, strict=True) if code)
        for kind in kinds.tolist()
    ]
