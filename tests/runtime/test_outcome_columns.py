"""Recorded decimals read together are those read one by one, and are refused alike."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden.runtime.verification.violation import ViolationError, decimals, number

ODD = ["", "0", "-0", "007", "1.", ".5", "+1", "1E5", "1e5", "1e+05", "1e-0005", "1e999", "-1e400", "nan"]
ODD += [
    "inf",
    " 1",
    "1,2",
    "[1",
    "2]",
    "null",
    "true",
    "1e",
    "-",
    "1_0",
    "9" * 41,
    "9" * 401,
    "0." + "1" * 400,
]

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


@given(st.lists(texts, max_size=6))
@settings(max_examples=300, deadline=None)
def test_decimals_are_read_together_as_one_by_one(listed: list[str]) -> None:
    assert decimals(listed) == one_by_one(listed)


@given(st.sampled_from(ODD))
@settings(deadline=None)
def test_an_odd_text_among_others_is_read_as_by_itself(text: str) -> None:
    assert decimals(["0.5", text, "2"]) == one_by_one(["0.5", text, "2"])
