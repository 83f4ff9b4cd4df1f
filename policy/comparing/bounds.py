"""What is certain about a condition when only clocks are known: exact interval reasoning, without a solver.

Every number is an interval, every other test of an example is open. A condition is then true, false or open
(None). True and false are certain; open says nothing, since parts are judged apart from each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias, assert_never

from gradwarden.policy.checking.types import MAX_COUNT, MAX_DAY, MIN_DAY
from gradwarden.policy.program import (
    And,
    Arithmetic,
    AttributeValue,
    ClockValue,
    Compare,
    Condition,
    Constant,
    Every,
    Flag,
    Has,
    Not,
    Number,
    NumericExpr,
    OneOf,
    Or,
    Program,
    SetTest,
    SignalValue,
    Spent,
    Text,
)

Interval: TypeAlias = tuple[int, int]

OPEN: Mapping[str, Interval] = {
    "today": (MIN_DAY, MAX_DAY),
    "step": (0, MAX_COUNT),
    "epoch": (0, MAX_COUNT),
    "exposures": (0, MAX_COUNT),
}
"""What clocks can be."""


class Bounds:
    """Judges the conditions of one program while clocks lie in intervals; clocks left out are open."""

    def __init__(self, program: Program, clocks: Mapping[str, Interval]) -> None:
        self._attributes = {
            spec.name: (min(spec.lo, 0), max(spec.hi, 0)) if spec.optional else (spec.lo, spec.hi)
            for spec in program.attributes
        }
        self._signals = {spec.name: (spec.lo, spec.hi) for spec in program.signals}
        self._clocks = {**OPEN, **clocks}

    def truth(self, condition: Condition) -> bool | None:
        """Return whether a condition is certainly true or certainly false; None where it is open."""
        match condition:
            case Constant(value):
                return value
            case Not(term):
                inner = self.truth(term)
                return None if inner is None else not inner
            case And(terms):
                return self._joined(terms, absorbing=False)
            case Or(terms):
                return self._joined(terms, absorbing=True)
            case Compare(op, left, right):
                return _sign(op, self.interval(Arithmetic("sub", left, right)))
            case Has() | Flag() | OneOf() | SetTest() | Text() | Spent() | Every():
                return None
            case _:
                assert_never(condition)

    def _joined(self, terms: tuple[Condition, ...], absorbing: bool) -> bool | None:
        found = [self.truth(term) for term in terms]
        if absorbing in found:
            return absorbing
        return None if None in found else not absorbing

    def interval(self, expression: NumericExpr) -> Interval:
        """Return an interval that holds every value of an expression."""
        match expression:
            case Number(value):
                return value, value
            case AttributeValue(name):
                return self._attributes[name]
            case SignalValue(name):
                return self._signals[name]
            case ClockValue(name):
                return self._clocks[name]
            case Arithmetic(op, left, right):
                a, b = self.interval(left), self.interval(right)
                if op == "add":
                    return a[0] + b[0], a[1] + b[1]
                if op == "sub":
                    return a[0] - b[1], a[1] - b[0]
                corners = [x * y for x in a for y in b]
                return min(corners), max(corners)
            case _:
                assert_never(expression)


def _sign(op: str, difference: Interval) -> bool | None:
    """Return the truth of `difference op 0` where all of an interval agrees on it."""
    lo, hi = difference
    match op:
        case "lt":
            return True if hi < 0 else False if lo >= 0 else None
        case "le":
            return True if hi <= 0 else False if lo > 0 else None
        case "gt":
            return True if lo > 0 else False if hi <= 0 else None
        case "ge":
            return True if lo >= 0 else False if hi < 0 else None
        case "eq":
            return True if lo == hi == 0 else False if lo > 0 or hi < 0 else None
        case _:
            return False if lo == hi == 0 else True if lo > 0 or hi < 0 else None
