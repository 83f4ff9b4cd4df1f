"""Poisson sampling of privacy units, alone or beside shuffled public batches.

The privacy amplification that the accountant counts on holds only where every unit is in a step independently
of all others with the same probability (Abadi et al. 2016, arXiv:1607.00133, section 3.1). A shuffled data
loader is not that; accounted as if it were, it understates epsilon. A unit is all rows of one person (or
whatever `unit` names): they come together or not at all. A step may draw no unit; it is a step all the same,
noised and paid for.

Public order and private draws come from separate streams of one seed, so that the public order is the same
whatever the private data are. The seed decides which private rows are used: keep it secret.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradwarden.policy.context import IntArray
from gradwarden.runtime.errors import PrivacyError


def group_rows(keys: Sequence[Hashable], rows: IntArray | None = None) -> tuple[IntArray, ...]:
    """Return the rows of each unit, units in order of first appearance. keys: the unit of each row.

    rows: the row number that each key belongs to; None: 0, 1, 2, …
    """
    numbers = np.arange(len(keys)) if rows is None else rows
    groups: dict[Hashable, list[int]] = {}
    for key, row in zip(keys, numbers.tolist(), strict=True):
        groups.setdefault(key, []).append(row)
    return tuple(np.array(group, dtype=np.int64) for group in groups.values())


class PoissonSampler:
    """Draws units, each independently with probability `rate`; an endless iterator of their rows.

    units: the rows of each unit. Raises PrivacyError where the rate is outside 0..1 or a row is in two units.
    """

    def __init__(self, units: Sequence[IntArray | Sequence[int]], rate: float, seed: int | Any) -> None:
        if not 0.0 <= rate <= 1.0:
            raise PrivacyError(f"a sampling rate is a probability in 0..1, not `{rate}`")
        self.rate = rate
        self._units = [np.asarray(unit, dtype=np.int64) for unit in units]
        rows = _joined(self._units)
        if len(np.unique(rows)) != len(rows):
            raise PrivacyError(
                "a row belongs to two privacy units",
                help="give every private row one unit; rows of one person belong to that person's unit",
            )
        self._generator = np.random.default_rng(seed)
        self._remembered: deque[IntArray] | None = None

    @property
    def units(self) -> tuple[IntArray, ...]:
        """The rows of each unit."""
        return tuple(self._units)

    def remember(self) -> deque[IntArray]:
        """Return where draws are put from now on, for a governor that compares steps with them."""
        self._remembered = deque()
        return self._remembered

    def __iter__(self) -> Iterator[IntArray]:
        while True:
            yield self.draw()

    def draw(self) -> IntArray:
        """Return the rows of the units drawn for one step, int64, in the order of units; may be empty."""
        drawn = np.flatnonzero(self._generator.random(len(self._units)) < self.rate)
        rows = _joined([self._units[index] for index in drawn.tolist()])
        if self._remembered is not None:
            self._remembered.append(rows)
        return rows

    def part(self, drawn: IntArray, rank: int, size: int) -> IntArray:
        """Return the rows of a draw that one of `size` processes is to run: whole units, dealt in turn.

        Every process makes the same draws, from a sampler of the same seed, and takes its own part.
        """
        units = self._unit_of(drawn)
        turn = np.cumsum(np.diff(units, prepend=units[:1]) != 0)
        own: IntArray = drawn[turn % size == rank]
        return own

    def _unit_of(self, rows: IntArray) -> IntArray:
        """Return the number of each row's unit."""
        known = _joined(self._units)
        numbers = np.repeat(np.arange(len(self._units)), [len(unit) for unit in self._units])
        order = np.argsort(known)
        found: IntArray = numbers[order[np.searchsorted(known, rows, sorter=order)]]
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the random stream (JSON data). As secret as the seed."""
        return {"generator": self._generator.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a sampler was saved. If steps were taken after that, call `renew` as well."""
        self._generator.bit_generator.state = state["generator"]
        self._forget()

    def renew(self, seed: int | None = None) -> None:
        """Draw from a new stream; seed: None: from the operating system. Of several processes all give one.

        A resumed run whose saved state is older than its last step would draw the units of those steps again:
        two releases about the same units, where the accountant counts two independent draws.
        """
        self._generator = np.random.default_rng(seed)
        self._forget()

    def _forget(self) -> None:
        if self._remembered is not None:
            self._remembered.clear()


