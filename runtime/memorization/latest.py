"""The last value that was measured of each example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gradwarden.policy.context import FloatArray, IntArray
from gradwarden.runtime.memorization.rows import by_id, grown


class LatestValues:
    """Keeps one number for each row. Values that are not finite are not remembered."""

    def __init__(self) -> None:
        self._values = np.zeros(0)

    def observe(self, rows: IntArray, values: FloatArray) -> None:
        """Remember the values of a step; of a row listed twice, the last one."""
        self._values = grown(self._values, rows, np.nan)
        finite = np.isfinite(values)
        self._values[rows[finite]] = values[finite]

    def signal(self, rows: IntArray) -> FloatArray:
        """Return the last value of each row, float64; NaN where there is none."""
        self._values = grown(self._values, rows, np.nan)
        found: FloatArray = self._values[rows]
        return found

    def state_dict(self, ids: Sequence[str]) -> dict[str, float]:
        """Return the values by id."""
        return by_id(self._values, ids)

    def load_state_dict(self, state: Mapping[str, float], rows: Mapping[str, int]) -> None:
        """Replace everything remembered. rows: the row of each id in `state`."""
        self._values = np.zeros(0)
        self.observe(np.array([rows[name] for name in state], dtype=np.int64), np.array(list(state.values())))
