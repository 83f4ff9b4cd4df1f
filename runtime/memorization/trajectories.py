"""By how much the loss of each example has fallen per exposure, of late.

An example that is being learned by heart goes on falling when others of its kind have levelled off; the slope
of its own losses shows it before the level does (loss trajectories: Carlini et al. 2022, arXiv:2206.10469;
Liu et al. 2022, arXiv:2208.14933).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gradwarden.policy.context import FloatArray, IntArray
from gradwarden.runtime.memorization.rows import grown

WIDTH = 4
"""How many of an example's losses are kept."""


class LossTrajectory:
    """Keeps the last losses of each example; the newest is the last of its row."""

    def __init__(self) -> None:
        self._losses = np.full((0, WIDTH), np.nan)

    def observe(self, rows: IntArray, losses: FloatArray) -> None:
        """Remember the losses of a step, in order; those that are not finite are left out."""
        self._losses = grown(self._losses, rows, np.nan)
        finite = np.isfinite(losses)
        rows, losses = rows[finite], losses[finite]
        if len(np.unique(rows)) == len(rows):
            self._shift(rows, losses)
        else:
            for place in range(len(rows)):
                self._shift(rows[place : place + 1], losses[place : place + 1])

    def _shift(self, rows: IntArray, losses: FloatArray) -> None:
        """Put one loss behind each of some distinct rows."""
        self._losses[rows, :-1] = self._losses[rows, 1:]
        self._losses[rows, -1] = losses

    def signal(self, rows: IntArray) -> FloatArray:
        """Return (oldest - newest) / (kept - 1) for each row, float64; NaN for fewer than two losses."""
        self._losses = grown(self._losses, rows, np.nan)
        kept = self._losses[rows]
        counts = (~np.isnan(kept)).sum(axis=1)
        oldest = kept[np.arange(len(rows)), np.minimum(WIDTH - counts, WIDTH - 1)]
        return np.where(counts > 1, (oldest - kept[:, -1]) / np.maximum(counts - 1, 1), np.nan)

    def state_dict(self, ids: Sequence[str]) -> dict[str, list[float]]:
        """Return the losses kept of every example that has any, by id, the oldest first."""
        known = np.flatnonzero(~np.isnan(self._losses[:, -1])).tolist()
        return {ids[row]: self._losses[row][~np.isnan(self._losses[row])].tolist() for row in known}

    def load_state_dict(self, state: Mapping[str, Sequence[float]], rows: Mapping[str, int]) -> None:
        """Replace everything remembered. rows: the row of each id in `state`."""
        self._losses = np.full((0, WIDTH), np.nan)
        places = np.array([rows[name] for name in state], dtype=np.int64)
        self._losses = grown(self._losses, places, np.nan)
        for name, losses in state.items():
            self._losses[rows[name], WIDTH - len(losses) :] = losses
