"""How often each example and its near-duplicates shaped the model, together.

Which examples are copies of one text is the caller's to say, by the name of a cluster for each id (from
MinHash or any other near-duplicate search). An example that is in none is a cluster by itself. Repetition,
not the single exposure, is what makes models recite (Lee et al. 2022, arXiv:2107.06499; Kandpal et al. 2022,
arXiv:2202.06539), and a limit by id does not see it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from gradwarden.policy.context import IntArray
from gradwarden.runtime.memorization.exposures import ExposureCounter
from gradwarden.runtime.memorization.rows import occurrence


class CopyCounter:
    """Counts exposures by cluster. clusters: the name of the cluster by id."""

    def __init__(self, clusters: Mapping[str, str]) -> None:
        self._clusters = clusters
        self._numbers: dict[str, int] = {}
        self._count = 0
        self._of_row: list[int] = []
        self._counts = ExposureCounter()

    def join(self, ids: Iterable[str]) -> None:
        """Make the next rows known, by their ids, none of which was known before."""
        for name in ids:
            cluster = self._clusters.get(name)
            known = None if cluster is None else self._numbers.get(cluster)
            number = self._count if known is None else known
            if cluster is not None:
                self._numbers[cluster] = number
            self._count += known is None
            self._of_row.append(number)

    def counts(self, rows: IntArray) -> IntArray:
        """Return the exposures of each row's cluster so far, earlier places of the same batch included."""
        clusters = self.clusters(rows)
        return self._counts.counts(clusters) + occurrence(clusters)

    def commit(self, rows: IntArray) -> None:
        """Count one exposure for each row of a committed step."""
        self._counts.commit(self.clusters(rows))

    def clusters(self, rows: IntArray) -> IntArray:
        """Return the number of each row's cluster."""
        return np.fromiter((self._of_row[row] for row in rows.tolist()), dtype=np.int64, count=len(rows))
