"""The JSON Schema of a record accepts exactly the records that the program finds valid."""

from __future__ import annotations

import datetime
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from gradwarden.policy.checking.types import EXACT, MAX_DAY, MIN_DAY
from gradwarden.policy.evaluation.values import day_text, encode_metadata
from gradwarden.policy.program import AttributeSpec, Band, Program
from gradwarden.policy.record_schema import accepted_numbers, record_schema

VALUES = ("mit", "gpl", "C-2", "", "é")


def program_of(*attributes: AttributeSpec) -> Program:
    return Program("sample", 1, 1, 1_000_000, attributes, (), (Band("all", ()),), (), (), (), (), ())


@st.composite
def ranges(draw: st.DrawFn, least: int, most: int) -> tuple[int, int]:
    ends = draw(st.tuples(*[st.integers(least, most) | st.integers(max(least, -20), min(most, 20))] * 2))
    return min(ends), max(ends)


@st.composite
def specs(draw: st.DrawFn, name: str) -> AttributeSpec:
    kind: Any = draw(st.sampled_from(("bool", "number", "number", "enum", "set", "date", "date", "string")))
    optional = draw(st.booleans())
    match kind:
        case "number":
            lo, hi = draw(ranges(-EXACT, EXACT))
            return AttributeSpec(name, kind, optional, lo, hi, draw(st.integers(0, 9)))
        case "date":
            lo, hi = draw(ranges(MIN_DAY, MAX_DAY))
            return AttributeSpec(name, kind, optional, lo, hi)
        case "enum" | "set":
            values = draw(st.lists(st.sampled_from(VALUES), min_size=1, unique=True))
            return AttributeSpec(name, kind, optional, values=tuple(values))
        case "string":
            return AttributeSpec(name, kind, optional, hi=draw(st.integers(0, 5)))
        case _:
            return AttributeSpec(name, kind, optional)


def near_ends(spec: AttributeSpec) -> st.SearchStrategy[Any]:
    """Values around the ends of a range, where an off-by-one or a rounding would show."""
    if spec.type == "date":
        days = [day for end in (spec.lo, spec.hi) for day in (end - 1, end, end + 1)]
        return st.sampled_from([day_text(day) for day in days if MIN_DAY <= day <= MAX_DAY])
    if spec.type == "number":
        scale = 10**spec.places
        near = [end + half / 2 for end in (spec.lo, spec.hi) for half in (-2, -1, 0, 1, 2)]
        found: list[Any] = [value / scale for value in near]
        found += [math.nextafter(v, way) for v in found for way in (-math.inf, math.inf)]
        found += [end // scale + more for end in (spec.lo, spec.hi) for more in (-1, 0, 1)]
        return st.sampled_from(found)
    return st.sampled_from(VALUES) | st.lists(st.sampled_from(VALUES))


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-25, 25),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=7),
    st.dates().map(str),
    st.sampled_from(
        ("2023-02-29", "2024-02-29", "1900-02-29", "2000-02-29", "0000-01-01", "2026-04-31", "2026-01-01\n")
    ),
    st.sampled_from(("2026-1-01", "２０２６-01-01", "20260101", "2026-W01-1", "2026-01-01T00:00:00")),
    st.lists(st.sampled_from(VALUES) | st.none() | st.integers(0, 2), max_size=3),
    st.just({}),
)


@st.composite
def records(draw: st.DrawFn, attributes: tuple[AttributeSpec, ...]) -> dict[str, Any]:
    record = {
        spec.name: draw(near_ends(spec) | near_ends(spec) | anything)
        for spec in attributes
        if draw(st.sampled_from((True, True, True, False)))
    }
    if draw(st.booleans()):
        record[draw(st.sampled_from(("id", "other")))] = draw(anything)
    return record


def agree(attributes: tuple[AttributeSpec, ...], record: dict[str, Any]) -> bool:
    schema = json.loads(json.dumps(record_schema(program_of(*attributes))))
    record = json.loads(json.dumps(record))
    metadata = {name: value for name, value in record.items() if name != "id"}
    valid = not encode_metadata(attributes, metadata)[1]
    assert Draft202012Validator(schema).is_valid(record) == valid
    return valid


@st.composite
def cases(draw: st.DrawFn, most: int) -> tuple[tuple[AttributeSpec, ...], dict[str, Any]]:
    attributes = tuple(draw(specs(f"a{i}")) for i in range(draw(st.integers(0, most))))
    return attributes, draw(records(attributes))


@settings(max_examples=300)
@given(cases(2))
def test_a_record_fits_the_schema_just_where_it_fits_the_program(
    case: tuple[tuple[AttributeSpec, ...], dict[str, Any]],
) -> None:
    agree(*case)


@pytest.mark.soak
@settings(max_examples=30_000)
@given(cases(3))
def test_soak_of_the_schema(case: tuple[tuple[AttributeSpec, ...], dict[str, Any]]) -> None:
    agree(*case)


def test_every_day_of_four_centuries_is_known() -> None:
    spec = AttributeSpec("day", "date", lo=MIN_DAY, hi=MAX_DAY)
    validator = Draft202012Validator(record_schema(program_of(spec)))
    for year in (1, 4, 100, 400, 1900, 1996, 2000, 2023, 2024, 9999):
        for month in range(14):
            for day in range(33):
                text = f"{year:04d}-{month:02d}-{day:02d}"
                try:
                    datetime.date(year, month, day)
                    exists = True
                except ValueError:
                    exists = False
                assert validator.is_valid({"day": text}) == exists, text


@pytest.mark.parametrize(
    "text", ["2026-01-01\n", "2026-01-01 ", " 2026-01-01", "2026-W01-1", "２０２６-01-01"]
)
def test_what_only_looks_like_a_day_is_none(text: str) -> None:
    assert not agree((AttributeSpec("day", "date", lo=MIN_DAY, hi=MAX_DAY),), {"day": text})


def test_the_schema_is_one() -> None:
    spec = AttributeSpec("n", "number", lo=0, hi=10, places=1, unit="bits/byte")
    schema = record_schema(program_of(spec))
    Draft202012Validator.check_schema(schema)
    assert schema["properties"]["n"]["description"] == (
        "0 to 1 bits/byte; rounded to 1 decimal places, ties to even"
    )
    assert accepted_numbers(spec) == (-0.05, 1.05)  # 0.5 rounds to 0 and 10.5 to 10: ties go to even
