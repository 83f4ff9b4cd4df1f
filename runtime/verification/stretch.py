"""Judges many steps with their outcomes together, and only says whether all is well with them.

Nearly all entries of a run are steps and their outcomes in turn, and nearly always all is well. To ask each
question once of all of them takes a fraction of the time that `run_replay` needs to go from one to the next;
what is wrong, and where, is for that to say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwarden.policy.array_types import Numbers, Places
from gradwarden.policy.decision import VERDICTS, Decision, step_verdict
from gradwarden.policy.errors import GradwardenError
from gradwarden.policy.evaluation.replay import Class, Clock, Replayer
from gradwarden.policy.evaluation.replay_columns import ColumnReplayer, StepColumns
from gradwarden.policy.program import Program
from gradwarden.runtime.ledger.turns import Turns
from gradwarden.runtime.verification.outcome_audit import OutcomeAudit
from gradwarden.runtime.verification.violation import ViolationError

MOST_ROWS = 1 << 62
"""Different rows that can be told from each other by a number of 64 bits."""

ALL_VERDICTS = (1 << len(VERDICTS)) - 1

STEP_VERDICTS = [
    step_verdict({verdict for bit, verdict in enumerate(VERDICTS) if given >> bit & 1})
    for given in range(ALL_VERDICTS + 1)
]
"""The verdict of a step by the verdicts of its decisions (bit i: verdict i)."""


class Tables:
    """What has been declared so far.

    classes: by number. marks: of each decision by number, its verdict (bit i: verdict i) and, above these,
    the bands that it reaches (bit i: band i).
    """

    def __init__(self) -> None:
        self.classes: list[Class] = []
        self.marks: list[int] = []
        self._array: Numbers = np.zeros(0, np.int64)

    def add(self, verdict: str, reach: int) -> None:
        """Take the next decision. reach: the bands in which it lets some weight through."""
        self.marks.append(1 << VERDICTS.index(verdict) | reach << len(VERDICTS))

    def clear(self) -> None:
        """Number classes and decisions from 0."""
        self.__init__()  # type: ignore[misc]  # nothing is kept

    def array(self) -> Numbers | None:
        """Return the marks; None where one has more bits than a number of an array."""
        if len(self._array) != len(self.marks):
            try:
                self._array = np.array(self.marks, np.int64)
            except OverflowError:
                return None
        return self._array


@dataclass(frozen=True, slots=True)
class Judge:
    """What decides again under one program, and remembers the numbers of recorded decisions.

    rows: example by example. columns: many together, but for decisions that signals scale.
    """

    rows: Replayer[int]
    columns: ColumnReplayer

    @classmethod
    def of(cls, program: Program) -> Judge:
        return cls(Replayer(program), ColumnReplayer(program))

    def forget(self) -> None:
        """Take decisions and classes for numbered anew."""
        self.rows.forget()
        self.columns.forget()


@dataclass(frozen=True, slots=True)
class Stretch:
    """Steps with which all is well. learned: examples that shaped some band. active: the bands that
    some committed step has moved. decisions: how often each was taken, by number.
    """

    steps: int
    committed: int
    learned: int
    active: frozenset[str]
    decisions: Numbers


def judge_stretch(
    turns: Turns,
    due: int,
    tables: Tables,
    judge: Judge,
    outcomes: OutcomeAudit,
    agree: Callable[[int, Decision], int],
) -> Stretch | None:
    """Judge steps and their outcomes under a program without budgets; None where not all is well.

    due: the number of the first step. judge: remembers what was recorded so far. agree: compares a decision
    with the one that is recorded under a number, and returns the number.
    """
    steps, marks = len(turns.numbers), tables.array()
    numbers = list(range(due, due + steps))
    decisions = np.frombuffer(turns.decisions, np.intc)
    results = outcomes.read(turns.outcomes, turns.committed)
    if (
        marks is None
        or results is None
        or turns.numbers != numbers
        or results.steps != numbers
        or any(turns.spent)
        or decisions.max(initial=-1) >= len(marks)
        or not _decided(turns, tables.classes, judge, agree)
    ):
        return None
    marks = marks.take(decisions)
    counts, committed = np.array(turns.counts, np.int64), np.array(turns.committed, bool)
    given = _joined(marks, counts)
    if [STEP_VERDICTS[verdicts] for verdicts in (given & ALL_VERDICTS).tolist()] != turns.verdicts:
        return None
    moved = outcomes.hold(results, given[committed] >> len(VERDICTS), counts[committed])
    if moved is None:
        return None
    learned = int(((marks > ALL_VERDICTS) & np.repeat(committed, counts)).sum())
    active = frozenset(outcomes.named(moved))
    return Stretch(steps, len(results.active), learned, active, np.bincount(decisions))


def _joined(marks: Numbers, counts: Numbers) -> Numbers:
    """Return the marks of each step's decisions together, 0 for a step without examples."""
    joined = np.zeros(len(counts), np.int64)
    if len(marks):
        some = counts > 0
        joined[some] = np.bitwise_or.reduceat(marks, (np.cumsum(counts) - counts)[some])
    return joined


