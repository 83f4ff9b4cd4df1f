"""When the decisions of a program change, by its text: on which days, at which steps and epochs.

A policy is piecewise constant in time. Its comparisons of a clock with constants (*fixed* ones) turn at times
that can be listed; those are the candidates. A candidate is kept where some example, in some context, is
decided otherwise from then on because of a fixed comparison: all others that read the clock are held as they
were. Those that also read an example or another clock turn at times of their own (`moving`); for a given data
set, `data_calendar` finds these too. Paces, by which decisions change every few steps, are left out.

With z3 the search over all examples and contexts is exact, by the encoding that proofs use. Without it, what
interval reasoning cannot exclude is listed as something that *may* change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gradwarden.policy.checking.types import MAX_COUNT, MAX_DAY, MIN_DAY
from gradwarden.policy.comparing.bounds import Bounds
from gradwarden.policy.comparing.moments import Clock, comparisons, direction, fixed_turns, is_fixed
from gradwarden.policy.comparing.parts import Part, parts_of
from gradwarden.policy.evaluation.partition import reads_of
from gradwarden.policy.paces import unpaced
from gradwarden.policy.program import Compare, Program

if TYPE_CHECKING:
    from gradwarden.policy.comparing.sides import Sides
    from gradwarden.policy.proving.witness import Witness

Method = Literal["solver", "intervals"]


@dataclass(frozen=True, slots=True)
class Change:
    """What a part of a rule does at one time.

    begins, ends: it begins, ceases to apply to some example whose decision changes. wider, narrower: bands
    that get more, less where it does; None where nothing was found out about them.
    """

    kind: str
    name: str
    effect: str
    begins: bool
    ends: bool
    wider: tuple[str, ...] | None = None
    narrower: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """A time at which decisions change, or may change where that is not certain.

    at: days since 1970-01-01, a step or an epoch. witness: an example whose decision changes, on this side.
    """

    at: int
    certain: bool
    changes: tuple[Change, ...]
    witness: Witness | None = None


@dataclass(frozen=True, slots=True)
class Moving:
    """A comparison of a rule that turns at times which depend on the example or on another clock."""

    kind: str
    name: str
    effect: str
    comparison: Compare


@dataclass(frozen=True, slots=True)
class Calendar:
    """The turns of one clock, in order, and what turns at no fixed times. method: how turns were decided."""

    clock: Clock
    turns: tuple[Turn, ...]
    moving: tuple[Moving, ...]
    method: Method


@dataclass(frozen=True, slots=True)
class Candidate:
    """A time at which fixed comparisons turn, and the parts of enforced rules that hold them."""

    at: int
    parts: tuple[tuple[Part, bool, bool], ...]
    """(part, whether it may begin, whether it may end)"""


def calendar_of(
    program: Program, clock: Clock, first: int, last: int, *, use_solver: bool = True, timeout: float = 10.0
) -> Calendar:
    """Return the calendar of one clock from `first` to `last`, both included.

    `use_solver`: whether to search with z3 where it is installed; `timeout`: seconds per question to it. A
    question that it gives up on leaves a turn that may change.
    """
    program = unpaced(program)
    least = MIN_DAY if clock == "today" else 0
    candidates = list(_candidates(program, clock, max(first, least + 1), min(last, _greatest(clock))))
    sides = _solver(program, clock, timeout) if use_solver and candidates else None
    if sides is None:
        turns = [uncertain(candidate) for candidate in candidates]
    else:
        turns = [turn for candidate in candidates if (turn := sides.decide(candidate))]
    return Calendar(
        clock=clock,
        turns=tuple(turns),
        moving=tuple(_moving(program, clock)),
        method="solver" if use_solver and has_solver() else "intervals",
    )


def has_solver() -> bool:
    """Return whether z3 is installed."""
    from importlib.util import find_spec

    return find_spec("z3") is not None


def _solver(program: Program, clock: Clock, timeout: float) -> Sides | None:
    if not has_solver():
        return None
    from gradwarden.policy.comparing.sides import Sides

    return Sides(program, clock, timeout)


def _greatest(clock: Clock) -> int:
    return MAX_DAY if clock == "today" else MAX_COUNT


def _candidates(program: Program, clock: Clock, first: int, last: int) -> Iterator[Candidate]:
    """Yield the times at which interval reasoning cannot exclude a change."""
    fixed = [leaf for leaf in comparisons(program, clock) if is_fixed(leaf, clock)]
    parts = [part for part in parts_of(program) if part.level == "hard"]
    held = [(part, list(part.comparisons())) for part in parts]
    for at in sorted({turn for leaf in fixed for turn in fixed_turns(leaf, clock, first, last)}):
        turning = {leaf: way for leaf in fixed if (way := direction(leaf, clock, at))}
        before, after = (Bounds(program, {clock: (t, t)}) for t in (at - 1, at))
        affected = []
        for part, leaves in held:
            ways = {turning[leaf] * (1 if positive else -1) for leaf, positive in leaves if leaf in turning}
            pairs = [(before.truth(c), after.truth(c)) for c in part.conditions] if ways else []
            begins = 1 in ways and any(old is not True and new is not False for old, new in pairs)
            ends = -1 in ways and any(old is not False and new is not True for old, new in pairs)
            if begins or ends:
                affected.append((part, begins, ends))
        if affected:
            yield Candidate(at, tuple(affected))


def uncertain(candidate: Candidate) -> Turn:
    """Return what is known of a candidate without a solver."""
    changes = [Change(p.kind, p.name, p.effect, begins, ends) for p, begins, ends in candidate.parts]
    return Turn(candidate.at, certain=False, changes=tuple(changes))


def _moving(program: Program, clock: Clock) -> Iterator[Moving]:
    for part in parts_of(program):
        for leaf in dict.fromkeys(leaf for leaf, _ in part.comparisons()):
            if part.level == "hard" and not is_fixed(leaf, clock) and clock in reads_of(leaf).clocks:
                yield Moving(part.kind, part.name, part.effect, leaf)
