"""The starvation guard: bands that no example reaches for too long.

It only reports or halts. It never lets an excluded example through.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gradwarden.policy.paces import paces
from gradwarden.policy.program import Program, Starvation


class StarvationGuard:
    """Counts, per band, the committed steps since some example last reached it.

    Steps in which its pace closes a band do not count: a band starves by what it is not given in its turns.
    """

    def __init__(self, program: Program) -> None:
        self._rules = program.starvation
        self._paces = paces(program)
        self._idle = {rule.band: 0 for rule in self._rules}

    def observe(self, step: int, active: Sequence[str]) -> Iterator[Starvation]:
        """Take the bands that a committed step reached; yield each rule whose patience just ran out.

        A rule is yielded once per drought: again only after its band has been reached.
        """
        for rule in self._rules:
            if rule.band in active:
                self._idle[rule.band] = 0
                continue
            if step % self._paces.get(rule.band, 1):
                continue
            self._idle[rule.band] += 1
            if self._idle[rule.band] == rule.steps:
                yield rule
