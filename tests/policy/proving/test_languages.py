"""Which combinations of string tests occur: every one that does, and none that does not."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden.policy.evaluation.texts import text_holds
from gradwarden.policy.program import Text
from gradwarden.policy.proving import languages
from gradwarden.policy.proving.choices import SolverText
from gradwarden.policy.proving.smt import solver, z3

KINDS = ("equals", "prefix", "suffix", "contains", "glob")
tests_of_text = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.sets(st.text("ab*?", max_size=3), min_size=1, max_size=3).map(lambda texts: tuple(sorted(texts))),
    ),
    min_size=1,
    max_size=3,
    unique=True,
)


def outcome(tests: list[languages.Test], text: str) -> tuple[bool, ...]:
    return tuple(text_holds(Text("", kind, operands), text) for kind, operands in tests)


@given(tests_of_text, st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_the_combinations_found_are_those_of_short_texts(tests: list[languages.Test], longest: int) -> None:
    found = languages.outcomes(tests, longest)
    assert found is not None
    # Three letters that no test tells apart stand for all the others.
    texts = ["".join(letters) for n in range(longest + 1) for letters in product("ab*?x", repeat=n)]
    assert set(found) == {outcome(tests, text) for text in texts}
    for expected, text in found.items():
        assert outcome(tests, text) == expected
        assert len(text) <= longest


@given(tests_of_text, st.text("ab*?xé", max_size=8))
@settings(max_examples=120, deadline=None)
def test_any_longer_text_shows_a_combination_that_was_found(tests: list[languages.Test], text: str) -> None:
    found = languages.outcomes(tests, 65_536)
    assert found is not None
    assert outcome(tests, text) in found


def test_constants_exclude_each_other_and_leave_others() -> None:
    found = languages.outcomes([("equals", ("one",)), ("equals", ("two",)), ("prefix", ("t",))], 65_536)
    assert found is not None
    assert sorted(found) == [
        (False, False, False),
        (False, False, True),
        (False, True, True),
        (True, False, False),
    ]
    assert found[False, True, True] == "two"


def test_long_lists_of_constants_and_words_are_searched() -> None:
    """A test against many operands is one test: it holds or it does not."""
    names = tuple(f"source-{n}" for n in range(500))
    words = tuple(f"{a}{b}{c}{a}" for a, b, c in product("abcd", repeat=3))
    tests: list[languages.Test] = [("equals", names), ("contains", words)]
    found = languages.outcomes(tests, 65_536)
    assert found is not None
    assert set(found) == {(False, False), (True, False), (False, True)}


def test_a_search_that_grows_too_large_is_given_up() -> None:
    many: list[languages.Test] = [
        ("contains", (f"{a}{b}{a}{b}",)) for a, b in product("abcde", repeat=2) if a != b
    ]
    assert languages.outcomes(many, 65_536) is None


@given(tests_of_text, st.text("ab*?xé\\u{}41", max_size=6))
@settings(max_examples=40, deadline=None)
def test_the_solvers_strings_pass_the_tests_of_the_language(tests: list[languages.Test], text: str) -> None:
    choice = SolverText("text", tests, 12)
    asked = solver(10)
    asked.add(*choice.domain(), choice.equals(text))
    assert asked.check() == z3.sat
    model = asked.model()
    assert choice.read(model) == text
    assert tuple(z3.is_true(model.eval(choice.passes(test))) for test in tests) == outcome(tests, text)


@pytest.mark.soak
@given(tests_of_text, st.integers(0, 5))
@settings(max_examples=3000, deadline=None)
def test_soak_of_combinations(tests: list[languages.Test], longest: int) -> None:
    test_the_combinations_found_are_those_of_short_texts.hypothesis.inner_test(tests, longest)
