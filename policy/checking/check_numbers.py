"""Types numbers, dates and durations: units, scales and intervals; overflow is excluded here.

Every function returns the typed operand, or None after it has reported a fault.
"""

from __future__ import annotations

from typing import Literal

from gradwarden.policy.checking.scope import Faults
from gradwarden.policy.checking.types import (
    DAYS_IN,
    EXACT,
    MAX_COUNT,
    MAX_DAY,
    MAX_DURATION,
    MIN_DAY,
    Attribute,
    Numeric,
    Signal,
    describe,
)
from gradwarden.policy.decimals import decimal_text, places_of, scaled, times, unscaled
from gradwarden.policy.program import (
    Arithmetic,
    AttributeValue,
    ClockName,
    ClockValue,
    Compare,
    CompareOp,
    Condition,
    Constant,
    Number,
    SignalValue,
)
from gradwarden.policy.source import Span
from gradwarden.policy.syntax import tree as s

_OPS: dict[str, CompareOp] = {"<": "lt", "<=": "le", "==": "eq", "!=": "ne", ">=": "ge", ">": "gt"}


def attribute_operand(attribute: Attribute, span: Span) -> Numeric:
    """Return a number or date attribute as an operand."""
    spec = attribute.spec
    kind: Literal["date", "number"] = "date" if spec.type == "date" else "number"
    return Numeric(AttributeValue(spec.name), kind, spec.places, spec.lo, spec.hi, spec.unit, span)


def signal_operand(signal: Signal, span: Span) -> Numeric:
    spec = signal.spec
    return Numeric(SignalValue(spec.name), "number", spec.places, spec.lo, spec.hi, signal.unit, span)


def clock_operand(name: ClockName, span: Span) -> Numeric:
    if name == "today":
        return Numeric(ClockValue(name), "date", 0, MIN_DAY, MAX_DAY, "", span)
    return Numeric(ClockValue(name), "number", 0, 0, MAX_COUNT, "", span)


def literal(faults: Faults, bound: s.Bound) -> Numeric | None:
    """Return a number, duration or day as written."""
    if isinstance(bound, s.Day):
        return Numeric(Number(bound.days), "date", 0, bound.days, bound.days, "", bound.span)
    if bound.unit in DAYS_IN:
        days = scaled(times(bound.value, DAYS_IN[bound.unit]), 0)
        if days is None or abs(days) > MAX_DURATION:
            help = f"at most {MAX_DURATION} days"
            faults.error("GW310", "a duration is a whole number of days or weeks", bound.span, help)
            return None
        return Numeric(Number(days), "duration", 0, days, days, "", bound.span)
    places = places_of(bound.value)
    value = scaled(bound.value, places) or 0
    if abs(value) > EXACT:
        faults.error("GW305", f"`{bound.span.text}` has too many digits to be compared exactly", bound.span)
        return None
    return Numeric(Number(value), "number", places, value, value, bound.unit or None, bound.span)


def negate(faults: Faults, term: Numeric, span: Span) -> Numeric | None:
    if term.kind == "date":
        faults.error("GW302", "a date cannot be negated", span)
        return None
    if isinstance(term.expr, Number):
        expr: Number | Arithmetic = Number(-term.expr.value)
    else:
        expr = Arithmetic("sub", Number(0), term.expr)
    return Numeric(expr, term.kind, term.places, -term.hi, -term.lo, term.unit, span)


def combine_numbers(
    faults: Faults, op: Literal["add", "sub", "mul"], left: Numeric, right: Numeric, span: Span
) -> Numeric | None:
    """Return left op right."""
    if op == "mul":
        return _product(faults, left, right, span)
    kind = _sum_kind(op, left, right)
    if kind is None:
        word = "added to" if op == "add" else "subtracted from"
        first, second = (left, right) if op == "add" else (right, left)
        message = f"{describe(first)} cannot be {word} {describe(second)}"
        faults.error("GW302", message, span, _sum_help(left, right))
        return None
    if kind == "number" and not _same_unit(faults, left, right, span):
        return None
    places = max(left.places, right.places)
    a, b = _rescale(faults, left, places), _rescale(faults, right, places)
    if a is None or b is None:
        return None
    lo, hi = (a.lo + b.lo, a.hi + b.hi) if op == "add" else (a.lo - b.hi, a.hi - b.lo)
    unit = left.unit if left.unit is not None else right.unit
    return _exact(faults, Numeric(Arithmetic(op, a.expr, b.expr), kind, places, lo, hi, unit, span))


def compare_numbers(faults: Faults, op: str, left: Numeric, right: Numeric, span: Span) -> Condition | None:
    """Return the comparison of two operands of one kind and unit."""
    if left.kind != right.kind:
        message = f"{describe(left)} cannot be compared with {describe(right)}"
        faults.error("GW302", message, span, _compare_help(left, right))
        return None
    if not _same_unit(faults, left, right, span):
        return None
    places = max(left.places, right.places)
    a, b = _rescale(faults, left, places), _rescale(faults, right, places)
    if a is None or b is None:
        return None
    known = _decided(_OPS[op], a, b)
    if known is not None:
        faults.warn(
            "GW506", f"this comparison is always {str(known).lower()}", span, _range_help(left, right)
        )
        if isinstance(a.expr, Number) and isinstance(b.expr, Number):
            return Constant(known)
    return Compare(_OPS[op], a.expr, b.expr)


