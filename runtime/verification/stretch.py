"""Judges many steps with their outcomes together, and only says whether all is well with them.

Nearly all entries of a run are steps and their outcomes in turn, and nearly always all is well. To ask each
question once of all of them takes a fraction of the time that `run_replay` needs to go from one to the next;
what is wrong, and where, is for that to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import chain, compress, groupby
from operator import itemgetter, or_
from typing import Any

from gradwarden.policy.decision import VERDICTS, Decision, step_verdict
from gradwarden.policy.errors import GradwardenError
from gradwarden.policy.evaluation.replay import Class, Clock, Replayer
from gradwarden.runtime.ledger.entries import Entry
from gradwarden.runtime.verification.outcome_audit import OutcomeAudit
from gradwarden.runtime.verification.violation import ViolationError

_OUTCOMES = frozenset({"committed", "refused"})
_KINDS = _OUTCOMES | {"step"}

ALL_VERDICTS = (1 << len(VERDICTS)) - 1

STEP_VERDICTS = [
    step_verdict({verdict for bit, verdict in enumerate(VERDICTS) if given >> bit & 1})
    for given in range(ALL_VERDICTS + 1)
]
"""The verdict of a step by the verdicts of its decisions (bit i: verdict i)."""


@dataclass(frozen=True, slots=True)
class Tables:
    """What has been declared so far.

    classes: by number. marks: of each decision by number, its verdict (bit i: verdict i) and, above these,
    the bands that it reaches. reach: these bands alone (bit i: band i).
    """

    classes: list[Class] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    reach: list[int] = field(default_factory=list)

    def clear(self) -> None:
        """Number classes and decisions from 0."""
        for table in (self.classes, self.marks, self.reach):
            table.clear()


@dataclass(frozen=True, slots=True)
class Stretch:
    """Steps with which all is well. decisions: their numbers. learned: examples that shaped some band."""

    steps: int
    committed: int
    learned: int
    decisions: list[int]


def divide(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    """Divide entries into runs of whole steps with their outcomes, and what lies in between."""
    start = 0
    for place, entry in enumerate(entries):
        if entry.kind not in _KINDS:
            yield from _whole(entries[start:place])
            yield entries[place : place + 1]
            start = place + 1
    yield from _whole(entries[start:])


def _whole(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    """Set aside an outcome that comes first and a step that comes last."""
    first = bool(entries) and entries[0].kind != "step"
    last = len(entries) - (first < len(entries) and entries[-1].kind == "step")
    yield entries[:first]
    yield entries[first:last]
    yield entries[last:]


def judge_stretch(
    entries: Sequence[Entry],
    due: int,
    tables: Tables,
    replayer: Replayer[int],
    outcomes: OutcomeAudit,
    agree: Callable[[int, Decision], int],
) -> Stretch | None:
    """Judge steps and outcomes in turn, under a program without budgets; None where not all is well.

    due: the number of the first step. replayer: remembers numbers of recorded decisions. agree: compares a
    decision with the one that is recorded under a number, and returns the number.
    """
    starts, ends = entries[0::2], entries[1::2]
    in_turn = (
        len(starts) == len(ends)
        and {"step"}.issuperset([entry.kind for entry in starts])
        and _OUTCOMES.issuperset([entry.kind for entry in ends])
    )
    if not in_turn:
        return None
    steps, results = [entry.body for entry in starts], [entry.body for entry in ends]
    numbers, decisions = list(range(due, due + len(steps))), _joined(steps, "decision")
    if (
        _column(steps, "step") != numbers
        or _column(results, "step") != numbers
        or any(_column(steps, "spent"))
        or max(decisions, default=-1) >= len(tables.marks)
        or not _decided(steps, tables.classes, replayer, agree)
    ):
        return None
    mark = tables.marks.__getitem__
    marks = [reduce(or_, map(mark, set(step["decision"])), 0) for step in steps]
    if [STEP_VERDICTS[given & ALL_VERDICTS] for given in marks] != _column(steps, "verdict"):
        return None
    done = [entry.kind == "committed" for entry in ends]
    committed = list(compress(results, done))
    reached = [given >> len(VERDICTS) for given in compress(marks, done)]
    if any(_column(committed, "privacy")) or not outcomes.hold(committed, reached):
        return None
    weights = map(tables.reach.__getitem__, _joined(compress(steps, done), "decision"))
    return Stretch(len(steps), len(committed), len(list(filter(None, weights))), decisions)


def _decided(
    steps: Sequence[Mapping[str, Any]],
    known: Sequence[Class],
    replayer: Replayer[int],
    agree: Callable[[int, Decision], int],
) -> bool:
    """Whether the decisions of steps are what the program gives."""
    try:
        clocks = [replayer.clock(step["step"], step["epoch"], step["today"], frozenset()) for step in steps]
        return all(
            _replayed([step for _, step in group], clock, known, replayer, agree)
            for clock, group in groupby(zip(clocks, steps, strict=True), itemgetter(0))
        )
    except (ViolationError, GradwardenError):
        return False


def _replayed(
    steps: Sequence[Mapping[str, Any]],
    clock: Clock,
    known: Sequence[Class],
    replayer: Replayer[int],
    agree: Callable[[int, Decision], int],
) -> bool:
    """Whether the decisions of steps with the same clock are what the program gives."""
    numbers, recorded = _joined(steps, "classes"), _joined(steps, "decision")
    slots, signals, exposures = (_column(steps, name) for name in ("slots", "signals", "exposures"))
    alike = (
        len(set(map(tuple, slots))) == len(set(map(tuple, signals))) == len(set(map(type, exposures))) == 1
    )
    if not alike or max(numbers, default=-1) >= len(known):
        return False
    replayed = replayer.judge(
        list(map(known.__getitem__, numbers)),
        slots={name: _joined(slots, name) for name in slots[0]},
        exposures=None if exposures[0] is None else list(chain.from_iterable(exposures)),
        signals={name: _joined(signals, name) for name in signals[0]},
        clock=clock,
        judge=lambda place, decision: agree(recorded[place], decision),
    )
    return replayed == recorded


def _column(bodies: Iterable[Mapping[str, Any]], name: str) -> list[Any]:
    return list(map(itemgetter(name), bodies))


def _joined(bodies: Iterable[Mapping[str, Any]], name: str) -> list[Any]:
    return list(chain.from_iterable(map(itemgetter(name), bodies)))
