"""Canaries: made-up texts that are planted in training data to see what the model keeps of them.

A format is a text with blanks that are filled at random, as in the Secret Sharer (Carlini et al. 2019,
arXiv:1802.08232, section 4.1). Nothing but having seen a canary helps to guess its filling; so what a model
knows of it, beyond what it knows of other fillings of the same format, it has memorized.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.errors import MemorizationError

BLANK = "\0"
"""A place to be filled; no text that is trained on is likely to hold it."""


@frozen
class CanaryFormat:
    """A text in which every BLANK is one member of `alphabet`, drawn independently and uniformly.

    alphabet: letters, or words of one length.
    """

    text: str
    alphabet: Sequence[str] = "abcdefghijklmnopqrstuvwxyz0123456789"

    @property
    def bits(self) -> float:
        """log2 |R|: how much chance is in one filling."""
        return self.text.count(BLANK) * math.log2(len(set(self.alphabet)))

    def fill(self, count: int, seed: int) -> list[str]:
        """Return so many texts, all different. The same seed gives the same ones, and a longer list begins
        with a shorter one.

        Raises MemorizationError where the format has not so many fillings, or they are not equally likely.
        """
        letters, blanks = self.alphabet, self.text.count(BLANK)
        if len(set(letters)) != len(letters) or len(set(map(len, letters))) > 1:
            raise MemorizationError(
                "the alphabet of a canary repeats a letter, or has words of several lengths: fillings are "
                "not equally likely"
            )
        if count > len(letters) ** blanks:
            raise MemorizationError(
                f"{blanks} blanks and an alphabet of {len(letters)} cannot be filled in {count:,} ways",
                help="give it more blanks",
            )
        drawn = self._draw(random.Random(seed))
        found: dict[str, None] = {}
        while len(found) < count:
            found[next(drawn)] = None
        return list(found)

    def _draw(self, source: random.Random) -> Iterator[str]:
        pieces = self.text.split(BLANK)
        while True:
            letters = source.choices(self.alphabet, k=len(pieces) - 1)
            yield pieces[0] + "".join(a + b for a, b in zip(letters, pieces[1:], strict=True))
