"""Arrays with one value for each row of the run's roster, which grow with the rows that they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradwarden.policy.context import FloatArray, IntArray


def grown(values: Any, rows: IntArray, fill: float) -> Any:
    """Return `values`, extended along its first dimension with `fill` to hold every row.

    At least doubled, to amortise copies.
    """
    needed = int(rows.max()) + 1 if len(rows) else 0
    if needed <= len(values):
        return values
    wider = np.full((max(needed, 2 * len(values)), *values.shape[1:]), fill, dtype=values.dtype)
    wider[: len(values)] = values
    return wider


def by_id(values: FloatArray, ids: Sequence[str]) -> dict[str, float]:
    """Return the values that are not NaN, by the id of their row."""
    return {ids[row]: float(values[row]) for row in np.flatnonzero(~np.isnan(values)).tolist()}


def occurrence(rows: IntArray) -> IntArray:
    """Return for each place how often its row occurs earlier in the batch, int64."""
    if len(set(rows.tolist())) == len(rows):
        return np.zeros(len(rows), dtype=np.int64)
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    lengths = np.diff(np.r_[starts, len(rows)])
    counts = np.empty(len(rows), dtype=np.int64)
    counts[order] = np.arange(len(rows)) - np.repeat(starts, lengths)
    return counts
