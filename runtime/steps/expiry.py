"""Notes when a retention rule first stops an example."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradwarden.policy.evaluation.admission import Admitted

EFFECTS = ("expired", "exposures_spent", "epochs_spent")
"""What retention rules do to an example whose time is over."""


class ExpiryWatch:
    """Knows the retention rules that have stopped an example already."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def observe(self, admitted: Admitted) -> Iterator[tuple[str, int]]:
        """Yield each rule that stops an example for the first time, and how many of this batch it stops."""
        counts: dict[str, int] = {}
        numbers, sizes = np.unique(admitted.decision_ids, return_counts=True)
        for number, size in zip(numbers.tolist(), sizes.tolist(), strict=True):
            causes = admitted.decisions[number].causes
            for rule in {cause.rule for cause in causes if cause.effect in EFFECTS}:
                counts[rule] = counts.get(rule, 0) + size
        for rule in sorted(counts.keys() - self._known):
            self._known.add(rule)
            yield rule, counts[rule]
