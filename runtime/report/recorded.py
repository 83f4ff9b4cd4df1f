"""Adds up, band by band, what the steps of a run record of contributions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from gradwarden.policy.frozen import frozen


@frozen
class Recorded:
    """What steps record of one band, on average.

    steps: those that say how far it moved; moved: the mean norm of these moves. told: how often a public
    example added to its gradient in a step that says so; added: the mean norm of what one added. None: never.
    private: how often a step tells nothing of an example, since it was private.
    """

    band: str
    steps: int
    moved: float | None
    told: int
    added: float | None
    private: int


class RecordSums:
    """Adds up rows of the tables `contributions` and `moves`."""

    def __init__(self) -> None:
        self._added: defaultdict[str, _Sum] = defaultdict(_Sum)
        self._moved: defaultdict[str, _Sum] = defaultdict(_Sum)
        self._private: defaultdict[str, int] = defaultdict(int)

    def add(self, band: str, norm: float | None) -> None:
        """Take what an example added to a band; None: it was private."""
        if norm is None:
            self._private[band] += 1
        else:
            self._added[band].add(norm)

    def move(self, band: str, norm: float) -> None:
        """Take how far a band moved in a step."""
        self._moved[band].add(norm)

    def of(self, bands: Iterable[str]) -> Iterator[Recorded]:
        """Yield what is recorded of bands; of one of which nothing is, nothing."""
        for band in bands:
            added, moved, private = self._added[band], self._moved[band], self._private[band]
            if added.count or moved.count or private:
                yield Recorded(band, moved.count, moved.mean, added.count, added.mean, private)


class _Sum:
    def __init__(self) -> None:
        self.count, self.total = 0, 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None
