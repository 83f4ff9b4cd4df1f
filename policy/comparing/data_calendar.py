"""On which days the decisions on a data set's examples change, and for how many: exact, in columns.

Examples of one static class that agree in all slots (`partition`) are decided alike on every day, so each
kind is looked at once, with the number of its examples. For each kind the comparisons that read `today` give
candidate days (`moments`); the kind is decided on the candidate and on the day before. Between candidates
nothing that a decision depends on changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwarden.policy.comparing.changes import Difference, difference
from gradwarden.policy.comparing.dated import DAY, dated
from gradwarden.policy.comparing.moments import NEVER, comparisons, is_linear, turns
from gradwarden.policy.context import EPOCH_DAY, Context
from gradwarden.policy.errors import GradwardenError
from gradwarden.policy.evaluation.arrays import EncodedColumn
from gradwarden.policy.evaluation.batch import Decisions, decide_columns
from gradwarden.policy.evaluation.classes import number_rows
from gradwarden.policy.evaluation.columns import Columns
from gradwarden.policy.evaluation.inputs import read_inputs
from gradwarden.policy.evaluation.partition import partition
from gradwarden.policy.evaluation.tape import RowInputs, Tape
from gradwarden.policy.program import AttributeValue, ClockValue, NumericExpr, Program, SignalValue

MAX_PAIRS = 1 << 18
"""Kinds of examples times candidate days that are decided at once."""

MAX_EVERY_DAY = 4_000
"""The longest range, in days, over which a program without listable turns is decided on every day."""

Ints = npt.NDArray[np.int64]


class RangeError(GradwardenError):
    """A range of days that cannot be searched."""

    code = "GW133"


@dataclass(slots=True)
class DayCount:
    """What changes on one day, in numbers of examples.

    directions: by `Direction`. wider, narrower: by band. begins, ends, restored, lifted: by rule, see
    `Difference`.
    """

    directions: Counter[str] = field(default_factory=Counter)
    opened: int = 0
    refused: int = 0
    wider: Counter[str] = field(default_factory=Counter)
    narrower: Counter[str] = field(default_factory=Counter)
    begins: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    restored: Counter[str] = field(default_factory=Counter)
    lifted: Counter[str] = field(default_factory=Counter)

    @property
    def examples(self) -> int:
        return self.directions.total()

    def add(self, found: Difference, examples: int) -> None:
        self.directions[found.direction] += examples
        self.opened += examples * found.opened
        self.refused += examples * found.refused
        for counter, names in (
            (self.wider, found.wider),
            (self.narrower, found.narrower),
            (self.begins, found.begins),
            (self.ends, found.ends),
            (self.restored, found.restored),
            (self.lifted, found.lifted),
        ):
            for name in names:
                counter[name] += examples


class DataCalendar:
    """Gathers, piece by piece, the days from `first` to `last` (both included) on which decisions change.

    The context gives step, epoch, exposures, signals (single values) and spent budgets; its date is not
    looked at. `days` maps days since 1970-01-01 to what changes on them. Memory grows with the number of such
    days alone. Raises RangeError where the program's turns cannot be listed and the range is too long.
    """

    def __init__(self, program: Program, context: Context, first: int, last: int) -> None:
        self.program = program
        self.days: dict[int, DayCount] = {}
        self.examples = 0
        self.invalid = 0
        self._context = replace(context, at=EPOCH_DAY)
        self._first, self._last = first, last
        self._dated = dated(program)
        self._parts = partition(program)
        leaves = list(comparisons(program, "today"))
        self._linear = [leaf for leaf in leaves if is_linear(leaf, "today")]
        self._every_day = len(self._linear) < len(leaves)
        if self._every_day and last - first > MAX_EVERY_DAY:
            raise RangeError(
                "the program multiplies dates by each other, so every day must be tried",
                help=f"give a range of at most {MAX_EVERY_DAY:,} days",
            )

    def add(self, columns: Columns) -> None:
        """Count the changes of the examples of a piece."""
        inputs, faults = read_inputs(self.program, self._context, columns.count)
        valid = np.ones(columns.count, bool)
        valid[columns.invalid_rows] = False
        if faults:  # one value of a signal is given for all examples, and it cannot be used
            valid[:] = False
        self.examples += columns.count
        self.invalid += int(columns.count - valid.sum())
        if not valid.any():
            return
        rows, sizes = self._kinds(columns, inputs, np.flatnonzero(valid))
        per_row = max(1, 2 * len(self._linear) + self._every_day * (self._last - self._first + 1))
        at_once = max(1, MAX_PAIRS // per_row)
        for start in range(0, len(rows), at_once):
            some = rows[start : start + at_once]
            which, days = self._candidates(columns, inputs, some)
            self._decide(columns, some[which], days, sizes[start : start + at_once][which])

    def _kinds(self, columns: Columns, inputs: RowInputs, valid: npt.NDArray[np.intp]) -> tuple[Any, Ints]:
        """Return one row of each kind of example, and how many examples are of that kind."""
        classes, _ = number_rows(Tape(columns, inputs, self._parts.tests), columns.count)
        kinds = classes[valid].astype(np.int64)
        for name in self._parts.slots:  # an absent value counts as 0; whether it is there, the class knows
            kinds = _joined(kinds, columns.encoded[name].values[valid].astype(np.int64))
        _, first, sizes = np.unique(kinds, return_index=True, return_counts=True)
        return valid[first], sizes.astype(np.int64)

    def _candidates(
        self, columns: Columns, inputs: RowInputs, rows: npt.NDArray[np.intp]
    ) -> tuple[npt.NDArray[np.intp], Ints]:
        """Return pairs (index into rows, day), each once, of all candidates within the range."""
        values: dict[NumericExpr, Any] = {
            ClockValue("step"): inputs.step,
            ClockValue("epoch"): inputs.epoch,
            ClockValue("exposures"): inputs.exposures,
        }
        values |= {SignalValue(name): value for name, value in inputs.signals.items()}
        for name in self._parts.slots:
            values[AttributeValue(name)] = columns.encoded[name].values[rows].astype(np.int64)
        found = [
            np.broadcast_to(turn, len(rows)) for leaf in self._linear for turn in turns(leaf, "today", values)
        ]
        if self._every_day:
            found += [np.full(len(rows), day) for day in range(self._first, self._last + 1)]
        if not found:
            return np.empty(0, np.intp), np.empty(0, np.int64)
        table = np.sort(np.stack(found, axis=1), axis=1)
        wanted = (table != NEVER) & (table >= self._first) & (table <= self._last)
        wanted[:, 1:] &= table[:, 1:] != table[:, :-1]
        which, place = np.nonzero(wanted)
        return which, table[which, place]

    def _decide(self, columns: Columns, rows: npt.NDArray[np.intp], days: Ints, sizes: Ints) -> None:
        """Decide rows on their days and on the days before, and count what differs."""
        for start in range(0, len(rows), MAX_PAIRS):
            stop = start + MAX_PAIRS
            self._compare(columns, rows[start:stop], days[start:stop], sizes[start:stop])

    def _compare(self, columns: Columns, rows: npt.NDArray[np.intp], days: Ints, sizes: Ints) -> None:
        count = len(rows)
        both = _taken(columns, np.concatenate((rows, rows)), np.concatenate((days - 1, days)), self._dated)
        decisions = decide_columns(self._dated, both, self._context)
        before, after = decisions.class_ids[:count], decisions.class_ids[count:]
        differ = np.flatnonzero(before != after)
        for day, pair, examples in _grouped(days[differ], before[differ], after[differ], sizes[differ]):
            place = int(differ[pair])
            found = _difference(decisions, place, count)
            if found:
                self.days.setdefault(day, DayCount()).add(found, examples)


def _difference(decisions: Decisions, place: int, count: int) -> Difference | None:
    return difference(decisions.decision(place), decisions.decision(count + place))


def _joined(high: Ints, low: Ints) -> Ints:
    """Return one key for pairs of keys: equal where both are. Numbered anew, so that nothing overflows."""
    a, b = (np.unique(key, return_inverse=True)[1].reshape(-1) for key in (high, low))
    return a.astype(np.int64) * (int(b.max(initial=0)) + 1) + b


def _grouped(days: Ints, before: Any, after: Any, sizes: Ints) -> Iterator[tuple[int, int, int]]:
    """Yield (day, index of one of them, number of examples) for pairs of classes that meet on a day."""
    keys = _joined(days, _joined(before.astype(np.int64), after.astype(np.int64)))
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    totals = np.zeros(len(first), np.int64)
    np.add.at(totals, which.reshape(-1), sizes)
    for index, total in zip(first.tolist(), totals.tolist(), strict=True):
        yield int(days[index]), index, total


def _taken(columns: Columns, rows: npt.NDArray[np.intp], days: Ints, program: Program) -> Columns:
    """Return rows of valid examples, each with a day."""
    encoded = {name: _taken_column(column, rows) for name, column in columns.encoded.items()}
    encoded[DAY] = EncodedColumn(days.astype(np.int32))
    return Columns(program.attributes, len(rows), encoded, {}, {})


def _taken_column(column: EncodedColumn, rows: npt.NDArray[np.intp]) -> EncodedColumn:
    present = None if column.present is None else column.present[rows]
    return EncodedColumn(column.values[rows], present, None, column.dictionary)
