"""Encoding of raw metadata: from what a data set holds to the integers and strings that are evaluated.

number: an int is scaled exactly; a float `v` becomes `rint(v * 10.0**places)` in IEEE double, half to even;
a `Decimal` is rounded exactly, half to even. enum: the index of the value. set: a bit mask of the members'
indices. date: days since 1970-01-01. string, bool: as they are. None, and numpy's NaT, mean absent; NaN does
not.

This is the reference. `columns` encodes arrays to the same values and finds the same faults.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import TypeAlias, assert_never

import numpy as np

from gradwarden.policy.context import EPOCH_DAY
from gradwarden.policy.decision import Problem
from gradwarden.policy.errors import did_you_mean
from gradwarden.policy.program import AttributeSpec, SignalSpec

Encoded: TypeAlias = int | str
"""A present value: an int (a bool for bool attributes), or the text of a string attribute."""

MAX_SHOWN = 60
"""Characters of a user's value that are repeated in a problem's detail."""

_FAR = 40
"""Decimal exponents beyond which a value is out of every range, or rounds to zero."""


class Fault(Exception):  # noqa: N818 - not an error that reaches a user; it becomes a Problem
    """Why one value cannot be encoded: a code of `Problem` and the fault in words."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail


def encode_metadata(
    attributes: tuple[AttributeSpec, ...], metadata: Mapping[str, object]
) -> tuple[dict[str, Encoded], tuple[Problem, ...]]:
    """Return the encoded values of the attributes that are present, and the faults.

    Problems are in the order of the declarations; undeclared attributes follow, sorted. An undeclared
    attribute whose value is None is absent like any other, so that rows of a table with a column more and
    mappings without the key mean the same.
    """
    values: dict[str, Encoded] = {}
    problems: list[Problem] = []
    for spec in attributes:
        raw = metadata.get(spec.name)
        if is_absent(raw):
            if not spec.optional:
                problems.append(missing(spec.name))
            continue
        try:
            values[spec.name] = encode_value(spec, raw)
        except Fault as fault:
            problems.append(Problem(spec.name, fault.code, fault.detail))
    declared = {spec.name for spec in attributes}
    extra = {str(key) for key, raw in metadata.items() if key not in declared and not is_absent(raw)}
    problems += [unknown(name, attributes) for name in sorted(extra)]
    return values, tuple(problems)


def is_absent(raw: object) -> bool:
    """Return whether a raw value says that the attribute is absent: None, NaT or a masked element."""
    if raw is None or (isinstance(raw, np.datetime64) and bool(np.isnat(raw))):
        return True
    # The type is asked for first, since naming `np.ma` imports as much again as numpy itself.
    return isinstance(raw, np.ndarray) and raw is np.ma.masked


def missing(name: str) -> Problem:
    return Problem(name, "missing", f"`{name}` is required and absent")


def unknown(name: str, attributes: tuple[AttributeSpec, ...]) -> Problem:
    near = did_you_mean(name, [spec.name for spec in attributes])
    return Problem(name, "unknown_attribute", f"`{name}` is not declared" + (f"; {near}" if near else ""))


def encode_value(spec: AttributeSpec, raw: object) -> Encoded:
    """Return the encoded form of one present value. Raises Fault."""
    match spec.type:
        case "bool":
            if isinstance(raw, bool | np.bool_):
                return bool(raw)
            raise _wrong_type("true or false", raw)
        case "number":
            return _in_range(spec, encode_number(raw, spec.places, spec.lo, spec.hi), raw)
        case "enum":
            return _code(spec, raw, "one of its values")
        case "set":
            return _mask(spec, raw)
        case "date":
            return _in_range(spec, encode_date(raw), raw)
        case "string":
            if not isinstance(raw, str):
                raise _wrong_type("a string", raw)
            if len(raw) > spec.hi:
                raise Fault("too_long", f"{len(raw)} characters, at most {spec.hi} are allowed")
            return str(raw)
        case _:
            assert_never(spec.type)


def encode_number(raw: object, places: int, lo: int, hi: int) -> int:
    """Return a number scaled by 10**places; values far outside lo..hi may come back as any int outside it.

    Raises Fault (wrong_type, not_finite).
    """
    if isinstance(raw, bool | np.bool_):
        raise _wrong_type("a number", raw)
    if isinstance(raw, int | np.integer):
        return int(raw) * int(10**places)
    if isinstance(raw, float | np.floating):
        return _from_float(float(raw), places, lo, hi)
    if isinstance(raw, Decimal):
        return _from_decimal(raw, places, lo, hi)
    raise _wrong_type("a number", raw)


def _from_float(raw: float, places: int, lo: int, hi: int) -> int:
    if not math.isfinite(raw):
        raise Fault("not_finite", f"{raw} is not a finite number")
    scaled = raw * 10.0**places
    if not math.isfinite(scaled):
        return hi + 1 if scaled > 0 else lo - 1
    return round(scaled)


def _from_decimal(raw: Decimal, places: int, lo: int, hi: int) -> int:
    if not raw.is_finite():
        raise Fault("not_finite", f"{raw} is not a finite number")
    if raw and raw.adjusted() > _FAR:
        return hi + 1 if raw > 0 else lo - 1
    if not raw or raw.adjusted() < -_FAR:
        return 0
    return round(Fraction(raw) * int(10**places))


