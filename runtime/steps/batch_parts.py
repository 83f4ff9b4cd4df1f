"""How one process's examples of a step are run: in one part, or cut into several, one after the other.

Where processes run a sharded model together, each has as many parts as the one that has most, and all know
what the examples of every process weigh in each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradwarden.policy.context import FloatArray, IntArray
from gradwarden.policy.program import SCALE
from gradwarden.runtime.errors import MaskError, PrivacyError
from gradwarden.runtime.privacy.clipping import Unit
from gradwarden.runtime.ranks.keeping import Keeping
from gradwarden.runtime.ranks.meeting import RankPart
from gradwarden.runtime.ranks.reduction import Reduction
from gradwarden.runtime.steps.admission_gate import Admission

Cut: TypeAlias = Callable[[FloatArray, int], list[IntArray]]
"""Divides rows with weights [B, bands] into parts of at most so many."""


class BatchParts:
    """The parts of a step's examples on this process; all of them in one until they are cut.

    starts: where each process's examples begin in the batch of all, and its end. rows: the part at hand, as
    places among this process's examples. public: bool [B], which of these are not private and shape
    something. together: whether processes run each part together.
    """

    def __init__(
        self, admission: Admission, reduction: Reduction, keeping: Keeping, starts: Sequence[int]
    ) -> None:
        self._admission = admission
        self._weights = admission.weights
        self._units = admission.units.units
        self._reduction = reduction
        self._keeping = keeping
        self._starts = starts
        self._done = np.zeros(len(self._weights), dtype=bool)
        self._number = 0
        self._classes: list[Tensor] = []
        self._clips: list[bool] = []
        self.rows: IntArray = np.arange(len(self._weights))
        self.public = torch.from_numpy(self._weights.any(axis=1) & ~admission.units.mask)
        self.together = reduction.passes.collective
        self._meets = self.together and keeping.apart
        if self.together and not keeping.apart:
            self._expect([np.arange(starts[-1])])

    def meet(self) -> None:
        """Learn what the other ranks' examples weigh, where only they know it and all run each part together.

        Raises RankError where a rank does not come.
        """
        if self._meets:
            self._learn([self.rows])

    def cut(self, cut: Cut, size: int) -> Iterator[IntArray]:
        """Cut the examples, and take up each part in turn.

        Raises PrivacyError where the rows of a privacy unit come in several parts.
        """
        own = self._common(cut, size) if self.together else cut(self._weights, size)
        _check_units(self._units, own)
        for number, rows in enumerate(own):
            self.rows, self._number = rows, number
            yield rows

    def in_order(self, size: int) -> Iterator[IntArray]:
        """Cut the examples as they come, the rows of each privacy unit in one part."""
        return self.cut(_keeping(self._units) if self._units else _by_row, size)

    def _common(self, cut: Cut, size: int) -> list[IntArray]:
        """Return as many parts as any process has; note what the examples of each weigh on all of them."""
        if self._meets:
            return self._learn(cut(self._weights, size))
        ranks, step = self._keeping.ranks, self._admission.context.step
        found = ranks.collect(f"cut step {step}", lambda: cut(self._weights, size))
        count = max(1, *map(len, found))
        parts = [cuts + [np.zeros(0, dtype=np.int64)] * (count - len(cuts)) for cuts in found]
        starts = self._starts[:-1]
        self._expect(
            [
                np.concatenate([start + cuts[k] for start, cuts in zip(starts, parts, strict=True)])
                for k in range(count)
            ]
        )
        return parts[ranks.rank]

    def _learn(self, parts: list[IntArray]) -> list[IntArray]:
        """Do the same by asking the other ranks. parts: of this process's own examples."""
        micro, private, context = (
            self._admission.admitted.micro,
            self._admission.private,
            self._admission.context,
        )
        told = [RankPart(micro[rows], bool(private[rows].any())) for rows in parts]
        common = self._keeping.meet(context.step, context.epoch, micro.shape[1], told)
        self._run_alike([part.weights for part in common], [part.private for part in common])
        return parts + [np.zeros(0, dtype=np.int64)] * (len(common) - len(parts))

    def _expect(self, places: Sequence[IntArray]) -> None:
        """Note what examples weigh in each part that all processes run together, and whether any is private.

        places: of the examples of each part in the batch of all.
        """
        micro, private = self._admission.admitted.micro, self._admission.private
        classes = [np.unique(micro[rows], axis=0) for rows in places]
        self._run_alike(classes, [bool(private[rows].any()) for rows in places])

    def _run_alike(self, classes: Sequence[IntArray], clips: list[bool]) -> None:
        self._classes = [torch.from_numpy(weights / SCALE) for weights in classes]
        self._clips = clips
        self._reduction.expect(sum(bool(classes.any()) for classes in self._classes))

    # --- the part at hand ----------------------------------------------------------------------------------

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """Of the part's rows, [rows, bands]."""
        weights: npt.NDArray[np.float64] = self._weights[self.rows]
        return weights

    @property
    def classes(self) -> Tensor | None:
        """The different weights of all processes' rows [classes, bands], where they run the part together."""
        return self._classes[self._number] if self.together else None

    def any_weight(self) -> bool:
        """Return whether a row of the part shapes anything, on any process that runs it with this one."""
        classes = self.classes
        return bool(self.weights.any() if classes is None else classes.any())

    def reached(self) -> Tensor:
        """Return which rows shape something, bool [rows]."""
        return torch.from_numpy(self.weights.any(axis=1))

    def units(self) -> list[Unit] | None:
        """Return the private units in the part; None where no process that runs it with this one has any."""
        place = {row: number for number, row in enumerate(self.rows.tolist())}
        units = [
            replace(unit, rows=tuple(place[row] for row in unit.rows if row in place)) for unit in self._units
        ]
        units = [unit for unit in units if unit.rows]
        return units if (self._clips[self._number] if self.together else units) else None

    @property
    def begun(self) -> bool:
        """Whether a row of the part was differentiated already."""
        return bool(self._done[self.rows].any())

    def finish(self) -> None:
        """Take the part's rows for differentiated."""
        self._done[self.rows] = True

    def left(self) -> bool:
        """Return whether some example that shapes something was not differentiated yet."""
        return bool(self._weights[~self._done].any())


