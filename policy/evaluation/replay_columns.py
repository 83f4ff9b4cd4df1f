"""Replay of many recorded steps at once, column by column.

The truth of a leaf is worked out for all rows together. A decision is then a matter of the class and of the
truth of the dynamic leaves, and it is decided once for each such combination. Decisions that signals scale
are not judged here, and nothing is said of what is wrong: `replay` does both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gradwarden.policy.array_types import Array, BoolArray, Places
from gradwarden.policy.checking.types import MAX_COUNT, MAX_DAY, MIN_DAY
from gradwarden.policy.decision import Decision
from gradwarden.policy.evaluation.leaves import DynamicLeaves, signal_key, slot_key
from gradwarden.policy.evaluation.lookup import GrowingArray, Lookups
from gradwarden.policy.evaluation.outcomes import Modulated, invalid_class, outcomes_of
from gradwarden.policy.evaluation.partition import partition
from gradwarden.policy.evaluation.replay import Class
from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import Program

Agree: TypeAlias = Callable[[int, Decision], object]
"""Compares a decision with the one that is recorded under a number, and raises where they differ."""

MOST_OUTCOMES = 1_000_000
"""Combinations that are remembered; beyond it the memory is emptied and starts anew."""

_UNKNOWN, _SCALED = -1, -2
"""In place of the number under which an outcome was recorded: none is known yet; signals scale it."""


@frozen
class StepColumns:
    """Recorded inputs of S steps that spent no budget, and of their N examples, one step after the other.

    counts (of examples), steps, epochs, todays: [S]. classes: [N], numbers of declared classes. exposures,
    signals, slots: [N] each.
    """

    counts: Sequence[int]
    steps: Sequence[int]
    epochs: Sequence[int]
    todays: Sequence[int | None]
    classes: npt.NDArray[np.int32]
    exposures: npt.NDArray[np.int32] | None
    signals: Mapping[str, Array]
    slots: Mapping[str, Sequence[int | None]]


class ColumnReplayer:
    """Holds recorded decisions against those of one program, and remembers which were found to agree."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._outcomes = outcomes_of(program)
        parts = self._parts = partition(program)
        self._leaves = DynamicLeaves(parts)
        self._slots = [spec for spec in program.attributes if spec.name in parts.slots]
        self._signals = [spec for spec in program.signals if spec.name in parts.signals]
        self.forget()

    def forget(self) -> None:
        """Remember nothing: neither what classes were declared nor which decisions agreed."""
        self._declared: Sequence[Class] = ()
        self._invalid = GrowingArray(np.bool_)
        """Of each class: whether it has problems."""
        self._lookups = Lookups(len(self._leaves.rows), self._number)
        """From class and row leaves to the number of an outcome, by the truth of the clock leaves."""
        self._outcome: dict[Class, int] = {}
        """The number of each outcome: by the truth of all leaves, packed, or by problems."""
        self._meanings: list[Class] = []
        self._agreed = GrowingArray(np.int64)
        """Of each outcome: the number under which it was recorded first."""
        self._again: set[tuple[int, int]] = set()
        """Outcomes with other numbers under which they were recorded, too."""

    def doubtful(
        self,
        columns: StepColumns,
        declared: Sequence[Class],
        recorded: npt.NDArray[np.int32],
        agree: Agree,
    ) -> Places | None:
        """Return the places of rows of which it is left open whether their decisions are as recorded.

        Those of all others are. declared: classes by number; until `forget` is called it may only grow.
        recorded: [N], numbers of recorded decisions. agree: asked once for each combination, in the order of
        rows; what it raises ends the work. None where the columns hold what no run under the program records,
        or what only the slow way can judge.
        """
        if len(self._meanings) > MOST_OUTCOMES:
            self.forget()
        self._declared = declared
        known = self._invalid.count
        self._invalid.extend(np.array([isinstance(key, tuple) for key in declared[known:]], bool))
        clocks = self._clock_values(columns)
        rows = self._row_values(columns)
        if clocks is None or rows is None:
            return None
        outcomes = self._outcomes_of_rows(columns, clocks, rows)
        unlike = np.flatnonzero(self._agreed.array.take(outcomes) != recorded)
        if len(unlike):
            unlike = unlike[list(self._scaled(outcomes[unlike], recorded[unlike], agree))]
        return unlike

    def _clock_values(self, columns: StepColumns) -> dict[str, Array] | None:
        """Return what leaves read of clocks, [S] each."""
        if self._leaves.timeless:
            return {}
        if None in columns.todays and self._parts.uses_today:
            return None
        days = [today or 0 for today in columns.todays]
        for values, least, most in (
            (columns.steps, 0, MAX_COUNT),
            (columns.epochs, 0, MAX_COUNT),
            (days, MIN_DAY, MAX_DAY),
        ):
            if not least <= min(values, default=0) <= max(values, default=0) <= most:
                return None
        named = {"step": columns.steps, "epoch": columns.epochs, "today": days}
        return {name: np.array(values, np.int64) for name, values in named.items()}

    def _row_values(self, columns: StepColumns) -> dict[str, Array] | None:
        """Return what leaves read of examples, [N] each."""
        if columns.slots.keys() != {spec.name for spec in self._slots}:
            return None
        if columns.signals.keys() != {spec.name for spec in self._signals}:
            return None
        if (columns.exposures is not None) != self._parts.uses_exposures:
            return None
        invalid = self._invalid.array.take(columns.classes)
        values: dict[str, Array] = {}
        if columns.exposures is not None:
            values["exposures"] = columns.exposures.astype(np.int64)
        for signal in self._signals:
            column = values[signal_key(signal.name)] = columns.signals[signal.name]
            if not _within(column, signal.lo, signal.hi, invalid):
                return None
        for slot in self._slots:
            listed = columns.slots[slot.name]
            absent = np.array([value is None for value in listed], bool)
            try:
                column = np.array([value or 0 for value in listed], np.int64)
            except OverflowError:
                return None
            if not (slot.optional or (invalid | ~absent).all()):
                return None
            if not _within(column, slot.lo, slot.hi, invalid | absent):
                return None
            values[slot_key(slot.name)] = column
        return values

    def _outcomes_of_rows(
        self, columns: StepColumns, clocks: Mapping[str, Array], rows: dict[str, Array]
    ) -> npt.NDArray[np.int32]:
        """Return the number of each row's outcome, [N]."""
        counts = np.array(columns.counts, np.int64)
        for name in self._leaves.row_clocks:
            rows[name] = np.repeat(clocks[name], counts)
        bits = self._leaves.of_rows(rows)
        if not self._leaves.clocks:
            return self._lookups.at(0).find(columns.classes, bits, len(self._declared))
        truth = np.empty((len(counts), len(self._leaves.clocks)), bool)
        for place, leaf in enumerate(self._leaves.clocks):
            truth[:, place] = leaf({**clocks, "spent": frozenset()})
        states = [state.tobytes() for state in np.packbits(truth, axis=1, bitorder="little")]
        outcomes = np.empty(len(columns.classes), np.int32)
        for state in set(states):
            chosen = np.repeat([one == state for one in states], counts)
            some = [bit[chosen] if isinstance(bit, np.ndarray) else bit for bit in bits]
            lookup = self._lookups.at(int.from_bytes(state, "little"))
            outcomes[chosen] = lookup.find(columns.classes[chosen], some, len(self._declared))
        return outcomes

    def _number(self, number: int, clocks: int, leaves: int) -> int:
        """Return the number of the outcome of a class under the truth of the dynamic leaves."""
        key = self._declared[number]
        meaning = self._parts.word(key, clocks, leaves) if isinstance(key, int) else key
        known = self._outcome.get(meaning)
        if known is None:
            known = self._outcome[meaning] = len(self._meanings)
            self._meanings.append(meaning)
            self._agreed.extend(np.array([_UNKNOWN]))
        return known

    def _scaled(
        self, outcomes: npt.NDArray[np.int32], recorded: npt.NDArray[np.int32], agree: Agree
    ) -> Iterator[int]:
        """Hold outcomes against decisions not known to be theirs; yield the places of scaled ones."""
        agreed = self._agreed.array
        for place, (outcome, number) in enumerate(zip(outcomes.tolist(), recorded.tolist(), strict=True)):
            if agreed[outcome] == number or (outcome, number) in self._again:
                continue
            meaning = self._meanings[outcome]
            decision = (
                self._outcomes.of(meaning)
                if isinstance(meaning, int)
                else invalid_class(self._program, meaning)
            )
            if isinstance(decision, Modulated):
                agreed[outcome] = _SCALED
                yield place
                continue
            agree(number, decision)
            if agreed[outcome] == _UNKNOWN:
                agreed[outcome] = number
            else:
                self._again.add((outcome, number))


def _within(column: Array, least: int, most: int, exempt: BoolArray) -> bool:
    """Whether values lie between bounds, but where they are exempt."""
    if least <= column.min(initial=most) and column.max(initial=least) <= most:
        return True
    return bool((exempt | ((column >= least) & (column <= most))).all())
