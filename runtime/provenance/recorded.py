"""Asks an index what steps record of contributions: what examples added to bands, and how far bands moved.

Norms of several steps are added up. A sum of norms is an upper bound on the norm of the sum: what an example
added in one step may undo what it added in another, and so may moves. Of steps that record nothing it says
nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from math import isfinite

from gradwarden.runtime.provenance.answers import Contribution, Movement, Steps
from gradwarden.runtime.provenance.database import Database, numbers
from gradwarden.runtime.provenance.indexed import Index
from gradwarden.runtime.records.branches import Spans

_SUMMED = """
    count(DISTINCT step) FILTER (norm IS NOT NULL), fsum(norm), count(DISTINCT step) FILTER (norm IS NULL)
"""


class Recorded:
    """Questions about what steps record of contributions; cheap where none does."""

    def __init__(self, index: Index, database: Database) -> None:
        self._any = index.has_rows("contributions"), index.has_rows("moves")
        self._db = database

    def by_example(
        self, band: str, steps: Steps, spans: Spans, examples: Sequence[int]
    ) -> dict[int, Contribution]:
        """Return what each of some examples added to a band in some steps, where any of these records it."""
        if not self._any[0]:
            return {}
        rows = self._db.all(
            f"""
            SELECT example, {_SUMMED} FROM ({self._db.rows_in("contributions", steps, spans)})
            WHERE band = ? AND example IN ({numbers(examples)}) GROUP BY example
            """,
            [band],
        )
        return {example: _contribution(*summed) for example, *summed in rows}

    def by_band(self, example: int) -> dict[str, Contribution]:
        """Return what an example added to each band, where any step records it."""
        if not self._any[0]:
            return {}
        rows = self._db.all(
            f"SELECT band, {_SUMMED} FROM contributions WHERE example = ? GROUP BY band ORDER BY band",
            [example],
        )
        return {band: _contribution(*summed) for band, *summed in rows}

    def movement(self, band: str, steps: Steps, spans: Spans) -> Movement | None:
        """Return how far a band moved in some steps, None where none of these records it."""
        if not self._any[1]:
            return None
        # Each rank of a job records the move of all.
        [[recorded, norm]] = self._db.all(
            f"""
            SELECT count(*), fsum(norm) FROM (
                SELECT step, arg_min(norm, rank) AS norm FROM ({self._db.rows_in("moves", steps, spans)})
                WHERE band = ? GROUP BY step
            )
            """,
            [band],
        )
        if not recorded:
            return None
        [[taken]] = self._db.all(
            f"""
            SELECT count(DISTINCT step) FROM ({self._db.rows_in("steps", steps, spans)})
            WHERE outcome IN ('committed', 'lost')
            """
        )
        return Movement(recorded, taken, _rounded(norm))


def _contribution(steps: int, norm: float | None, private: int) -> Contribution:
    return Contribution(steps, None if norm is None else _rounded(norm), private)


def _rounded(total: float) -> float:
    """Return a sum to six digits: norms are recorded in four to six, and are added in any order.

    Norms that no gradient has may come to more than any number; then it is the greatest.
    """
    return float(f"{total if isfinite(total) else sys.float_info.max:.6g}")
