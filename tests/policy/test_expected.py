"""What may follow a text: whatever does follow in a policy is among it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden.policy.syntax.expected import NOTHING, declaration_start, expected_after, keywords
from gradwarden.policy.syntax.lexemes import Lexeme, lexemes
from tests.policy.strategies_text import declarations, text_of


def _fits(text: str, lexeme: Lexeme, following: Lexeme | None) -> bool:
    expected = expected_after(text[: lexeme.start])
    if lexeme.text in expected.keywords:
        return True
    if following and f"{lexeme.text} {following.text}" in expected.keywords:  # `at most`
        return True
    return {
        "word": expected.name,
        "number": expected.number,
        "string": expected.string,
        "date": expected.date,
    }.get(lexeme.kind, False)


@settings(max_examples=5)
@given(declarations(), st.randoms(use_true_random=False))
def test_what_follows_in_a_policy_is_expected(parts: list[str], random: st.random.Random) -> None:
    text = text_of(parts)
    words = [x for x in lexemes(text) if x.kind != "comment"]
    pairs = [*pairwise(words)]
    for lexeme, following in random.sample(pairs, min(len(pairs), 20)):
        if lexeme.kind == "sign" or text[lexeme.start - 1] == "-":
            continue  # no word begins there
        assert _fits(text, lexeme, following), text[: lexeme.start][-60:] + "‸" + lexeme.text


@pytest.mark.parametrize(
    ("text", "offered", "not_offered"),
    [
        ("", {"depth", "policy", "examples"}, {"reach", "when"}),
        ("depth d { when ", {"not", "has", "true"}, {"reach", "and"}),
        ("depth d { when a ", {"and", "or", "reach", "in"}, {"true"}),
        ("assert a { ", {"never", "always", "at most"}, {"reach"}),
        ("model { a = ", {"top", "rest", "names"}, {"depth"}),
        ("examples { a : ", {"one", "set", "bool"}, {"optional"}),
        ("gradient { record 1 ", {"in"}, {"steps"}),
        ("gradient { record 1 in 4 ", {"steps"}, {"in"}),
    ],
)
def test_keywords_are_offered_by_position(text: str, offered: set[str], not_offered: set[str]) -> None:
    found = expected_after(text).keywords
    assert offered <= found
    assert not found & not_offered


def test_nothing_is_expected_inside_a_broken_declaration() -> None:
    assert expected_after("depth d @ { when ") == NOTHING


def test_a_broken_declaration_does_not_spoil_the_next() -> None:
    assert "reach" in expected_after("depth a { when @@@ }\ndepth b { ").keywords


def test_a_declaration_starts_at_its_line() -> None:
    text = "let a = b\n  advisory depth d {\n reach all }\n"
    assert text[declaration_start(text, len(text)) :].lstrip().startswith("advisory depth")
    assert declaration_start(text, 5) == 0


def test_all_words_of_the_language_are_known() -> None:
    assert {"at", "most", "in", "depth", "places", "private"} <= keywords()


def test_a_number_is_expected_after_record() -> None:
    assert expected_after("gradient { record ").number
