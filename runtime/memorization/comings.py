"""How often each example and its near-duplicates came, whether anything was learned from them or not.

Of what is refused exposures are not counted, so that a guard on them lets so many through, and never knows
how often more came. A text that comes again within an epoch, under whatever id, is repeated more than the
rest of the data: it can be told from the second time on (`when comings > epoch`).

Examples under privacy rules do not count: that they came is for nobody to know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gradwarden.policy.context import IntArray
from gradwarden.runtime.memorization.exposures import ExposureCounter
from gradwarden.runtime.memorization.rows import occurrence
from gradwarden.runtime.roster import Roster


class ComingCounter:
    """Counts the steps that each cluster of near-duplicates came in. roster: knows the clusters."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._counts = ExposureCounter()
        self._named: dict[int, int] = {}

    def came(self, rows: IntArray) -> None:
        """Count the examples of a step that is over; a row listed twice came twice."""
        clusters = self._roster.clusters(rows)
        self._counts.commit(clusters)
        for cluster, row in zip(clusters.tolist(), rows.tolist(), strict=True):
            self._named.setdefault(cluster, row)

    def signal(self, rows: IntArray) -> IntArray:
        """Return how often the cluster of each row came so far, earlier places of the same batch included."""
        clusters = self._roster.clusters(rows)
        return self._counts.counts(clusters) + occurrence(clusters)

    def state_dict(self, ids: Sequence[str]) -> dict[str, int]:
        """Return the count of each cluster under the id of one of its examples."""
        clusters = np.array(list(self._named), dtype=np.int64)
        counts = self._counts.counts(clusters).tolist()
        return {ids[row]: count for row, count in zip(self._named.values(), counts, strict=True)}

    def load_state_dict(self, state: Mapping[str, int], rows: Mapping[str, int]) -> None:
        """Replace all counts. rows: the row of each id in `state`."""
        named = np.array([rows[name] for name in state], dtype=np.int64)
        clusters = self._roster.clusters(named).tolist()
        self._named = dict(zip(clusters, named.tolist(), strict=True))
        self._counts.load_state_dict(
            {str(cluster): count for cluster, count in zip(clusters, state.values(), strict=True)},
            {str(cluster): cluster for cluster in clusters},
        )
