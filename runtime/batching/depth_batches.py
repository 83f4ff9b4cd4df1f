"""Batches by depth: examples that may reach equally deep come together, so that whole batches stop early.

Two ways, for two places in a loop. `by_depth` cuts one step's batch into micro-batches: which examples are in
the step stays as it was, so it changes nothing that is learned. `DepthSampler` forms the steps themselves:
it saves more where steps are small, and the steps of a run are then less alike than those of a shuffled one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gradwarden.policy.context import FloatArray, IntArray
from gradwarden.runtime.batching.epochs import Epochs
from gradwarden.runtime.errors import MaskError


def by_depth(weights: FloatArray, size: int) -> list[IntArray]:
    """Return the rows that have any weight, in micro-batches of at most `size` rows of like reach.

    weights: [B, bands], bands from shallow to deep. Rows that reach least far come first; where they reach
    equally far, in the batch's order. A micro-batch ends where the reach changes, unless it is not yet half
    full: a few rows are cheaper in company. Raises MaskError for a size below 1.
    """
    if size < 1:
        raise MaskError(f"a micro-batch has at least one example, not {size}")
    groups = reach_groups(weights > 0)
    order = np.argsort(groups, kind="stable")
    parts: list[IntArray] = []
    start, live = int((groups == 0).sum()), len(order)
    while start < live:
        stop = min(start + size, live)
        changes = np.flatnonzero(np.diff(groups[order[start:stop]])) + 1
        early = changes[2 * changes >= size]
        if len(early):
            stop = start + int(early[0])
        parts.append(order[start:stop])
        start = stop
    return parts


def reach_groups(reach: npt.NDArray[np.bool_]) -> IntArray:
    """Return a number for each row, equal for equal rows: 0 for no band, greater for deeper reach, [N].

    reach: bool [N, bands], bands from shallow to deep.
    """
    patterns, member = np.unique(reach[:, ::-1], axis=0, return_inverse=True)
    shift = 0 if len(patterns) and not patterns[0].any() else 1
    return member.reshape(-1).astype(np.int64) + shift


class DepthSampler(Epochs):
    """Batches whose examples reach equally deep, as far as their numbers allow.

    groups: [N], one number for each example; those with number 0 may shape nothing and are left out unless
    `all_rows` (`reach_groups` makes such numbers). One iteration is one epoch, in which every example comes
    once. Within a group all orders are equally likely; what does not fill a batch is joined, group by group,
    into mixed batches; then the batches are shuffled. The order is a function of seed, epoch and groups
    (`order`), so that whoever has them can tell whether a run kept to it.
    """

    def __init__(
        self, groups: IntArray | Sequence[int], *, batch_size: int, seed: int, all_rows: bool = False
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise MaskError(f"a batch has at least one example, not {batch_size}")
        numbers = np.asarray(groups, dtype=np.int64)
        rows = np.arange(len(numbers)) if all_rows else np.flatnonzero(numbers)
        self._members = [rows[numbers[rows] == number] for number in np.unique(numbers[rows]).tolist()]
        self._batch_size = batch_size
        self._seed = seed
        self._count = len(rows)

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        full = sum(len(members) // self._batch_size for members in self._members)
        rest = self._count - full * self._batch_size
        return full + -(-rest // self._batch_size)

    def order(self, epoch: int) -> list[IntArray]:
        generator = np.random.default_rng((self._seed, epoch))
        shuffled = [generator.permutation(members) for members in self._members]
        size = self._batch_size
        ends = [len(members) - len(members) % size for members in shuffled]
        pure = [
            members[start : start + size]
            for members, end in zip(shuffled, ends, strict=True)
            for start in range(0, end, size)
        ]
        rest = np.concatenate(
            [members[end:] for members, end in zip(shuffled, ends, strict=True)] or [np.zeros(0, np.int64)]
        )
        batches = pure + [rest[start : start + size] for start in range(0, len(rest), size)]
        return [batches[place] for place in generator.permutation(len(batches)).tolist()]