def encode_date(raw: object) -> int:
    """Return days since 1970-01-01 of a date, a day-precise datetime64 or text like `2026-01-31`.

    A datetime is refused: it names an instant, and which day that is depends on the place. Raises Fault.
    """
    if isinstance(raw, date) and not isinstance(raw, datetime):
        return (raw - EPOCH_DAY).days
    if isinstance(raw, np.datetime64) and np.datetime_data(raw)[0] == "D":
        return int(raw.astype(np.int64))
    if isinstance(raw, str) and len(raw) == 10 and raw.isascii() and raw[4] == raw[7] == "-":
        try:
            return (date.fromisoformat(raw) - EPOCH_DAY).days
        except ValueError:
            raise _wrong_type("a date like 2026-01-31", raw) from None
    raise _wrong_type("a date like 2026-01-31", raw)


def _in_range(spec: AttributeSpec, encoded: int, raw: object) -> int:
    if spec.lo <= encoded <= spec.hi:
        return encoded
    bounds = f"{decode_value(spec, spec.lo)}..{decode_value(spec, spec.hi)}"
    raise Fault("out_of_range", f"{shown(raw)} is outside {bounds}")


def _code(spec: AttributeSpec, raw: object, wanted: str) -> int:
    if not isinstance(raw, str):
        raise _wrong_type(wanted, raw)
    try:
        return spec.values.index(raw)
    except ValueError:
        near = did_you_mean(raw[:MAX_SHOWN], spec.values)
        raise Fault(
            "unknown_value", f"{shown(raw)} is not a declared value" + (f"; {near}" if near else "")
        ) from None


def _mask(spec: AttributeSpec, raw: object) -> int:
    if isinstance(raw, np.ndarray) and raw.ndim == 1:
        raw = raw.tolist()
    if not isinstance(raw, list | tuple | set | frozenset):
        raise _wrong_type("a list of its values", raw)
    faults = []
    mask = 0
    for member in raw:
        try:
            mask |= 1 << _code(spec, member, "a list of its values")
        except Fault as fault:
            faults.append(fault)
    if faults:  # members of a set come in no order: name the worst, then the first by text
        raise min(faults, key=lambda fault: (fault.code != "wrong_type", fault.detail))
    return mask


def encode_signal(spec: SignalSpec, raw: object) -> int:
    """Return a signal's value, clamped to its bounds. Raises Fault (wrong_type, not_finite)."""
    return min(max(encode_number(raw, spec.places, spec.lo, spec.hi), spec.lo), spec.hi)


def decode_value(spec: AttributeSpec, encoded: Encoded) -> str:
    """Return an encoded value as text a person reads."""
    match spec.type:
        case "bool":
            return "true" if encoded else "false"
        case "number":
            return _decimal(int(encoded), spec.places)
        case "enum":
            return spec.values[int(encoded)]
        case "set":
            members = [value for code, value in enumerate(spec.values) if int(encoded) >> code & 1]
            return f"[{', '.join(members)}]"
        case "date":
            return day_text(int(encoded))
        case "string":
            return shown(encoded)
        case _:
            assert_never(spec.type)


def decode_signal(spec: SignalSpec, encoded: int) -> str:
    return _decimal(encoded, spec.places)


def _decimal(encoded: int, places: int) -> str:
    whole, fraction = divmod(abs(encoded), 10**places)
    digits = f".{fraction:0{places}d}".rstrip("0") if fraction else ""
    return f"{'-' if encoded < 0 else ''}{whole}{digits}"


def day_text(days: int) -> str:
    """Return days since 1970-01-01 as an ISO date."""
    try:
        return (EPOCH_DAY + timedelta(days=days)).isoformat()
    except OverflowError:
        return f"day {days}"


def shown(raw: object) -> str:
    """Return a user's value in backticks, cut short, without control characters."""
    if isinstance(raw, np.generic):
        raw = raw.item()
    if isinstance(raw, int) and raw.bit_length() > 4 * MAX_SHOWN:
        return f"an integer of {raw.bit_length()} bits"
    text = raw[: MAX_SHOWN + 1] if isinstance(raw, str) else repr(raw)
    text = "".join(c if c.isprintable() else "�" for c in text[: MAX_SHOWN + 1])
    return f"`{text[:MAX_SHOWN]}…`" if len(text) > MAX_SHOWN else f"`{text}`"


def _wrong_type(wanted: str, raw: object) -> Fault:
    return Fault("wrong_type", f"{wanted} was expected, not {_kind(raw)}")


def _kind(raw: object) -> str:
    if isinstance(raw, np.integer):
        raw = int(raw)
    match raw:
        case bool() | np.bool_():
            return "a boolean"
        case str():
            return f"the text {shown(raw)}"
        case int() | float() | Decimal() | np.number():
            return f"the number {shown(raw)}" if isinstance(raw, int) else "a number"
        case datetime() | np.datetime64():
            return "a time"
        case date():
            return "a date"
        case list() | tuple() | set() | frozenset() | np.ndarray():
            return "a list"
        case Mapping():
            return "a mapping"
        case _:
            return "something else"
