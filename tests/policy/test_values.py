"""What metadata mean: exact encoding, and a named fault for everything that does not fit."""

from __future__ import annotations

import datetime
import math
from collections import OrderedDict
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.policy.context import Context
from gradwarden.policy.evaluation.columns import encode_columns
from gradwarden.policy.evaluation.evaluate import decide
from gradwarden.policy.evaluation.values import (
    Fault,
    decode_value,
    encode_metadata,
    encode_signal,
    encode_value,
    shown,
)
from gradwarden.policy.program import SCALE, AttributeSpec, Band, Constant, Grant, Program, SignalSpec

BIG = 2**53
WHOLE = AttributeSpec("x", "number", lo=-BIG, hi=BIG)
CENTS = AttributeSpec("x", "number", lo=-1_000_000, hi=1_000_000, places=2)
UNIT = AttributeSpec("x", "number", lo=0, hi=1_000_000, places=6)
DATE = AttributeSpec("x", "date", lo=0, hi=40_000)
ENUM = AttributeSpec("x", "enum", values=("mit", "gpl"))
SET = AttributeSpec("x", "set", values=tuple(f"m{i}" for i in range(63)))
TEXT = AttributeSpec("x", "string", hi=4)
BOOL = AttributeSpec("x", "bool")


def as_column(raw: Any) -> list[Any]:
    """One value in every form of column that can hold it."""
    boxed = np.empty(1, object)
    boxed[0] = raw
    forms: list[Any] = [[raw], boxed]
    if isinstance(raw, np.generic | float | bool) or (isinstance(raw, int) and abs(raw) < BIG):
        forms.append(np.array([raw]))
    return forms


@pytest.mark.parametrize(
    ("spec", "raw", "encoded"),
    [
        (WHOLE, 0.5, 0),
        (WHOLE, 1.5, 2),
        (WHOLE, 2.5, 2),
        (WHOLE, -0.5, 0),
        (WHOLE, -1.5, -2),
        (WHOLE, 0.49999999999999994, 0),
        (CENTS, 0.125, 12),
        (CENTS, 0.375, 38),
        (CENTS, 1.005, 100),  # the double 1.005 times 100.0 is 100.49999999999999
        (CENTS, 0.285, 28),  # the exact value is below 28.5, the product of doubles is 28.499999999999996
        (CENTS, 0.145, 14),  # 14.499999999999998
        (CENTS, 1.115, 112),  # the exact value is below 111.5; the product of doubles is 111.50000000000001
        (CENTS, Decimal("1.115"), 112),
        (CENTS, Decimal("1.125"), 112),
        (CENTS, Decimal("1e-999999"), 0),
        (CENTS, -0.0, 0),
        (CENTS, 7, 700),
        (CENTS, np.int8(7), 700),
        (CENTS, np.uint64(7), 700),
        (CENTS, np.float32(0.125), 12),
        (CENTS, np.float16(0.125), 12),
        (UNIT, 1, 1_000_000),
        (UNIT, 5e-7, 0),
        (UNIT, 1.5e-6, 2),
        (WHOLE, BIG, BIG),
        (WHOLE, -BIG, -BIG),
        (BOOL, np.True_, True),
        (DATE, datetime.date(1970, 1, 2), 1),
        (DATE, "1970-01-02", 1),
        (DATE, np.datetime64("1970-01-02"), 1),
        (ENUM, "gpl", 1),
        (SET, [], 0),
        (SET, ("m0", "m62", "m0"), 1 | 1 << 62),
        (SET, {"m1"}, 2),
        (SET, np.array(["m1", "m2"]), 6),
        (TEXT, "", ""),
        (TEXT, "äöüß", "äöüß"),
    ],
)
def test_values_are_encoded_exactly(spec: AttributeSpec, raw: Any, encoded: int | str) -> None:
    assert encode_value(spec, raw) == encoded
    for column in as_column(raw):
        columns = encode_columns(program_of(spec), {"x": column})
        assert not columns.faults
        value = columns.encoded["x"].values[0]
        assert (columns.encoded["x"].dictionary[value] if spec.type == "string" else int(value)) == encoded


