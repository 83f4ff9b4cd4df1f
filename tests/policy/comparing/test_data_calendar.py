"""The days on which decisions about a data set change: all of them and no others, with exact counts."""

from __future__ import annotations

import datetime
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden.policy.comparing.changes import difference
from gradwarden.policy.comparing.data_calendar import DataCalendar, DayCount, RangeError
from gradwarden.policy.context import EPOCH_DAY, Context
from gradwarden.policy.evaluation.columns import encode_columns
from gradwarden.policy.program import (
    SCALE,
    And,
    Arithmetic,
    AttributeValue,
    ClockValue,
    Compare,
    Grant,
    Number,
    Program,
)
from tests.strategies import ATTRIBUTES, DAY, conditions, contexts, examples, programs, valid_examples

AROUND = 9
TODAY = ClockValue("today")

_erase, _level = AttributeValue("erase"), AttributeValue("level")
date_comparisons = st.builds(
    Compare,
    st.sampled_from(("lt", "le", "eq", "ne", "ge", "gt")),
    st.sampled_from(
        (
            TODAY,
            Arithmetic("sub", TODAY, _erase),
            Arithmetic("sub", _erase, TODAY),
            Arithmetic("mul", Arithmetic("sub", TODAY, Number(DAY)), Number(3)),
            Arithmetic("mul", Arithmetic("sub", TODAY, Number(DAY)), _level),
            Arithmetic("add", TODAY, Arithmetic("mul", ClockValue("epoch"), Number(2))),
            Arithmetic("mul", Number(0), TODAY),
        )
    ),
    st.integers(-7, 7).map(Number) | st.integers(DAY - 7, DAY + 7).map(Number) | st.just(_erase),
)


@st.composite
def dated_programs(draw: st.DrawFn) -> Program:
    """A program in which more conditions read dates than in others; one of a grant always does."""
    program = draw(programs())
    limits = tuple(
        replace(
            limit,
            clauses=tuple(
                replace(clause, when=And((clause.when, draw(date_comparisons)))) for clause in limit.clauses
            ),
        )
        for limit in program.limits
    )
    grants = tuple(
        replace(grant, when=draw(st.one_of(conditions, date_comparisons))) for grant in program.grants
    )
    dated = Grant("dated", draw(date_comparisons), (SCALE,) * len(program.bands))
    return replace(program, limits=limits, grants=(*grants, dated))


usual = contexts() | contexts().map(lambda context: replace(context, signals={}))


def by_hand(program: Program, metadata: list[dict[str, Any]], context: Context) -> dict[int, DayCount]:
    """Decide every example on every day."""
    days: dict[int, DayCount] = {}
    for example in metadata:
        before = None
        for day in range(DAY - AROUND - 1, DAY + AROUND + 1):
            at = EPOCH_DAY + datetime.timedelta(day)
            after = program.decide(example, replace(context, at=at))
            found = difference(before, after) if before is not None else None
            if found:
                days.setdefault(day, DayCount()).add(found, 1)
            before = after
    return days


def calendar(program: Program, metadata: list[dict[str, Any]], context: Context) -> DataCalendar:
    found = DataCalendar(program, context, DAY - AROUND, DAY + AROUND)
    for start in range(0, len(metadata), 3):  # in pieces, as a manifest is read
        piece = metadata[start : start + 3]
        names = {spec.name for spec in ATTRIBUTES} | {name for example in piece for name in example}
        columns = {name: [example.get(name) for example in piece] for name in names}
        found.add(encode_columns(program, columns, len(piece)))
    return found


def compare_with_every_day(program: Program, metadata: list[dict[str, Any]], context: Context) -> None:
    found = calendar(program, metadata, context)
    assert found.days == by_hand(program, metadata, context)
    assert found.examples == len(metadata)


@settings(max_examples=40)
@given(dated_programs(), st.lists(valid_examples() | examples, min_size=1, max_size=3), usual)
def test_decisions_change_on_the_listed_days_and_on_no_others(
    program: Program, metadata: list[dict[str, Any]], context: Context
) -> None:
    compare_with_every_day(program, [example for example in metadata for _ in range(2)], context)


@pytest.mark.soak
@settings(max_examples=5000)
@given(dated_programs(), st.lists(examples, max_size=8), contexts())
def test_soak_of_the_listed_days(program: Program, metadata: list[dict[str, Any]], context: Context) -> None:
    compare_with_every_day(program, metadata, context)


SQUARE = Compare("lt", Arithmetic("mul", *[Arithmetic("sub", TODAY, Number(DAY))] * 2), Number(10))


@given(programs(), st.lists(examples, max_size=3), contexts())
@settings(max_examples=10)
def test_a_program_that_squares_dates_is_tried_on_every_day(
    program: Program, metadata: list[dict[str, Any]], context: Context
) -> None:
    grants = tuple(replace(grant, when=SQUARE) for grant in program.grants)
    compare_with_every_day(replace(program, grants=grants), metadata, context)


@given(programs())
@settings(max_examples=1)
def test_a_program_that_squares_dates_needs_a_short_range(program: Program) -> None:
    squaring = replace(program, modulations=(), assertions=(), limits=(), waivers=(), grants=())
    DataCalendar(squaring, Context(), 0, 10_000)
    squaring = replace(squaring, grants=(Grant("g", SQUARE, (0,) * len(program.bands)),))
    with pytest.raises(RangeError, match="multiplies dates"):
        DataCalendar(squaring, Context(), 0, 10_000)
