"""Sums the uses of each example over a block of steps, so that questions about many steps read few rows.

A row stands for all uses of one example under one decision in one block, learned from or not. What is asked
of many steps is read from the sums of the blocks that lie within, and from single uses at the two ends.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Column = npt.NDArray[Any]

MOST = 1 << 22
"""Rows that are kept until those that belong together are summed."""


class Sums:
    """Sums the uses of one ledger, told in the order of steps.

    block: steps in a block. write: takes the rows of one block, sorted, column by column.
    """

    def __init__(self, block: int, write: Callable[[dict[str, Column]], None]) -> None:
        self._size = block
        self._write = write
        self._block = 0
        self._kept: list[tuple[Column, Column, Column, Column]] = []
        """Keys, uses, first steps and last steps; earlier steps come first."""
        self._count = 0

    def add(self, step: Column, example: Column, decision: Column, learned: Column) -> None:
        """Take uses. step: int64, ascending. example, decision: int32, not negative. learned: bool."""
        if not len(step):
            return
        keys = (example.astype(np.int64) << 32) | (decision.astype(np.int64) << 1) | learned
        blocks = step // self._size
        borders = [0, *(np.flatnonzero(np.diff(blocks)) + 1).tolist(), len(blocks)]
        for start, stop in pairwise(borders):
            if blocks[start] != self._block:
                self.close()
                self._block = int(blocks[start])
            steps = step[start:stop]
            self._keep(keys[start:stop], np.ones(len(steps), np.int64), steps, steps)

    def close(self) -> None:
        """Write the block in hand."""
        if self._kept:
            keys, uses, first, last = self._sum()
            self._write(
                {
                    "example": (keys >> 32).astype(np.int32),
                    "decision": (keys >> 1 & 0x7FFFFFFF).astype(np.int32),
                    "learned": (keys & 1).astype(bool),
                    "uses": uses,
                    "first": first,
                    "last": last,
                }
            )
        self._kept, self._count = [], 0

    def _keep(self, *rows: Column) -> None:
        keys, uses, first, last = rows
        self._kept.append((keys, uses, first, last))
        self._count += len(keys)
        if self._count > MOST:
            self._kept = [self._sum()]
            self._count = len(self._kept[0][0])

    def _sum(self) -> tuple[Column, Column, Column, Column]:
        """Return one row for each key, in their order."""
        keys, uses, first, last = map(np.concatenate, zip(*self._kept, strict=True))
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        starts = np.flatnonzero(np.diff(keys, prepend=-1))
        ends = np.append(starts[1:], len(keys)) - 1
        return keys[starts], np.add.reduceat(uses[order], starts), first[order][starts], last[order][ends]
