"""What a run remembers of each example: how often it shaped the model, and how its loss has fallen.

Examples are known by their row in the run's roster; state is saved under their ids, so that a resumed run
may list its examples in another order. An exposure is counted when a step commits, never when it is refused.

The signal `loss_ratio` is an example's last loss over its reference loss, the one measured before the model
first learned from it (the loss-based membership signal of Yeom et al. 2018, arXiv:1709.01604, relative to an
example's own starting point). Near 1: not learned yet. Near 0: the model reproduces it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradwarden.policy.context import FloatArray, IntArray


class ExposureCounter:
    """Counts, per example, the committed steps that it shaped. Grows with the rows it is shown."""

    def __init__(self) -> None:
        self._counts = np.zeros(0, dtype=np.int64)

    def counts(self, rows: IntArray) -> IntArray:
        """Return the exposures so far of each row, int64 of the shape of `rows`."""
        self._reach(rows)
        return self._counts[rows]

    def commit(self, rows: IntArray) -> None:
        """Count one exposure for each row of a committed step; a row listed twice counts twice."""
        self._reach(rows)
        np.add.at(self._counts, rows, 1)

    def state_dict(self, ids: Sequence[str]) -> dict[str, int]:
        """Return the exposures of every example that has any, by id. ids: the id of each row."""
        exposed = np.flatnonzero(self._counts)
        return {ids[row]: int(self._counts[row]) for row in exposed.tolist()}

    def load_state_dict(self, state: Mapping[str, int], rows: Mapping[str, int]) -> None:
        """Replace all counts. rows: the row of each id in `state`."""
        self._counts = np.zeros(0, dtype=np.int64)
        if state:
            places = np.array([rows[name] for name in state], dtype=np.int64)
            self._reach(places)
            self._counts[places] = list(state.values())

    def _reach(self, rows: IntArray) -> None:
        self._counts = _grown(self._counts, rows, 0)


class LossReference:
    """Keeps each example's reference loss and its last loss, and gives their ratio.

    default: the ratio of an example that has no reference, or whose reference loss is not above zero (a ratio
    to it would mean nothing). Loss values that are not finite are not remembered.
    """

    def __init__(self, default: float = 1.0) -> None:
        self.default = default
        self._reference = np.zeros(0)
        self._last = np.zeros(0)

    def observe(self, rows: IntArray, losses: FloatArray, exposures: IntArray | None = None) -> None:
        """Remember the losses of a forward pass, before its step is committed.

        An example that has no reference gets this one, unless it was exposed before: then its starting point
        is lost, and it never has one. exposures: of each row so far; None: the counts are all 0 where no
        reference is known.
        """
        self._reach(rows)
        finite = np.isfinite(losses)
        fresh = finite & np.isnan(self._reference[rows])
        if exposures is not None:
            fresh &= exposures == 0
        # Reversed: where a row is listed twice, numpy keeps the last value assigned, here the first listed.
        self._reference[rows[fresh][::-1]] = losses[fresh][::-1]
        self._last[rows[finite]] = losses[finite]

    def signal(self, rows: IntArray) -> FloatArray:
        """Return last loss / reference loss for each row, float64; the default where there is none."""
        self._reach(rows)
        reference, last = self._reference[rows], self._last[rows]
        known = reference > 0.0  # false for NaN, the mark of a row never observed
        return np.where(known, last / np.where(known, reference, 1.0), self.default)

    def state_dict(self, ids: Sequence[str]) -> dict[str, Any]:
        """Return {"reference": {id: loss}, "last": {id: loss}} of every observed example."""
        return {"reference": _by_id(self._reference, ids), "last": _by_id(self._last, ids)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]], rows: Mapping[str, int]) -> None:
        """Replace everything remembered. rows: the row of each id in `state`."""
        self._reference = self._last = np.zeros(0)
        places = np.array([rows[name] for name in state["last"]], dtype=np.int64)
        self._reach(places)
        for name, loss in state["reference"].items():
            self._reference[rows[name]] = loss
        for name, loss in state["last"].items():
            self._last[rows[name]] = loss

    def _reach(self, rows: IntArray) -> None:
        self._reference = _grown(self._reference, rows, np.nan)
        self._last = _grown(self._last, rows, np.nan)


def _grown(values: Any, rows: IntArray, fill: float) -> Any:
    """Return `values`, extended with `fill` to hold every row; at least doubled, to amortise copies."""
    needed = int(rows.max()) + 1 if len(rows) else 0
    if needed <= len(values):
        return values
    grown = np.full(max(needed, 2 * len(values)), fill, dtype=values.dtype)
    grown[: len(values)] = values
    return grown


def _by_id(values: FloatArray, ids: Sequence[str]) -> dict[str, float]:
    return {ids[row]: float(values[row]) for row in np.flatnonzero(~np.isnan(values)).tolist()}
