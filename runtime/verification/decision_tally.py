"""Counts the decisions that hold: by verdict, and how often each rule had a part in them.

A decision that is taken for several examples counts once for each. Rules are counted by their part in it, as
it is recorded: enforced, advisory (would have acted), or waived; a rule is known by its name, over all
changes of policy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradwarden.policy.array_types import Numbers
from gradwarden.policy.evaluation.lookup import GrowingArray

PARTS = {"enforced": "rules", "advisory": "advisory", "waived": "waived"}
"""What a rule's part is called, and the field of a recorded decision that lists such rules."""

MOST_LISTED = 10_000
"""Numbers of decisions are listed until they are this many, and then counted."""


class DecisionTally:
    """Counts over one run: first by the numbers of recorded decisions, which `settle` ends."""

    def __init__(self) -> None:
        self._listed: list[int] = []
        self._taken = GrowingArray(np.int64)
        """How often each decision was taken, by number."""
        self._verdicts: Counter[str] = Counter()
        self._rules: dict[str, Counter[str]] = {part: Counter() for part in PARTS}

    def take(self, numbers: Sequence[int]) -> None:
        """Count decisions, given one after the other."""
        self._listed += numbers
        if len(self._listed) > MOST_LISTED:
            self._count()

    def take_counted(self, counts: Numbers) -> None:
        """Count decisions, given how often each was taken, by number."""
        self._taken.extend(np.zeros(max(0, len(counts) - self._taken.count), np.int64))
        self._taken.array[: len(counts)] += counts

    def _count(self) -> None:
        self.take_counted(np.bincount(self._listed))
        self._listed.clear()

    def settle(self, recorded: Sequence[Mapping[str, Any]]) -> None:
        """Count verdicts and rules of what was taken so far. recorded: the decisions by number."""
        if self._listed:
            self._count()
        taken = self._taken.array
        for number in np.flatnonzero(taken).tolist():
            decision, times = recorded[number], int(taken[number])
            self._verdicts[decision["verdict"]] += times
            for part, field in PARTS.items():
                for rule in decision[field]:
                    self._rules[part][rule] += times
        self._taken = GrowingArray(np.int64)

    def facts(self) -> dict[str, Any]:
        """Return how many decisions were settled, by verdict, and the rules by part and name."""
        return {
            "decisions_replayed": self._verdicts.total(),
            "verdicts": dict(self._verdicts),
            "rules": {part: dict(sorted(counts.items())) for part, counts in self._rules.items()},
        }