@pytest.mark.parametrize(
    ("spec", "raw", "code"),
    [
        (CENTS, True, "wrong_type"),
        (CENTS, np.True_, "wrong_type"),
        (CENTS, "1", "wrong_type"),
        (CENTS, 1j, "wrong_type"),
        (CENTS, math.nan, "not_finite"),
        (CENTS, np.float32("nan"), "not_finite"),
        (CENTS, -math.inf, "not_finite"),
        (CENTS, Decimal("NaN"), "not_finite"),
        (CENTS, 1e308, "out_of_range"),
        (CENTS, 10_000.01, "out_of_range"),
        (CENTS, 10_001, "out_of_range"),
        (CENTS, np.int64(2**62), "out_of_range"),
        (CENTS, np.uint64(2**63 + 1), "out_of_range"),
        (CENTS, -(10**400), "out_of_range"),
        (CENTS, Decimal("1e999999"), "out_of_range"),
        (BOOL, 1, "wrong_type"),
        (BOOL, "true", "wrong_type"),
        (DATE, datetime.datetime(2026, 1, 1), "wrong_type"),
        (DATE, np.datetime64("2026-01-01T00"), "wrong_type"),
        (DATE, 20_000, "wrong_type"),
        (DATE, "2026-1-1", "wrong_type"),
        (DATE, "20260101", "wrong_type"),
        (DATE, "2026-02-30", "wrong_type"),
        (DATE, "２026-01-01", "wrong_type"),
        (DATE, "1969-12-31", "out_of_range"),
        (ENUM, 1, "wrong_type"),
        (ENUM, b"mit", "wrong_type"),
        (ENUM, "MIT", "unknown_value"),
        (SET, "m0", "wrong_type"),
        (SET, {"m0": True}, "wrong_type"),
        (SET, ["m0", "m63"], "unknown_value"),
        (SET, ["m63", None], "wrong_type"),
        (TEXT, 5, "wrong_type"),
        (TEXT, "12345", "too_long"),
    ],
)
def test_what_does_not_fit_is_a_named_fault(spec: AttributeSpec, raw: Any, code: str) -> None:
    with pytest.raises(Fault) as caught:
        encode_value(spec, raw)
    assert caught.value.code == code
    decision = decide(program_of(spec), {"x": raw}, Context())
    assert (decision.verdict, decision.micro, decision.stage) == ("invalid", (0,), "schema")
    assert [(problem.attribute, problem.code) for problem in decision.problems] == [("x", code)]
    for column in as_column(raw):
        assert encode_columns(program_of(spec), {"x": column}).problems(0) == decision.problems


@pytest.mark.parametrize("nothing", [None, np.datetime64("NaT"), np.ma.masked])
def test_none_and_its_like_are_absent(nothing: Any) -> None:
    optional = AttributeSpec("x", "date", optional=True, hi=40_000)
    assert encode_metadata((optional,), {"x": nothing}) == ({}, ())
    values, problems = encode_metadata((DATE,), {"x": nothing})
    assert not values
    assert [problem.code for problem in problems] == ["missing"]


def test_undeclared_attributes_are_invalid_unless_they_hold_nothing() -> None:
    _, problems = encode_metadata((BOOL,), {"x": True, "y": 1, "a": 2, "b": None, 3: 4})
    assert [(p.attribute, p.code) for p in problems] == [(n, "unknown_attribute") for n in ("3", "a", "y")]
    assert (
        "did you mean `license`?"
        in encode_metadata((AttributeSpec("license", "bool"),), {"license": True, "licence": True})[1][
            0
        ].detail
    )


def test_all_faults_of_an_example_are_listed_in_the_order_of_the_declarations() -> None:
    specs = tuple(AttributeSpec(name, "bool") for name in ("b", "a", "c"))
    _, problems = encode_metadata(specs, OrderedDict(z=1, c=1, b=2))
    assert [p.attribute for p in problems] == ["b", "a", "c", "z"]


@given(st.decimals(-10_000, 10_000, places=4))
def test_decimals_round_half_even(raw: Decimal) -> None:
    assert encode_value(CENTS, raw) == int((raw * 100).to_integral_value(ROUND_HALF_EVEN))


@given(st.lists(st.floats(-10_000, 10_000) | st.integers(-1_000_000, 1_000_000).map(lambda n: n / 200)))
def test_float_columns_round_as_single_floats(raw: list[float]) -> None:
    columns = encode_columns(program_of(CENTS), {"x": np.array(raw, np.float64)}, len(raw))
    assert columns.encoded["x"].values.tolist() == [encode_value(CENTS, value) for value in raw]


@pytest.mark.parametrize(
    "raw", ["x" * 10_000_000, pytest.param(10**100_000, id="huge"), "\x1b[31m", [[]] * 100, object()]
)
def test_a_users_value_is_shown_short_and_printable(raw: object) -> None:
    text = shown(raw)
    assert len(text) < 100
    assert text.isprintable()


@pytest.mark.parametrize(
    ("spec", "encoded", "text"),
    [
        (CENTS, -150, "-1.5"),
        (CENTS, 1, "0.01"),
        (CENTS, 700, "7"),
        (DATE, 1, "1970-01-02"),
        (AttributeSpec("x", "date", hi=10**9), 10**9, "day 1000000000"),
        (SET, 5, "[m0, m2]"),
        (ENUM, 1, "gpl"),
        (BOOL, False, "false"),
        (TEXT, "ab", "`ab`"),
    ],
)
def test_encoded_values_are_decoded_for_people(spec: AttributeSpec, encoded: int | str, text: str) -> None:
    assert decode_value(spec, encoded) == text


@pytest.mark.parametrize(
    ("raw", "encoded"),
    [(-5, 0), (0.0015, 2), (0.0025, 2), (99, 1000), (1e308, 1000), (np.float32(0.5), 500)],
)
def test_signals_are_rounded_then_clamped(raw: float, encoded: int) -> None:
    assert encode_signal(SignalSpec("s", 0, 1000, 3, 0), raw) == encoded


def program_of(*attributes: AttributeSpec) -> Program:
    """A program that admits every valid example."""
    return Program(
        name="open",
        version=1,
        language=1,
        max_weight=SCALE,
        attributes=attributes,
        signals=(),
        bands=(Band("all", ()),),
        grants=(Grant("everything", Constant(True), (SCALE,)),),
        limits=(),
        modulations=(),
        waivers=(),
        assertions=(),
    )
