"""Arrays with one value for each row of the run's roster, which grow with the rows that they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradwarden.policy.context import FloatArray, IntArray


def grown(values: Any, rows: IntArray, fill: float) -> Any:
    """Return `values`, extended with `fill` to hold every row; at least doubled, to amortise copies."""
    needed = int(rows.max()) + 1 if len(rows) else 0
    if needed <= len(values):
        return values
    wider = np.full(max(needed, 2 * len(values)), fill, dtype=values.dtype)
    wider[: len(values)] = values
    return wider


def by_id(values: FloatArray, ids: Sequence[str]) -> dict[str, float]:
    """Return the values that are not NaN, by the id of their row."""
    return {ids[row]: float(values[row]) for row in np.flatnonzero(~np.isnan(values)).tolist()}
