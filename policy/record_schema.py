"""The declaration of a program's attributes as a JSON Schema (2020-12) for one record of metadata.

The schema accepts exactly the JSON records that the program finds valid (`evaluation.values`):

- `null` means absent: of an optional attribute, and of one that is not declared.
- `id` is the identity of an example, not metadata: anything.
- number: what is between the least and the greatest double that rounds into the declared range. More decimal
  places than declared are rounded, not refused, so there is no `multipleOf`.
- date: a pattern for the days that exist, and one for each end of the range. `format` alone asserts nothing
  in 2020-12.
- string: `maxLength` counts characters (code points), as the program does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, assert_never

from gradwarden.policy.checking.types import MAX_DAY
from gradwarden.policy.evaluation.values import day_text
from gradwarden.policy.program import AttributeSpec, Program

DIALECT = "https://json-schema.org/draft/2020-12/schema"

ID = "id"

_LEAP = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29"
_DAYS = (
    "(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8])"
)
CALENDAR_DAY = f"^([0-9]{{4}}-({_DAYS})|{_LEAP})$"
"""The days of the Gregorian calendar, years 0000 to 9999."""


def record_schema(program: Program) -> dict[str, Any]:
    """Return the schema of one record, as JSON data."""
    properties: dict[str, Any] = {
        ID: {"description": "the identity of the example; not metadata, and not read by the policy"}
    }
    properties |= {spec.name: attribute_schema(spec) for spec in program.attributes}
    return {
        "$schema": DIALECT,
        "$id": f"urn:gradwarden:examples:{program.digest}",
        "title": f"{program.name} version {program.version}: metadata of one example",
        "type": "object",
        "properties": properties,
        "required": [spec.name for spec in program.attributes if not spec.optional],
        "additionalProperties": {"type": "null"},
    }


def attribute_schema(spec: AttributeSpec) -> dict[str, Any]:
    """Return the schema of one attribute's values; that of an optional one accepts null."""
    schema = _present(spec)
    if not spec.optional:
        return schema
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    return {**schema, "type": [schema["type"], "null"]}


def _present(spec: AttributeSpec) -> dict[str, Any]:
    match spec.type:
        case "bool":
            return {"type": "boolean"}
        case "number":
            least, greatest = accepted_numbers(spec)
            return {
                "type": "number",
                "minimum": _plain(least),
                "maximum": _plain(greatest),
                "description": number_words(spec),
            }
        case "enum":
            return {"enum": list(spec.values)}
        case "set":
            return {"type": "array", "items": {"enum": list(spec.values)}}
        case "date":
            return _date(spec)
        case "string":
            return {"type": "string", "maxLength": spec.hi}
        case _:
            assert_never(spec.type)


def number_words(spec: AttributeSpec) -> str:
    """Say what a number attribute holds: its range, its unit and how it is rounded."""
    lo, hi = (f"{end / 10**spec.places:.15g}" for end in (spec.lo, spec.hi))
    unit = f" {spec.unit}" if spec.unit else ""
    rounded = f"rounded to {spec.places} decimal places" if spec.places else "rounded to whole numbers"
    return f"{lo} to {hi}{unit}; {rounded}, ties to even"


def accepted_numbers(spec: AttributeSpec) -> tuple[float, float]:
    """Return the least and the greatest double that encode to a value within a number's range.

    Encoding multiplies by 10**places in IEEE double and rounds half to even; both keep order, so all doubles
    between the two are accepted, and no other. Integers are encoded exactly: those between the two are the
    ones in range, because an end lies within half a unit of the last place of the range's end.
    """
    scale = 10.0**spec.places
    return (
        _outermost(lambda value: round(value * scale) >= spec.lo, (spec.lo - 0.5) / scale, -math.inf),
        _outermost(lambda value: round(value * scale) <= spec.hi, (spec.hi + 0.5) / scale, math.inf),
    )


def _outermost(accepted: Callable[[float], bool], near: float, outwards: float) -> float:
    """Return the last accepted double towards `outwards`, which is within a few doubles of `near`."""
    while not accepted(near):
        near = math.nextafter(near, -outwards)
    while accepted(further := math.nextafter(near, outwards)):
        near = further
    return near


def _plain(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _date(spec: AttributeSpec) -> dict[str, Any]:
    patterns = [CALENDAR_DAY, _not_before(day_text(spec.lo))]
    if spec.hi < MAX_DAY:
        patterns.append(_not_after(day_text(spec.hi)))
    return {
        "type": "string",
        "format": "date",
        "maxLength": 10,  # in some dialects of regular expressions, `$` also stands before a last line end
        "allOf": [{"pattern": pattern} for pattern in patterns],
        "description": f"{day_text(spec.lo)} to {day_text(spec.hi)}",
    }


def _not_before(day: str) -> str:
    """Return a pattern for the days from one on: equal up to a digit, and greater there."""
    return _beyond(day, lambda digit: f"[{digit + 1}-9]" if digit < 9 else "")


def _not_after(day: str) -> str:
    return _beyond(day, lambda digit: f"[0-{digit - 1}]" if digit > 0 else "")


def _beyond(day: str, further: Callable[[int], str]) -> str:
    choices = [day]
    for place, character in enumerate(day):
        if character != "-" and (digits := further(int(character))):
            choices.append(day[:place] + digits)
    return f"^({'|'.join(choices)})"