def _product(faults: Faults, left: Numeric, right: Numeric, span: Span) -> Numeric | None:
    kinds = {left.kind, right.kind}
    if "date" in kinds or kinds == {"duration"}:
        faults.error("GW302", f"{describe(left)} cannot be multiplied by {describe(right)}", span)
        return None
    if left.unit and right.unit:
        help = "one of the factors must be a plain number"
        faults.error("GW303", f"a product of `{left.unit}` and `{right.unit}` has no unit here", span, help)
        return None
    places = left.places + right.places
    if kinds == {"duration", "number"} and places:
        faults.error("GW310", "a duration can only be multiplied by a whole number", span)
        return None
    corners = [a * b for a in (left.lo, left.hi) for b in (right.lo, right.hi)]
    unit = left.unit or right.unit or (None if left.unit is None and right.unit is None else "")
    kind: Literal["number", "duration"] = "duration" if "duration" in kinds else "number"
    expr = Arithmetic("mul", left.expr, right.expr)
    return _exact(faults, Numeric(expr, kind, places, min(corners), max(corners), unit, span))


def _sum_kind(
    op: Literal["add", "sub"], left: Numeric, right: Numeric
) -> Literal["number", "date", "duration"] | None:
    match left.kind, right.kind, op:
        case ("number", "number", _):
            return "number"
        case ("date", "duration", _) | ("duration", "date", "add"):
            return "date"
        case ("date", "date", "sub") | ("duration", "duration", _):
            return "duration"
        case _:
            return None


def _same_unit(faults: Faults, left: Numeric, right: Numeric, span: Span) -> bool:
    if left.unit is None or right.unit is None or left.unit == right.unit:
        return True
    a, b = (f"`{x.unit}`" if x.unit else "a number without a unit" for x in (left, right))
    faults.error("GW303", f"{a} and {b} cannot be mixed", span, "use operands of one unit")
    return False


def _rescale(faults: Faults, term: Numeric, places: int) -> Numeric | None:
    """Return the operand on a finer scale."""
    factor = 10 ** (places - term.places)
    if factor == 1:
        return term
    if isinstance(term.expr, Number):
        expr: Number | Arithmetic = Number(term.expr.value * factor)
    else:
        expr = Arithmetic("mul", term.expr, Number(factor))
    finer = Numeric(expr, term.kind, places, term.lo * factor, term.hi * factor, term.unit, term.span)
    return _exact(faults, finer)


def _exact(faults: Faults, term: Numeric) -> Numeric | None:
    if max(abs(term.lo), abs(term.hi)) <= EXACT:
        return term
    faults.error(
        "GW305",
        "this value can grow too large to be computed exactly",
        term.span,
        "declare narrower ranges or fewer `places`, or use a coarser constant",
    )
    return None


def _decided(op: CompareOp, left: Numeric, right: Numeric) -> bool | None:
    """Return what a comparison always is, or None where the intervals leave it open."""
    below, above = left.hi < right.lo, left.lo > right.hi
    never_above, never_below = left.hi <= right.lo, left.lo >= right.hi
    match op:
        case "lt":
            return True if below else False if never_below else None
        case "le":
            return True if never_above else False if above else None
        case "gt":
            return True if above else False if never_above else None
        case "ge":
            return True if never_below else False if below else None
        case "eq" | "ne":
            if below or above:
                return op == "ne"
            return (op == "eq") if left.lo == left.hi == right.lo == right.hi else None


def _range_help(left: Numeric, right: Numeric) -> str | None:
    for side in (left, right):
        if not isinstance(side.expr, Number) and side.kind == "number":
            lo, hi = (decimal_text(unscaled(x, side.places)) for x in (side.lo, side.hi))
            return f"`{side.span.text}` lies in {lo}..{hi}"
    return None


def _sum_help(left: Numeric, right: Numeric) -> str | None:
    """Say how durations are written, where a number is calculated with a date or a duration."""
    numbers = [x for x in (left, right) if x.kind == "number"]
    if len(numbers) != 1:
        return None
    if numbers[0].unit:
        return "durations are whole `days` or `weeks`"
    return f"a duration has a unit: `{numbers[0].span.text} days`"


def _compare_help(left: Numeric, right: Numeric) -> str | None:
    kinds = {left.kind, right.kind}
    if kinds == {"date", "duration"}:
        return "compare the difference of two dates with a duration: `today - day > 30 days`"
    if kinds == {"duration", "number"}:
        return "write the number as `days` or `weeks`"
    if kinds == {"date", "number"}:
        return "dates are written YYYY-MM-DD"
    return None
