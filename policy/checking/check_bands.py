"""Checks entropy bands: each is an interval of one number attribute, disjoint from its other bands."""

from __future__ import annotations

from itertools import pairwise

from gradwarden.policy.checking.check_conditions import Conditions
from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import (
    And,
    Arithmetic,
    AttributeValue,
    Compare,
    CompareOp,
    Condition,
    Constant,
    Has,
    Number,
    NumericExpr,
)
from gradwarden.policy.source import Span
from gradwarden.policy.syntax import tree as s

_FLIPPED: dict[CompareOp, CompareOp] = {
    "lt": "gt",
    "le": "ge",
    "gt": "lt",
    "ge": "le",
    "eq": "eq",
    "ne": "ne",
}


@frozen
class _Interval:
    """Encoded values lo..hi, both included, of one attribute."""

    attribute: str
    lo: int
    hi: int
    band: str
    span: Span


def check_bands(conditions: Conditions) -> None:
    """Report bands that are not intervals, and bands that overlap."""
    scope = conditions.scope
    intervals = []
    for name, item in scope.named.items():
        if not isinstance(item, s.EntropyBand):
            continue
        condition = conditions.named(name, item.name.span).condition
        if condition == Constant(False):
            continue
        interval = _interval(conditions, item, condition)
        if interval is None:
            scope.faults.error(
                "GW312",
                f"the band `{name}` is not an interval of one number attribute",
                item.condition.span,
                "compare the attribute with numbers, as in `entropy < 3.0` or `entropy in 3.0..5.0`",
            )
        else:
            intervals.append(interval)
    intervals.sort(key=lambda x: (x.attribute, x.lo, x.hi, x.band))
    for before, after in pairwise(intervals):
        if before.attribute == after.attribute and after.lo <= before.hi:
            scope.faults.error(
                "GW313",
                f"the bands `{before.band}` and `{after.band}` overlap",
                after.span,
                "bands of one attribute exclude each other",
            )


def _interval(conditions: Conditions, item: s.EntropyBand, condition: Condition) -> _Interval | None:
    terms = condition.terms if isinstance(condition, And) else (condition,)
    attributes = {term.attribute for term in terms if isinstance(term, Has)}
    lo, hi = None, None
    for term in terms:
        if isinstance(term, Has):
            continue
        bounds = _bounds(term)
        if bounds is None:
            return None
        name, low, high = bounds
        attributes.add(name)
        lo = low if lo is None or (low is not None and low > lo) else lo
        hi = high if hi is None or (high is not None and high < hi) else hi
    if len(attributes) != 1 or (lo is None and hi is None):
        return None
    spec = conditions.scope.attributes[attributes.pop()].spec
    if spec.type != "number":
        return None
    low, high = (spec.lo if lo is None else lo), (spec.hi if hi is None else hi)
    return _Interval(spec.name, low, high, item.name.text, item.name.span)


def _bounds(term: Condition) -> tuple[str, int | None, int | None] | None:
    """Return (attribute, lo, hi) of a comparison of an attribute with a number."""
    if not isinstance(term, Compare):
        return None
    left, op, right = term.left, term.op, term.right
    if isinstance(left, Number):
        left, op, right = right, _FLIPPED[op], left
    scaled = _scaled_attribute(left)
    if scaled is None or not isinstance(right, Number):
        return None
    name, factor = scaled
    floor, ceiling = right.value // factor, -(-right.value // factor)
    match op:
        case "lt":
            return name, None, ceiling - 1
        case "le":
            return name, None, floor
        case "gt":
            return name, floor + 1, None
        case "ge":
            return name, ceiling, None
        case "eq":
            return name, ceiling, floor
        case "ne":
            return None


def _scaled_attribute(expr: NumericExpr) -> tuple[str, int] | None:
    match expr:
        case AttributeValue(name):
            return name, 1
        case Arithmetic("mul", AttributeValue(name), Number(factor)) if factor > 0:
            return name, factor
        case _:
            return None
