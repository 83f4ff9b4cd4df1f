"""Outcomes that are read together say what each says, and what is odd about them is not passed over."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden.runtime.ledger.entries import CANONICAL
from gradwarden.runtime.verification.outcome_columns import OutcomeColumns, OutcomeReader, read_decimals
from gradwarden.runtime.verification.violation import ViolationError, number

LEADING = re.compile("-?0[0-9]")

ODD = ["0", "-0", "007", "1.", ".5", "+1", "1e5", "1e+05", "1e-0005", "1e999", "-1e400", "1e", "-", "9" * 40]
"""Texts that may be decimals, by their characters."""

texts = st.one_of(
    st.sampled_from(ODD),
    st.from_regex(r"-?[0-9]{1,4}(\.[0-9]{1,6})?(e[+-]?[0-9]{1,4})?", fullmatch=True),
    st.floats(0, 1e6).map(lambda value: f"{value:.6g}"),
)


def one_by_one(listed: list[str]) -> list[float] | None:
    try:
        return list(map(number, listed))
    except ViolationError:
        return None


def together(listed: list[str]) -> list[float] | None:
    found = read_decimals([orjson.dumps(text) for text in listed])
    return None if found is None else found.tolist()


@given(st.lists(texts, max_size=6))
@settings(max_examples=300, deadline=None)
def test_decimals_are_read_together_as_one_by_one(listed: list[str]) -> None:
    """But for leading zeros, which are none in JSON."""
    found = together(listed)
    assert found == one_by_one(listed) or (found is None and any(LEADING.match(text) for text in listed))


@pytest.mark.parametrize("text", ODD)
def test_an_odd_decimal_is_read_as_by_itself(text: str) -> None:
    assert together(["0.5", text, "2"]) in (one_by_one(["0.5", text, "2"]), None)


def body(**changed: Any) -> dict[str, Any]:
    told = {"active": ["b"], "loss": "2.5", "norms": {"b": "0.5", "a": None}, "privacy": {}, "step": 7}
    return {name: value for name, value in (told | changed).items() if value != "absent"}


REFUSED = {"step": 8, "gate": "commit", "reason": "a }, ] b", "detail": "{active:[]}"}


def read(*bodies: dict[str, Any]) -> OutcomeColumns | None:
    committed = ["active" in told for told in bodies]
    return OutcomeReader(["b", "a"]).read(orjson.dumps([*bodies], option=CANONICAL), committed)


def test_outcomes_are_read_column_by_column() -> None:
    found = read(
        body(), REFUSED, body(step=9, active=["a", "b"], batch=12, loss=None, norms={"a": "1e-05", "b": "0"})
    )
    assert found is not None
    assert (found.steps, found.batches, found.losses) == ([7, 8, 9], (b"", b"12"), (b'"2.5"', b"null"))
    assert found.active == (b'["b"]', b'["a","b"]')
    np.testing.assert_array_equal(found.norms, [[0.5, 0.0], [np.nan, 1e-05]])


def test_of_refused_steps_there_are_no_norms() -> None:
    found = read(REFUSED)
    assert found is not None
    assert (found.steps, found.active, found.norms.shape) == ([8], (), (2, 0))


@pytest.mark.parametrize(
    "changed",
    [
        {"privacy": {"p": {"epsilon": "1", "steps": 1}}},
        {"loss": "small"},
        {"loss": "1,2"},
        {"norms": {"a": "0.5"}},
        {"norms": {"a": "0.5", "b": "0.5", "c": "0.5"}},
        {"norms": {"a": "0.5", "b": "nan"}},
        {"norms": {"a": "0.5", "b": "0.5,1"}},
        {"norms": {"a": "0.5", "b": "1e999"}},
        {"norms": {"a": "0.5", "b": "1e0001"}},
        {"step": -1},
        {"more": 1},
        {"loss": "absent"},
        {"active": ["a]"]},
    ],
)
def test_odd_outcomes_are_left_to_the_slow_way(changed: dict[str, Any]) -> None:
    assert read(body(), body(**changed), REFUSED) is None
