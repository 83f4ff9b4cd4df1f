"""How often each rule had a part in the decisions that hold: which guard acted, and how often.

A decision that is taken for several examples counts once for each. Rules are counted by their part in it, as
it is recorded: enforced, advisory (would have acted), or waived.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

PARTS = {"enforced": "rules", "advisory": "advisory", "waived": "waived"}
"""What a rule's part is called, and the field of a recorded decision that lists such rules."""


class RuleTally:
    """Counts over one run, its changes of policy included; a rule is known by its name."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {part: Counter() for part in PARTS}

    def add(self, decision: Mapping[str, Any], times: int) -> None:
        """Count a recorded decision that was taken so often."""
        for part, field in PARTS.items():
            for rule in decision[field]:
                self._counts[part][rule] += times

    def facts(self) -> dict[str, dict[str, int]]:
        """Return the counts by part and rule."""
        return {part: dict(sorted(counts.items())) for part, counts in self._counts.items()}
