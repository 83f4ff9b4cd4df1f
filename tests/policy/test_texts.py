"""String tests agree with their definitions, and no pattern makes them slow."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.policy.evaluation.texts import glob_matches, text_holds
from gradwarden.policy.program import Text

few_letters = st.text("ab*?\n.", max_size=8)


@given(few_letters, few_letters)
def test_globs_match_as_the_regular_expression_that_defines_them(pattern: str, value: str) -> None:
    parts = {"*": ".*", "?": "."}
    expression = "".join(parts.get(c, re.escape(c)) for c in pattern)
    assert glob_matches(pattern, value) == bool(re.fullmatch(expression, value, re.DOTALL))


@pytest.mark.parametrize(
    ("test", "operands", "passing", "failing"),
    [
        ("equals", ("a", "b"), ["a", "b"], ["", "A", "ab"]),
        ("prefix", ("ab",), ["ab", "abc"], ["a", "cab"]),
        ("suffix", ("ab",), ["ab", "cab"], ["abc"]),
        ("contains", ("*", "x"), ["a*b", "x"], ["ab"]),
        ("glob", ("web-*", "?"), ["web-", "web-1", "z"], ["", "Web-1", "zz"]),
    ],
)
def test_a_text_passes_against_any_of_the_operands(
    test: str, operands: tuple[str, ...], passing: list[str], failing: list[str]
) -> None:
    condition = Text("x", test, operands)  # type: ignore[arg-type]  # a literal from the table above
    assert [text_holds(condition, value) for value in passing] == [True] * len(passing)
    assert [text_holds(condition, value) for value in failing] == [False] * len(failing)


def test_a_pattern_of_many_stars_is_answered_at_once() -> None:
    """A backtracking matcher would need more than the age of the universe."""
    assert not glob_matches("*a" * 40 + "*b", "a" * 20_000)
