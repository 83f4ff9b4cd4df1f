"""How the loss of each example has fallen since the model first saw it.

Examples are known by their row in the run's roster; state is saved under their ids.

The signal `loss_gap` is the reference loss less the last one, where the reference may also be that of another
model, which never saw the example (Watson et al. 2022, arXiv:2111.08440). The signal `loss_ratio` is an
example's last loss over its reference loss, the one measured before the model first learned from it (the
loss-based membership signal of Yeom et al. 2018, arXiv:1709.01604, relative to an example's own starting
point). Near 1: not learned yet. Near 0: the model reproduces it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradwarden.policy.context import FloatArray, IntArray
from gradwarden.runtime.memorization.rows import by_id, grown


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

    def gap(self, rows: IntArray, given: FloatArray) -> FloatArray:
        """Return reference loss - last loss for each row, float64; NaN where one of them is missing.

        given: reference losses from elsewhere, which go before an example's own; NaN for none.
        """
        self._reach(rows)
        gap: FloatArray = np.where(np.isnan(given), self._reference[rows], given) - self._last[rows]
        return gap

    def state_dict(self, ids: Sequence[str]) -> dict[str, Any]:
        """Return {"reference": {id: loss}, "last": {id: loss}} of every observed example."""
        return {"reference": by_id(self._reference, ids), "last": by_id(self._last, ids)}

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
        self._reference = grown(self._reference, rows, np.nan)
        self._last = grown(self._last, rows, np.nan)
