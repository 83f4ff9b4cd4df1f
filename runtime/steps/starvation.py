"""The starvation guard: bands that no example reaches for too long, or that get next to no weight.

It only reports or halts. It never lets an excluded example through.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gradwarden.policy.frozen import frozen
from gradwarden.policy.paces import paces
from gradwarden.policy.program import Program, Starvation


@frozen
class Reach:
    """How far a step reaches: the bands that it moves, and what its recorded examples weigh there.

    weights: of all of them together, in millionths; a band that noise moves in every step has none. examples:
    how many they are, those included that weigh nothing.
    """

    active: Sequence[str]
    weights: Mapping[str, int]
    examples: int

    def feeds(self, rule: Starvation) -> bool:
        """Return whether it gives a band what the guard asks for."""
        weight = self.weights.get(rule.band)
        return rule.band in self.active and (weight is None or weight >= rule.below * self.examples)


class StarvationGuard:
    """Counts, per band, the committed steps since the last that gave it enough.

    Steps in which its pace closes a band do not count: a band starves by what it is not given in its turns.
    """

    def __init__(self, program: Program) -> None:
        self._rules = program.starvation
        self._paces = paces(program)
        self._idle = {rule.band: 0 for rule in self._rules}

    def observe(self, step: int, reach: Reach) -> Iterator[Starvation]:
        """Take a committed step; yield each rule whose patience just ran out.

        A rule is yielded once per drought: again only after its band has been given enough.
        """
        for rule in self._rules:
            if reach.feeds(rule):
                self._idle[rule.band] = 0
                continue
            if step % self._paces.get(rule.band, 1):
                continue
            self._idle[rule.band] += 1
            if self._idle[rule.band] == rule.steps:
                yield rule
