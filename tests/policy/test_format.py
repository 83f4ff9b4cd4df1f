"""The canonical layout: it keeps the meaning and every comment, and laying out twice changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden.policy import PolicyError, compile_policy, format_policy, load_policy, parse_policy
from gradwarden.policy.syntax.format import WIDTH
from gradwarden.policy.syntax.lexemes import lexemes
from tests.policy.strategies_text import commented, declarations, text_of

CORPUS = Path(__file__).parent.parent / "corpus"
TEXTS = sorted(CORPUS.glob("good/**/*.policy"))


def _words(text: str) -> list[str]:
    return [lexeme.text for lexeme in lexemes(text)]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_formatting_keeps_every_word_and_comment_of_the_corpus(path: Path) -> None:
    text = path.read_text("utf-8")
    once = format_policy(text)
    assert _words(once) == _words(text)
    assert format_policy(once) == once


@pytest.mark.parametrize("path", sorted(CORPUS.glob("good/*.policy")), ids=lambda path: path.stem)
def test_formatting_keeps_the_program_of_the_corpus(path: Path) -> None:
    formatted = parse_policy(format_policy(path.read_text("utf-8")), directory=path.parent)
    assert compile_policy(formatted).digest == compile_policy(load_policy(path)).digest


@given(declarations())
def test_formatting_never_changes_the_compiled_program(parts: list[str]) -> None:
    text = text_of(parts)
    formatted = format_policy(text)
    assert compile_policy(parse_policy(formatted)).digest == compile_policy(parse_policy(text)).digest
    assert _words(formatted) == _words(text)
    assert format_policy(formatted) == formatted


@given(declarations(), st.data())
def test_comments_may_stand_between_any_two_clauses(parts: list[str], data: st.DataObject) -> None:
    lines = text_of(parts).replace("\n", " # why\n").split("\n")
    at = data.draw(st.integers(0, len(lines)))
    text = "\n".join([*lines[:at], "  # on its own", "", *lines[at:]])
    once = format_policy(text)
    assert _words(once) == _words(text)
    assert format_policy(once) == once


def assert_laid_out(text: str) -> None:
    """The program is kept, every comment stays between the same two words, and once is enough.

    The order of all words and comments is that of the text, so no comment is lost or crosses a declaration.
    """
    formatted = format_policy(text)
    assert compile_policy(parse_policy(formatted)).digest == compile_policy(parse_policy(text)).digest
    assert _words(formatted) == _words(text)
    assert format_policy(formatted) == formatted
    assert all(line == line.rstrip() for line in formatted.split("\n"))


@given(declarations(), st.data())
def test_comments_may_stand_between_any_two_words(parts: list[str], data: st.DataObject) -> None:
    assert_laid_out(data.draw(commented(text_of(parts))))


@pytest.mark.soak
@settings(max_examples=2_000, deadline=None)
@given(declarations(), st.data())
def test_comments_between_any_two_words_at_length(parts: list[str], data: st.DataObject) -> None:
    assert_laid_out(data.draw(commented(text_of(parts))))


def test_blocks_that_fit_stay_on_one_line_with_clauses_two_spaces_apart() -> None:
    text = "depth  a{when x   reach all,b at 0.5}"
    assert format_policy(text) == "depth a { when x  reach all, b at 0.5 }\n"


def test_blocks_written_over_lines_have_one_clause_a_line() -> None:
    text = 'suppress a {\nwhen x because "y" }'
    assert format_policy(text) == 'suppress a {\n  when x\n  because "y"\n}\n'


def test_no_line_ends_in_spaces_where_a_comment_parts_a_field() -> None:
    text = "examples {\n a\n# why\n : bool\n longer : bool\n}\n"
    expected = "examples {\n  a\n      # why\n      : bool\n  longer : bool\n}\n"
    assert format_policy(text) == expected


def test_fields_are_aligned() -> None:
    text = "examples { a:bool\n\n\n# two\nlonger:number -1..1 bits / byte }"
    expected = "examples {\n  a      : bool\n\n  # two\n  longer : number -1..1 bits/byte\n}\n"
    assert format_policy(text) == expected


def test_a_stage_of_a_curriculum_is_one_line() -> None:
    text = "curriculum c {\nfrom step 3 before step 9\nreach a\nin main reach all }"
    expected = "curriculum c {\n  from step 3 before step 9 reach a\n  in main reach all\n}\n"
    assert format_policy(text) == expected


def test_long_lines_are_continued_before_and_and_or() -> None:
    terms = " and ".join(f"attribute_number_{i} == value_{i}" for i in range(12))
    formatted = format_policy(f"let a = {terms}")
    lines = formatted.splitlines()
    assert len(lines) > 1
    assert all(len(line) <= WIDTH for line in lines)
    assert all(line.startswith("    and ") for line in lines[1:])


def test_line_ends_and_byte_order_marks_are_normalised() -> None:
    assert format_policy("\ufefflet a = x\r\n\r\n\r\nlet b = y  # c \r\n") == "let a = x\n\nlet b = y  # c\n"


def test_an_empty_text_stays_empty() -> None:
    assert format_policy("") == ""
    assert format_policy("\n# only this\n\n\n# and this") == "# only this\n\n# and this\n"


def test_a_text_that_does_not_parse_is_refused_with_its_faults() -> None:
    with pytest.raises(PolicyError) as caught:
        format_policy("depth a { reach }", "draft")
    assert [d.code for d in caught.value.diagnostics] == ["GW101"]
    assert "draft:1:17" in str(caught.value)
