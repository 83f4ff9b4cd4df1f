"""Replay of recorded decisions: from what a ledger holds to the decisions that the program gives.

A ledger records, per example of a step, its class (the truth of the partition's tests, or problems), the
values of slots, exposures and signals, and per step the clock and the spent budgets. Nothing else is needed.
A `Replayer` remembers every combination that it has met.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from itertools import repeat
from typing import Any, TypeAlias

from gradwarden.policy.decision import Decision
from gradwarden.policy.errors import GradwardenError
from gradwarden.policy.evaluation.arrays import CODES
from gradwarden.policy.evaluation.leaves import compile_leaf, signal_key, slot_key
from gradwarden.policy.evaluation.outcomes import invalid_class, outcomes_of
from gradwarden.policy.evaluation.partition import partition, reads_of
from gradwarden.policy.program import Program

Class: TypeAlias = int | tuple[tuple[str, str], ...]
"""The truth of the tests (bit i: test i), or (name, code) pairs of problems."""

MAX_REMEMBERED = 1_000_000
"""Combinations that are remembered; beyond it the memory is emptied and starts anew."""


class ReplayError(GradwardenError):
    """Recorded inputs that do not fit the program: no run under it can have written them."""

    code = "GW132"


class Replayer:
    """Gives the decisions of one program for recorded inputs."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._outcomes = outcomes_of(program)
        self._parts = partition(program)
        self._clocks = [compile_leaf(leaf) for leaf in self._parts.clocks]
        self._rows = [compile_leaf(leaf) for leaf in self._parts.rows]
        read = frozenset[str]().union(*(reads_of(leaf).clocks for leaf in self._parts.rows))
        self._row_clocks = tuple(sorted(read & {"step", "epoch", "today"}))
        self._slot_specs = {s.name: s for s in program.attributes if s.name in self._parts.slots}
        self._signal_specs = {s.name: s for s in program.signals if s.name in self._parts.signals}
        self._slot_keys = [slot_key(name) for name in self._parts.slots]
        self._signal_keys = [signal_key(name) for name in self._parts.signals]
        self._remembered: dict[tuple[int, ...], dict[tuple[Any, ...], Decision]] = {}
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
        self,
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
        self,
        classes: Sequence[Class],
        *,
        slots: Mapping[str, Sequence[int | None]],
        exposures: Sequence[int] | None,
        signals: Mapping[str, Sequence[int]],
        step: int,
        epoch: int,
        today: int | None,
        spent: Set[str],
        found: Callable[[int, Decision], None] | None = None,
    ) -> list[Decision]:
        """Return the decisions for the examples of one step.

        exposures, and each slot and signal, have one entry per example; exactly those that the program reads
        are given. found: called with the place of an example and its decision where that had to be worked
        out; what it raises ends the work, which a hostile ledger can make long. Raises ReplayError.
        """
        columns = self._columns(len(classes), slots, exposures, signals)
        clock: dict[str, Any] = {"step": step, "epoch": epoch, "today": self._day(today), "spent": spent}
        bits = sum(1 << i for i, leaf in enumerate(self._clocks) if leaf(clock))
        state = (bits, *(clock[name] for name in self._row_clocks))
        known = self._remembered.get(state)
        if known is None:
            known = self._remembered[state] = {}
        decisions: list[Decision] = []
        for key in zip(classes, *columns, strict=False):
            decision = known.get(key)
            if decision is None:
                decision = self._decide(key, bits, clock)
                self._remember(state, key, decision)
                if found is not None:
                    found(len(decisions), decision)
            decisions.append(decision)
        return decisions

    def _columns(
        self,
        count: int,
        slots: Mapping[str, Sequence[int | None]],
        exposures: Sequence[int] | None,
        signals: Mapping[str, Sequence[int]],
    ) -> list[Iterable[Any]]:
        """Return exposures, slots and signals in the order of a remembered key."""
        for what, given, read in (
            ("slots", slots, self._slot_specs),
            ("signals", signals, self._signal_specs),
        ):
            if given.keys() != read.keys():
                raise ReplayError(f"the {what} recorded are not those that the program reads")
        if (exposures is not None) != self._parts.uses_exposures:
            raise ReplayError("exposures are recorded where, and only where, the program reads them")
        columns: list[Sequence[Any]] = [slots[name] for name in self._parts.slots]
        columns += [signals[name] for name in self._parts.signals]
        if exposures is not None:
            columns.append(exposures)
        if any(len(column) != count for column in columns):
            raise ReplayError("exposures, slots and signals do not have one entry per example")
        first = repeat(0, count) if exposures is None else columns.pop()
        return [first, *columns]

    def _day(self, today: int | None) -> int:
        if today is None and self._parts.uses_today:
            raise ReplayError("the program reads the date, and none is recorded")
        return today or 0

    def _decide(self, key: tuple[Any, ...], bits: int, clock: Mapping[str, Any]) -> Decision:
        kind, exposures, *rest = key
        if isinstance(kind, tuple):
            return invalid_class(self.program, kind)
        if kind < 0 or kind >> len(self._parts.tests):
            raise ReplayError("a decision class has more bits than the program has tests")
        slots = rest[: len(self._slot_keys)]
        values = rest[len(self._slot_keys) :]
        self._check_values(exposures, slots, values)
        environment = dict(clock)
        environment["exposures"] = exposures
        environment.update(zip(self._slot_keys, [value or 0 for value in slots], strict=True))
        environment.update(zip(self._signal_keys, values, strict=True))
        rows = sum(1 << i for i, leaf in enumerate(self._rows) if leaf(environment))
        word = self._parts.word(kind, bits, rows)
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

    def _remember(self, state: tuple[int, ...], key: tuple[Any, ...], decision: Decision) -> None:
        self._size += 1
        if self._size > MAX_REMEMBERED:
            self._remembered.clear()
            self._size = 1
        self._remembered.setdefault(state, {})[key] = decision


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
    replayer = Replayer(program)
    return replayer.replay(bits_or_problems, slots, exposures, signals, step, epoch, today, spent)