@dataclass(frozen=True, slots=True)
class MixedBatch:
    """The rows of one step. The number of private rows is itself private: never divide by it."""

    public: IntArray
    private: IntArray

    @property
    def rows(self) -> IntArray:
        return np.concatenate([self.public, self.private])


class MixedSampler:
    """Shuffled public batches, each joined by a Poisson draw of private units.

    One iteration is one epoch: ceil(public rows / batch size) steps; with no public rows, ceil(1 / rate)
    steps. Iterating again goes on with the next epoch; after `load_state_dict`, with the rest of the epoch
    that was interrupted. The order depends on the seed alone.
    """

    def __init__(
        self,
        public: IntArray | Sequence[int],
        units: Sequence[IntArray | Sequence[int]],
        *,
        batch_size: int,
        rate: float,
        seed: int,
    ) -> None:
        if batch_size < 1:
            raise PrivacyError(f"a batch has at least one row, not {batch_size}")
        self._public = np.asarray(public, dtype=np.int64)
        self._batch_size = batch_size
        self._shuffle_seed, private_seed = np.random.SeedSequence(seed).spawn(2)
        self._private = PoissonSampler(units, rate, private_seed)
        if not len(self._public) and rate == 0.0:
            raise PrivacyError("there is nothing to sample: no public rows, and a sampling rate of 0")
        self._steps = -(-len(self._public) // batch_size) if len(self._public) else int(np.ceil(1.0 / rate))
        self._private_rows = sum(len(unit) for unit in units)
        self.epoch = 0
        self._position = 0

    @property
    def public(self) -> IntArray:
        """The public rows."""
        return self._public

    @property
    def private(self) -> PoissonSampler:
        """What draws the private units."""
        return self._private

    def __len__(self) -> int:
        """The number of steps in an epoch."""
        return self._steps

    @property
    def normaliser(self) -> float:
        """The expected number of rows of a step: a constant to divide gradient sums by."""
        public = min(self._batch_size, len(self._public))
        return max(1.0, public + self._private.rate * self._private_rows)

    def __iter__(self) -> Iterator[MixedBatch]:
        order = self._order(self.epoch)
        while self._position < self._steps:
            start = self._position * self._batch_size
            # Advance first: the state saved while a batch is in use must point past it.
            self._position += 1
            yield MixedBatch(order[start : start + self._batch_size], self._private.draw())
        self.epoch += 1
        self._position = 0

    def part(self, batch: MixedBatch, rank: int, size: int) -> MixedBatch:
        """Return the rows of a batch that one of `size` processes is to run; see `PoissonSampler.part`."""
        return MixedBatch(batch.public[rank::size], self._private.part(batch.private, rank, size))

    def _order(self, epoch: int) -> IntArray:
        stream = np.random.SeedSequence(self._shuffle_seed.entropy, spawn_key=(0, epoch))
        return np.random.default_rng(stream).permutation(self._public)

    def state_dict(self) -> dict[str, Any]:
        """Return epoch, position and the private stream's position (JSON data). As secret as the seed."""
        return {"epoch": self.epoch, "position": self._position, "private": self._private.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a sampler over the same rows, with the same seed, was saved.

        If steps were taken after that, call `renew` as well.
        """
        self.epoch, self._position = state["epoch"], state["position"]
        self._private.load_state_dict(state["private"])

    def renew(self, seed: int | None = None) -> None:
        """Draw private units from a new stream (`PoissonSampler.renew`); the public order stays."""
        self._private.renew(seed)


def _joined(parts: Sequence[IntArray]) -> IntArray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
