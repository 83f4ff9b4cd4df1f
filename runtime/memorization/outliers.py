"""How far the gradient norm of each example stands out from those of the examples before it.

score = (log n - median) / max(1.4826 MAD, 0.01)

over the logarithms of the last norms of the run: the robust z-score, whose median and median absolute
deviation a few outliers do not move (Iglewicz and Hoaglin 1993; 1.4826 makes the MAD of a Gaussian its
standard deviation). Logarithms, because norms of one batch differ by factors, and fall for all as training
goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradwarden.policy.context import FloatArray, IntArray
from gradwarden.runtime.memorization.latest import LatestValues

WINDOW = 1_024
"""How many norms are looked back on."""

LEAST = 32
"""How many norms must be known before any is called an outlier."""

_GAUSSIAN, _FLOOR = 1.4826, 0.01


class NormOutliers:
    """Scores each norm against the window that came before its batch."""

    def __init__(self) -> None:
        self._scores = LatestValues()
        self._window = np.zeros(0)

    def observe(self, rows: IntArray, norms: FloatArray) -> None:
        """Score the norms of a step, then let them join the window. Norms of 0 or not finite are left out."""
        usable = np.isfinite(norms) & (norms > 0.0)
        rows, logs = rows[usable], np.log(norms[usable])
        if len(self._window) >= LEAST:
            middle = _median(self._window)
            spread = max(_GAUSSIAN * _median(np.abs(self._window - middle)), _FLOOR)
            self._scores.observe(rows, (logs - middle) / spread)
        self._window = np.concatenate([self._window, logs])[-WINDOW:]

    def signal(self, rows: IntArray) -> FloatArray:
        """Return the last score of each row, float64; NaN where there is none."""
        return self._scores.signal(rows)

    def state_dict(self, ids: Sequence[str]) -> dict[str, Any]:
        """Return {"scores": {id: score}, "window": logarithms of norms, the oldest first}."""
        return {"scores": self._scores.state_dict(ids), "window": self._window.tolist()}

    def load_state_dict(self, state: Mapping[str, Any], rows: Mapping[str, int]) -> None:
        """Replace everything remembered. rows: the row of each id."""
        self._scores.load_state_dict(state["scores"], rows)
        self._window = np.array(state["window"], dtype=np.float64)


def _median(values: FloatArray) -> float:
    """Return the median of finite values; `np.median` takes thrice as long over so few."""
    half = len(values) // 2
    low = half - 1 + len(values) % 2
    parted = np.partition(values, (low, half))
    return float(parted[low] + parted[half]) / 2
