"""Replay of recorded decisions: from what a ledger holds to the decisions that the program gives.

A ledger records, per example of a step, its class (the truth of the partition's tests, or problems), the
values of slots, exposures and signals, and per step the clock and the spent budgets. Nothing else is needed.
A `Replayer` remembers every combination that it has met, and what was made of its decision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar, cast

from gradwarden.policy.decision import Decision
from gradwarden.policy.errors import GradwardenError
from gradwarden.policy.evaluation.arrays import CODES
from gradwarden.policy.evaluation.leaves import DynamicLeaves, signal_key, slot_key
from gradwarden.policy.evaluation.outcomes import invalid_class, outcomes_of
from gradwarden.policy.evaluation.partition import partition
from gradwarden.policy.program import Program

Class: TypeAlias = int | tuple[tuple[str, str], ...]
"""The truth of the tests (bit i: test i), or (name, code) pairs of problems."""

Judged = TypeVar("Judged")
"""What is remembered of a decision: the decision itself, or what its reader made of it."""

MAX_REMEMBERED = 1_000_000
"""Combinations that are remembered; beyond it the memory is emptied and starts anew."""

_SLOT_TYPES = frozenset({int, type(None)})


class ReplayError(GradwardenError):
    """Recorded inputs that do not fit the program: no run under it can have written them."""

    code = "GW132"


@dataclass(frozen=True, slots=True)
class Clock:
    """What a step contributes to its decisions; equal clocks contribute the same.

    state: the truth of the clock leaves, packed, and what row leaves read. values: what leaves read.
    """

    state: tuple[int, ...]
    values: Mapping[str, Any] = field(compare=False)


_TIMELESS = Clock((0,), {})
"""The clock of a program that reads none."""


class Replayer(Generic[Judged]):
    """Gives the decisions of one program for recorded inputs, or what is made of them (`judge`)."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._outcomes = outcomes_of(program)
        self._parts = partition(program)
        self._leaves = DynamicLeaves(self._parts)
        self._slot_specs = {s.name: s for s in program.attributes if s.name in self._parts.slots}
        self._signal_specs = {s.name: s for s in program.signals if s.name in self._parts.signals}
        self._slot_keys = [slot_key(name) for name in self._parts.slots]
        self._signal_keys = [signal_key(name) for name in self._parts.signals]
        self._remembered: dict[tuple[int, ...], dict[tuple[Any, ...], Judged]] = {}
        self._size = 0

    def forget(self) -> None:
        """Remember nothing of what was made of decisions so far."""
        self._remembered.clear()
        self._size = 0

    def class_of(self, body: Mapping[str, Any]) -> Class:
        """Return the class that a ledger's `classes` entry describes. Raises ReplayError."""
        bits = body.get("bits")
        if bits is None:
            return self._checked_problems(body.get("problems"))
        try:
            value = int(bits, 16)
        except (TypeError, ValueError):
            raise ReplayError("the bits of a decision class are no hexadecimal number") from None
        if f"{value:x}" != bits or value >> len(self._parts.tests):
            raise ReplayError(
                f"a decision class has other bits than the {len(self._parts.tests)} tests of the program"
            )
        return value

    def replay(
        self: Replayer[Decision],
        bits_or_problems: Class,
        slots: Mapping[str, int | None],
        exposures: int | None,
        signals: Mapping[str, int],
        step: int,
        epoch: int,
        today: int | None,
        spent: Set[str],
    ) -> Decision:
        """Return the decision for one example. Raises ReplayError."""
        decisions = self.replay_step(
            [bits_or_problems],
            slots={name: [value] for name, value in slots.items()},
            exposures=None if exposures is None else [exposures],
            signals={name: [value] for name, value in signals.items()},
            step=step,
            epoch=epoch,
            today=today,
            spent=spent,
        )
        return decisions[0]

    def replay_step(
        self: Replayer[Decision],
        classes: Sequence[Class],
        *,
        slots: Mapping[str, Sequence[int | None]],
        exposures: Sequence[int] | None,
        signals: Mapping[str, Sequence[int]],
        step: int,
        epoch: int,
        today: int | None,
        spent: Set[str],
    ) -> list[Decision]:
        """Return the decisions for the examples of one step. See `judge`."""
        return self.judge(
            classes,
            slots=slots,
            exposures=exposures,
            signals=signals,
            clock=self.clock(step, epoch, today, spent),
            judge=lambda _, decision: decision,
        )

    def clock(self, step: int, epoch: int, today: int | None, spent: Set[str]) -> Clock:
        """Return a step's share in its decisions. Raises ReplayError."""
        if today is None and self._parts.uses_today:
            raise ReplayError("the program reads the date, and none is recorded")
        if self._leaves.timeless:
            return _TIMELESS
        values: dict[str, Any] = {"step": step, "epoch": epoch, "today": today or 0, "spent": spent}
        bits = self._leaves.of_clocks(values)
        return Clock((bits, *[values[name] for name in self._leaves.row_clocks]), values)

    def judge(
        self,
        classes: Sequence[Class],
        *,
        slots: Mapping[str, Sequence[int | None]],
        exposures: Sequence[int] | None,
        signals: Mapping[str, Sequence[int]],
        clock: Clock,
        judge: Callable[[int, Decision], Judged],
    ) -> list[Judged]:
        """Return what `judge` makes of the decision for each example, of one step or of several.

        exposures, and each slot and signal, have one entry per example; exactly those that the program reads
        are given. clock: the same for all the steps. judge: given the place of an example and its decision
        where that had to be worked out, and not asked again for the same combination; what it raises ends the
        work, which a hostile ledger can make long. Raises ReplayError.
        """
        columns = self._columns(len(classes), slots, exposures, signals)
        try:
            keys = list(zip(classes, *columns, strict=True))
        except ValueError:
            raise ReplayError("exposures, slots and signals do not have one entry per example") from None
        known = self._remembered.get(clock.state, {})
        try:
            return list(map(known.__getitem__, keys))
        except KeyError:
            found: list[Judged | None] = list(map(known.get, keys))
        place = -1
        for _ in range(found.count(None)):
            place = found.index(None, place + 1)
            found[place] = self._judged(keys[place], place, clock, judge)
        return cast("list[Judged]", found)

    def _judged(
        self,
        key: tuple[Any, ...],
        place: int,
        clock: Clock,
        judge: Callable[[int, Decision], Judged],
    ) -> Judged:
        """Return what is remembered of a combination, or else have it judged."""
        known = self._remembered.setdefault(clock.state, {})
        if key not in known:
            judged = judge(place, self._decide(key, clock))
            self._size += 1
            if self._size > MAX_REMEMBERED:
                self.forget()
                known = self._remembered[clock.state] = {}
            known[key] = judged
        return known[key]

    def _columns(
        self,
        count: int,
        slots: Mapping[str, Sequence[int | None]],
        exposures: Sequence[int] | None,
        signals: Mapping[str, Sequence[int]],
    ) -> list[Sequence[Any]]:
        """Return exposures, slots and signals in the order of a remembered key."""
        if slots.keys() != self._slot_specs.keys():
            raise ReplayError("the slots recorded are not those that the program reads")
        if signals.keys() != self._signal_specs.keys():
            raise ReplayError("the signals recorded are not those that the program reads")
        if (exposures is not None) != self._parts.uses_exposures:
            raise ReplayError("exposures are recorded where, and only where, the program reads them")
        columns: list[Sequence[Any]] = [[0] * count if exposures is None else exposures]
        for name in self._parts.slots:
            # True is equal to 1, and would be taken for it where that is remembered.
            if not _SLOT_TYPES.issuperset(map(type, slots[name])):
                raise ReplayError(f"a recorded value of `{name}` is none that the program declares")
            columns.append(slots[name])
        columns += [signals[name] for name in self._parts.signals]
        return columns

    def _decide(self, key: tuple[Any, ...], clock: Clock) -> Decision:
        kind, exposures, *rest = key
        if isinstance(kind, tuple):
            return invalid_class(self.program, kind)
        if kind < 0 or kind >> len(self._parts.tests):
            raise ReplayError("a decision class has more bits than the program has tests")
        slots = rest[: len(self._slot_keys)]
        values = rest[len(self._slot_keys) :]
        self._check_values(exposures, slots, values)
        environment = dict(clock.values)
        environment["exposures"] = exposures
        environment.update(zip(self._slot_keys, [value or 0 for value in slots], strict=True))
        environment.update(zip(self._signal_keys, values, strict=True))
        rows = sum(1 << place for place, truth in enumerate(self._leaves.of_rows(environment)) if truth)
        word = self._parts.word(kind, clock.state[0], rows)
        return self._outcomes.decide(word, dict(zip(self._parts.signals, values, strict=True)))

    def _check_values(self, exposures: object, slots: list[Any], signals: list[Any]) -> None:
        if type(exposures) is not int or exposures < 0:
            raise ReplayError("an exposure count is not a whole number from 0 on")
        for name, value in zip(self._parts.slots, slots, strict=True):
            spec = self._slot_specs[name]
            if value is None and spec.optional:
                continue
            if type(value) is not int or not spec.lo <= value <= spec.hi:
                raise ReplayError(f"a recorded value of `{name}` is none that the program declares")
        for name, value in zip(self._parts.signals, signals, strict=True):
            bounds = self._signal_specs[name]
            if type(value) is not int or not bounds.lo <= value <= bounds.hi:
                raise ReplayError(f"a recorded value of the signal `{name}` is outside its bounds")

    def _checked_problems(self, problems: object) -> Class:
        pairs = [tuple(pair) for pair in problems] if isinstance(problems, list) else []
        known = CODES[1:]
        if not pairs or any(len(p) != 2 or not isinstance(p[0], str) or p[1] not in known for p in pairs):
            raise ReplayError("a decision class has neither bits nor problems that are known")
        return tuple((str(name), str(code)) for name, code in pairs)


def replay(
    program: Program,
    bits_or_problems: Class,
    slots: Mapping[str, int | None],
    exposures: int | None,
    signals: Mapping[str, int],
    step: int,
    epoch: int,
    today: int | None,
    spent: Set[str],
) -> Decision:
    """Return the decision for one example from recorded inputs alone; for many, keep a `Replayer`."""
    replayer = Replayer[Decision](program)
    return replayer.replay(bits_or_problems, slots, exposures, signals, step, epoch, today, spent)
