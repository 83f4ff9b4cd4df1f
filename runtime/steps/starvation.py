"""The starvation guard: bands that no example reaches for too long.

It only reports or halts. It never lets an excluded example through.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gradwarden.policy.program import Starvation


class StarvationGuard:
    """Counts, per band, the committed steps since some example last reached it."""

    def __init__(self, rules: Sequence[Starvation]) -> None:
        self._rules = tuple(rules)
        self._idle = {rule.band: 0 for rule in self._rules}

    def observe(self, active: Sequence[str]) -> Iterator[Starvation]:
        """Take the bands that a committed step reached; yield each rule whose patience just ran out.

        A rule is yielded once per drought: again only after its band has been reached.
        """
        for rule in self._rules:
            if rule.band in active:
                self._idle[rule.band] = 0
                continue
            self._idle[rule.band] += 1
            if self._idle[rule.band] == rule.steps:
                yield rule
