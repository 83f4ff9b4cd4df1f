"""What the values of one example and of its context can be: the ground on which conditions are decided.

A *form* is a sum of variables with whole coefficients and no constant: `bytes - 200 * lines` is
(("a:bytes", 1), ("a:lines", -200)). Every comparison bounds one form by a constant, so that `x < y` and
`y <= x` bound the same form from two sides. A product of two variables is a variable of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import gcd
from typing import NamedTuple

from gradwarden.policy.checking.types import MAX_COUNT, MAX_DAY, MIN_DAY
from gradwarden.policy.program import (
    Arithmetic,
    AttributeSpec,
    AttributeValue,
    ClockValue,
    Compare,
    CompareOp,
    Number,
    NumericExpr,
    SignalSpec,
    SignalValue,
)

Form = tuple[tuple[str, int], ...]
Interval = tuple[int, int]


class Bound(NamedTuple):
    """What a comparison says of a form: it lies in lo..hi (None: no bound), or it is not `hole`."""

    form: Form
    lo: int | None
    hi: int | None
    hole: int | None = None


_NEGATED: dict[CompareOp, CompareOp] = {
    "lt": "ge",
    "le": "gt",
    "eq": "ne",
    "ne": "eq",
    "ge": "lt",
    "gt": "le",
}
_FLIPPED: dict[CompareOp, CompareOp] = {
    "lt": "gt",
    "le": "ge",
    "eq": "eq",
    "ne": "ne",
    "ge": "le",
    "gt": "lt",
}

NEVER = Bound((), 1, 0)
ALWAYS = Bound((), 0, 0)


class Domain:
    """The ranges of a program's attributes, signals and clocks.

    `clocks` and `signals` narrow the range of some: a check that is told the date knows that `today` does not
    lie before it. `fuel` bounds all searches over the domain together, in tests (None: each by itself).
    """

    def __init__(
        self,
        attributes: Iterable[AttributeSpec],
        signals: Iterable[SignalSpec],
        clocks: Mapping[str, Interval] | None = None,
        narrowed: Mapping[str, Interval] | None = None,
        fuel: int | None = None,
    ) -> None:
        self.fuel = fuel
        self.attributes = {spec.name: spec for spec in attributes}
        self._ranges: dict[str, Interval] = {
            "c:step": (0, MAX_COUNT),
            "c:epoch": (0, MAX_COUNT),
            "c:exposures": (0, MAX_COUNT),
            "c:today": (MIN_DAY, MAX_DAY),
        }
        self._ranges |= {f"c:{name}": interval for name, interval in (clocks or {}).items()}
        self._ranges |= {f"s:{spec.name}": (spec.lo, spec.hi) for spec in signals}
        self._ranges |= {f"s:{name}": interval for name, interval in (narrowed or {}).items()}
        for spec in self.attributes.values():
            if spec.type in ("number", "date"):
                # An absent value counts as 0. No checked condition reads one, but a raw program may.
                lo, hi = (min(spec.lo, 0), max(spec.hi, 0)) if spec.optional else (spec.lo, spec.hi)
                self._ranges[f"a:{spec.name}"] = (lo, hi)

    def range(self, form: Form) -> Interval:
        """Return the interval that a form can lie in, its variables being independent."""
        if len(form) == 1 and form[0][1] == 1:
            return self._ranges[form[0][0]]
        return self.spread(form, {})

    def spread(self, form: Form, known: Mapping[Form, Interval]) -> Interval:
        """Return the same, where intervals of single variables are known more narrowly."""
        lo = hi = 0
        for variable, factor in form:
            a, b = known.get(((variable, 1),)) or self._ranges[variable]
            lo += factor * (a if factor > 0 else b)
            hi += factor * (b if factor > 0 else a)
        return lo, hi

    def bound(self, comparison: Compare, negated: bool = False) -> Bound:
        """Return what a comparison, or its negation, says of a form."""
        op = _NEGATED[comparison.op] if negated else comparison.op
        left, right = comparison.left, comparison.right
        if type(right) is Number and type(left) is not Arithmetic and type(left) is not Number:
            return _bounded(((_variable(left), 1),), op, right.value)
        terms, constant = self._linear(left)
        minus, other = self._linear(right)
        for name, factor in minus.items():
            terms[name] = terms.get(name, 0) - factor
        form = tuple(sorted((name, factor) for name, factor in terms.items() if factor))
        value = other - constant
        if not form:
            return ALWAYS if _holds(op, value) else NEVER
        divisor = gcd(*(factor for _, factor in form))
        if form[0][1] < 0:
            divisor, op = -divisor, _FLIPPED[op]
        return _divided(tuple((name, factor // divisor) for name, factor in form), op, value, divisor)

    def _linear(self, expr: NumericExpr) -> tuple[dict[str, int], int]:
        """Return the coefficients and the constant of an expression."""
        match expr:
            case Number(value):
                return {}, value
            case Arithmetic(op, left, right):
                a, b = self._linear(left), self._linear(right)
                if op == "mul":
                    return self._product(a, b)
                sign = 1 if op == "add" else -1
                terms = dict(a[0])
                for name, factor in b[0].items():
                    terms[name] = terms.get(name, 0) + sign * factor
                return terms, a[1] + sign * b[1]
            case _:
                return {_variable(expr): 1}, 0

    def _product(
        self, left: tuple[dict[str, int], int], right: tuple[dict[str, int], int]
    ) -> tuple[dict[str, int], int]:
        if left[0] and right[0]:
            return {self._opaque(left, right): 1}, 0
        (terms, constant), (_, factor) = (left, right) if left[0] else (right, left)
        return {name: factor * value for name, value in terms.items()}, factor * constant

    def _opaque(self, left: tuple[dict[str, int], int], right: tuple[dict[str, int], int]) -> str:
        """Return a variable that stands for the product of two expressions, neither of them constant."""
        first, second = (
            (tuple(sorted(terms.items())), constant) for terms, constant in sorted((left, right), key=repr)
        )
        name = f"x:{first}*{second}"
        if name not in self._ranges:
            ends = []
            for form, constant in (first, second):
                lo, hi = self.spread(form, {})
                ends.append((lo + constant, hi + constant))
            corners = [a * b for a in ends[0] for b in ends[1]]
            self._ranges[name] = (min(corners), max(corners))
        return name


def _variable(expr: NumericExpr) -> str:
    match expr:
        case AttributeValue(name):
            return f"a:{name}"
        case SignalValue(name):
            return f"s:{name}"
        case ClockValue(name):
            return f"c:{name}"
        case _:
            raise AssertionError(expr)


def _holds(op: CompareOp, value: int) -> bool:
    """Whether 0 op value."""
    return {
        "lt": value > 0,
        "le": value >= 0,
        "eq": value == 0,
        "ne": value != 0,
        "ge": value <= 0,
        "gt": value < 0,
    }[op]


def _bounded(form: Form, op: CompareOp, value: int) -> Bound:
    match op:
        case "le":
            return Bound(form, None, value)
        case "lt":
            return Bound(form, None, value - 1)
        case "ge":
            return Bound(form, value, None)
        case "gt":
            return Bound(form, value + 1, None)
        case "eq":
            return Bound(form, value, value)
        case "ne":
            return Bound(form, None, None, value)


def _divided(form: Form, op: CompareOp, value: int, divisor: int) -> Bound:
    """Return what `divisor * form op value` says, `op` already turned for a negative divisor."""
    whole, exact = value // divisor, value % divisor == 0
    match op:
        case "le":
            return Bound(form, None, whole)
        case "lt":
            return Bound(form, None, whole - 1 if exact else whole)
        case "ge":
            return Bound(form, whole if exact else whole + 1, None)
        case "gt":
            return Bound(form, whole + 1, None)
        case "eq":
            return Bound(form, whole, whole) if exact else NEVER
        case "ne":
            return Bound(form, None, None, whole) if exact else ALWAYS
