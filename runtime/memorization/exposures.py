"""How often each example shaped the model.

Examples are known by their row in the run's roster; state is saved under their ids, so that a resumed run
may list its examples in another order. An exposure is counted when a step commits, never when it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gradwarden.policy.context import IntArray
from gradwarden.runtime.memorization.rows import grown


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
        self._counts = grown(self._counts, rows, 0)
