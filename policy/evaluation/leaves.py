"""The dynamic leaves of a program as closures, over single ints and over int64 arrays alike.

An environment maps the names of what leaves read to ints or arrays: `step`, `epoch`, `today`, `exposures` and
`spent` (a set) by their names, signals and attributes by theirs behind `signal ` and `slot `.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from gradwarden.policy.evaluation.partition import Partition, reads_of
from gradwarden.policy.program import (
    Arithmetic,
    AttributeValue,
    ClockValue,
    Compare,
    CompareOp,
    Condition,
    Every,
    Number,
    NumericExpr,
    SignalValue,
    Spent,
)

Environment: TypeAlias = Mapping[str, Any]
Leaf: TypeAlias = Callable[[Environment], Any]

_COMPARE: dict[CompareOp, Callable[[Any, Any], Any]] = {
    "lt": operator.lt,
    "le": operator.le,
    "eq": operator.eq,
    "ne": operator.ne,
    "ge": operator.ge,
    "gt": operator.gt,
}
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
}


class DynamicLeaves:
    """The leaves of a partition that nothing static decides.

    clocks: those that read only what a step has, step, epoch, date and spent budgets. rows: all others.
    row_clocks: which of step, epoch and date these read, too, in alphabetical order.
    """

    def __init__(self, parts: Partition) -> None:
        self.clocks = [compile_leaf(leaf) for leaf in parts.clocks]
        self.rows = [compile_leaf(leaf) for leaf in parts.rows]
        read = frozenset[str]().union(*(reads_of(leaf).clocks for leaf in parts.rows))
        self.row_clocks = tuple(sorted(read & {"step", "epoch", "today"}))

    @property
    def timeless(self) -> bool:
        """Whether no leaf reads anything that a step has."""
        return not self.clocks and not self.row_clocks

    def of_clocks(self, environment: Environment) -> int:
        """Return the truth of the clock leaves (bit i: leaf i)."""
        return sum(1 << place for place, leaf in enumerate(self.clocks) if leaf(environment))

    def of_rows(self, environment: Environment) -> list[Any]:
        """Return the truth of each row leaf: for all rows, or an array with one entry per row."""
        return [leaf(environment) for leaf in self.rows]


def compile_leaf(condition: Condition) -> Leaf:
    """Return a closure that gives a bool, or a bool array where the environment holds arrays."""
    match condition:
        case Compare(op, left, Number(value)):
            compare, a = _COMPARE[op], _number(left)
            return lambda env: compare(a(env), value)
        case Compare(op, left, right):
            compare, a, b = _COMPARE[op], _number(left), _number(right)
            return lambda env: compare(a(env), b(env))
        case Spent(rule):
            return lambda env: rule in env["spent"]
        case Every(steps):
            return lambda env: env["step"] % steps == 0
        case _:
            raise AssertionError(f"{condition} is no dynamic leaf")


def _number(expression: NumericExpr) -> Leaf:
    match expression:
        case Number(value):
            return lambda env: value
        case Arithmetic(op, left, right):
            combine, a, b = _ARITHMETIC[op], _number(left), _number(right)
            return lambda env: combine(a(env), b(env))
        case AttributeValue(name):
            return operator.itemgetter(slot_key(name))
        case SignalValue(name):
            return operator.itemgetter(signal_key(name))
        case ClockValue(name):
            return operator.itemgetter(name)


def slot_key(attribute: str) -> str:
    return f"slot {attribute}"


def signal_key(signal: str) -> str:
    return f"signal {signal}"
