"""The dynamic leaves of a partition as closures, over single ints and over int64 arrays alike.

An environment maps the names of what leaves read to ints or arrays: `step`, `epoch`, `today`, `exposures` and
`spent` (a set) by their names, signals and attributes by theirs behind `signal ` and `slot `.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from gradwarden.policy.program import (
    Arithmetic,
    AttributeValue,
    ClockValue,
    Compare,
    CompareOp,
    Condition,
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