def _decided(
    turns: Turns, known: Sequence[Class], judge: Judge, agree: Callable[[int, Decision], int]
) -> bool:
    """Whether the decisions of steps are what the program gives."""
    columns = StepColumns(
        turns.counts,
        turns.numbers,
        turns.epochs,
        turns.todays,
        np.frombuffer(turns.classes, np.intc),
        None if turns.exposures is None else np.frombuffer(turns.exposures, np.intc),
        {name: np.frombuffer(values, np.int64) for name, values in turns.signals.items()},
        turns.slots,
    )
    recorded = np.frombuffer(turns.decisions, np.intc)
    if columns.classes.max(initial=-1) >= len(known):
        return False
    try:
        places = judge.columns.doubtful(columns, known, recorded, agree)
        if places is None:
            return False
        steps = np.repeat(np.arange(len(turns.counts)), turns.counts)[places]
        groups = defaultdict[Clock, list[int]](list)
        for step in np.unique(steps).tolist():
            clock = judge.rows.clock(turns.numbers[step], turns.epochs[step], turns.todays[step], frozenset())
            groups[clock].append(step)
        return all(
            _replayed(columns, recorded, places[np.isin(steps, group)], clock, known, judge.rows, agree)
            for clock, group in groups.items()
        )
    except (ViolationError, GradwardenError):
        return False


def _replayed(
    columns: StepColumns,
    recorded: npt.NDArray[np.int32],
    places: Places,
    clock: Clock,
    known: Sequence[Class],
    replayer: Replayer[int],
    agree: Callable[[int, Decision], int],
) -> bool:
    """Whether the decisions for some examples, of steps with the same clock, are what the program gives."""
    exposures, signals = columns.exposures, columns.signals
    read = [columns.classes, recorded, *signals.values(), *(() if exposures is None else (exposures,))]
    if not columns.slots:
        places = places[_distinct([column[places] for column in read])]
    numbers: list[int] = recorded[places].tolist()
    replayed = replayer.judge(
        list(map(known.__getitem__, columns.classes[places].tolist())),
        slots={name: [values[place] for place in places.tolist()] for name, values in columns.slots.items()},
        exposures=None if exposures is None else exposures[places].tolist(),
        signals={name: values[places].tolist() for name, values in signals.items()},
        clock=clock,
        judge=lambda place, decision: agree(numbers[place], decision),
    )
    return replayed == numbers


def _distinct(columns: Sequence[npt.NDArray[Any]]) -> Numbers | slice:
    """Return places of rows so that any other row is a copy of one of them; where that takes long, all."""
    key, size = np.zeros(len(columns[0]), np.int64), 1
    for column in columns if len(key) else ():
        least, greatest = int(column.min()), int(column.max())
        size *= greatest - least + 1
        if size > MOST_ROWS:
            return slice(None)
        key = key * (greatest - least + 1) + (column.astype(np.int64) - least)
    # The place goes along with the key; numpy sorts numbers several times as fast as it finds their order.
    bits = len(key).bit_length()
    if size << bits > MOST_ROWS:
        return slice(None)
    ordered = np.sort(key << bits | np.arange(len(key)))
    first = np.diff(ordered >> bits, prepend=-1) != 0
    places: Numbers = ordered[first] & ((1 << bits) - 1)
    return places
