"""Where comparisons with a clock turn: the candidates for dates, steps and epochs at which decisions change.

A comparison `left op right` that reads a clock t is the sign of left - right. Where that difference is
linear in t, its sign changes only around its root, so that a comparison has at most two *turns*: values of t
at which its truth may differ from that at t - 1. Turns are candidates, no more: whether a decision changes
there is for others to find out. What the checker accepts is linear in `today` (it multiplies no duration by
another); a difference of a higher degree, which only a hand-made program has, has no turns that could be
listed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias, assert_never

import numpy as np

from gradwarden.policy.evaluation.evaluate import compare
from gradwarden.policy.evaluation.partition import partition, reads_of
from gradwarden.policy.program import (
    Arithmetic,
    AttributeValue,
    ClockValue,
    Compare,
    Number,
    NumericExpr,
    Program,
    SignalValue,
)

Clock: TypeAlias = Literal["today", "step", "epoch"]

CLOCKS: tuple[Clock, ...] = ("today", "step", "epoch")

Values: TypeAlias = Mapping[NumericExpr, Any]
"""What attributes, signals and clocks are worth: ints, or int64 arrays with one entry per example."""


def comparisons(program: Program, clock: Clock) -> Iterator[Compare]:
    """Yield the distinct comparisons of a program that read a clock."""
    parts = partition(program)
    for leaf in (*parts.clocks, *parts.rows):
        if isinstance(leaf, Compare) and clock in reads_of(leaf).clocks:
            yield leaf


def is_fixed(leaf: Compare, clock: Clock) -> bool:
    """Return whether a comparison turns at the same times for all examples, and these can be listed.

    So it is where it reads the clock and constants alone. A difference of a higher degree is tried on every
    day; over steps and epochs, which have no such bounds, it counts as not fixed.
    """
    reads = reads_of(leaf)
    alone = not reads.attributes and not reads.signals and reads.clocks == {clock}
    return alone and (clock == "today" or is_linear(leaf, clock))


def degree(expression: NumericExpr, clock: Clock) -> int:
    """Return an upper bound of the degree of an expression in a clock."""
    match expression:
        case Number() | AttributeValue() | SignalValue():
            return 0
        case ClockValue(name):
            return int(name == clock)
        case Arithmetic("mul", left, right):
            return degree(left, clock) + degree(right, clock)
        case Arithmetic(_, left, right):
            return max(degree(left, clock), degree(right, clock))
        case _:
            assert_never(expression)


def is_linear(leaf: Compare, clock: Clock) -> bool:
    return max(degree(leaf.left, clock), degree(leaf.right, clock)) <= 1


def value_of(expression: NumericExpr, values: Values) -> Any:
    """Return the value of an expression; `values` has an entry for all that it reads."""
    match expression:
        case Number(value):
            return value
        case Arithmetic(op, left, right):
            a, b = value_of(left, values), value_of(right, values)
            return a + b if op == "add" else a - b if op == "sub" else a * b
        case _:
            return values[expression]


def turns(leaf: Compare, clock: Clock, values: Values) -> tuple[Any, Any]:
    """Return the two values of a clock at which a linear comparison may turn (they may coincide).

    With arrays in `values`, arrays: an example whose difference does not depend on the clock gets
    `NEVER`. The difference is c * t + r; with q = floor(-r / c) its sign is constant up to q - 1 and from
    q + 1 on, so that the truth can change at q and q + 1 only.
    """
    now = ClockValue(clock)
    at_0, at_1 = (_difference(leaf, {**values, now: t}) for t in (0, 1))
    slope = np.asarray(at_1 - at_0, np.int64)
    steady = slope == 0
    root = np.where(steady, NEVER, np.floor_divide(-np.asarray(at_0, np.int64), np.where(steady, 1, slope)))
    return root, np.where(steady, NEVER, root + 1)


NEVER = np.iinfo(np.int64).min
"""Stands for the turn of a comparison that has none."""


def _difference(leaf: Compare, values: Values) -> Any:
    return value_of(leaf.left, values) - value_of(leaf.right, values)


def fixed_turns(leaf: Compare, clock: Clock, first: int, last: int) -> list[int]:
    """Return the times from `first` to `last`, sorted, at which the truth of a fixed comparison changes."""
    if is_linear(leaf, clock):
        candidates = sorted({int(turn) for turn in turns(leaf, clock, {})})
    else:
        candidates = list(range(first, last + 1))
    return [t for t in candidates if first <= t <= last and direction(leaf, clock, t)]


def direction(leaf: Compare, clock: Clock, at: int) -> int:
    """Return 1 where a fixed comparison becomes true at a time, -1 where it becomes false, else 0."""
    now = ClockValue(clock)
    before, after = (
        compare(leaf.op, value_of(leaf.left, {now: t}), value_of(leaf.right, {now: t})) for t in (at - 1, at)
    )
    return int(after) - int(before)