def _keeping(units: Sequence[Unit]) -> Cut:
    """Return what divides rows as they come, at most so many at once, with each unit's rows in one part."""

    def cut(weights: FloatArray, size: int) -> list[IntArray]:
        open_at = np.ones(len(weights) + 1, dtype=bool)
        for unit in units:
            open_at[min(unit.rows) + 1 : max(unit.rows) + 1] = False
        parts: list[IntArray] = []
        start = 0
        while start < len(weights):
            ends = np.flatnonzero(open_at[start + 1 : start + size + 1])
            if not len(ends):
                raise PrivacyError(
                    f"a privacy unit does not fit in {size} rows of the batch: it is clipped as a whole",
                    help="put the rows of each unit next to each other, or take larger micro-batches",
                )
            parts.append(np.arange(start, start + 1 + int(ends[-1])))
            start = int(parts[-1][-1]) + 1
        return parts

    return cut


def _check_units(units: Sequence[Unit], parts: Sequence[IntArray]) -> None:
    """Raise PrivacyError where the rows of a unit, as far as they are run at all, are in several parts."""
    home = {row: number for number, part in enumerate(parts) for row in part.tolist()}
    if any(len({home[row] for row in unit.rows if row in home}) > 1 for unit in units):
        raise PrivacyError(
            "the rows of a privacy unit would be run in several parts: it is clipped as a whole",
            help="use `micro_batches`, which keeps them together",
        )


def _by_row(weights: FloatArray, size: int) -> list[IntArray]:
    """Return rows as they come, at most `size` at once."""
    if size < 1:
        raise MaskError(f"a micro-batch has at least one example, not {size}")
    return [np.arange(start, min(start + size, len(weights))) for start in range(0, len(weights), size)]
