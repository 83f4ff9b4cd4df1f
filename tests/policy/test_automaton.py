"""The fast driver of the parse table reads what Lark's own driver reads, and stops where that stops."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.policy.source import Source
from gradwarden.policy.syntax.automaton import StuckError
from gradwarden.policy.syntax.build import Builder
from gradwarden.policy.syntax.grammar import table_data
from gradwarden.policy.syntax.parse import automaton, recovery
from gradwarden.policy.syntax.parse_table import checksum, grammar_text, load_table, table_of
from tests.policy.strategies_text import commented, declarations, text_of

ROOT = Path(__file__).parents[2]
TEXTS = [
    path.read_text("utf-8")
    for folder in (
        "tests/corpus/good",
        "tests/corpus/bad",
        "policies",
        "policies/modules",
        "policies/schemas",
    )
    for path in sorted((ROOT / folder).glob("*.policy"))
]


def by_lark(source: Source) -> Any:
    builder = Builder(source)
    items = recovery().parse_whole(source, builder)
    return None if items is None else (items, builder.faults)


def by_automaton(source: Source) -> Any:
    builder = Builder(source)
    try:
        return automaton().run(source, builder), builder.faults
    except StuckError:
        return None


def assert_read_alike(text: str) -> Any:
    source = Source("p", text)
    read = by_automaton(source)
    assert read == by_lark(source)
    return read


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_texts_of_people_are_read_alike(text: str) -> None:
    assert_read_alike(text)


def test_some_texts_are_read_and_some_are_not() -> None:
    read = [by_automaton(Source("p", text)) is not None for text in TEXTS]
    assert True in read
    assert False in read


@given(declarations().map(text_of).flatmap(commented))
def test_generated_texts_are_read_alike(text: str) -> None:
    assert assert_read_alike(text) is not None


@given(st.sampled_from(TEXTS), st.data())
def test_mutilated_texts_are_read_alike(text: str, data: st.DataObject) -> None:
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 12)))
        put = data.draw(
            st.sampled_from(["", " ", "}", "{", "not ", "step0", "at most", "2026-01-01", '"', "#", "in"])
        )
        text = text[:start] + put + text[end:]
    assert_read_alike(text)


@pytest.mark.parametrize(
    "text", ["", " ", "# nothing", "\n#\n", "policy", "\x00", "policy p version 1 language 1 }"]
)
def test_the_ends_of_texts_are_read_alike(text: str) -> None:
    assert_read_alike(text)


@pytest.mark.parametrize(
    "declaration",
    [
        "modulate m { scale deep by lossfrom 1 to 0 }",
        "modulate m { scale deep by loss from 1to 0 }",
        "starvation deep { after 100steps halt }",
        "starvation deep { after 100 steps below 0.5 halt }",
        "starvation deep { below after 100 steps halt }",
        "suppress s { route toquarantine }",
        "policyp version 1",
    ],
)
def test_no_token_ends_early_so_that_the_next_one_fits(declaration: str) -> None:
    assert_read_alike(declaration)


def test_the_stored_table_is_that_of_the_grammar() -> None:
    stored = json.loads((ROOT / "grammars" / "policy.table.json").read_text("utf-8"))
    assert stored["grammar"] == checksum(grammar_text()), "run `python -m gradwarden.policy.syntax.grammar`"
    assert stored == table_data(grammar_text()), "run `python -m gradwarden.policy.syntax.grammar`"


def test_a_table_of_another_grammar_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = grammar_text().replace('"suppress"', '"silence"')
    monkeypatch.setattr("gradwarden.policy.syntax.parse_table.grammar_text", lambda: changed)
    assert load_table() == table_of(table_data(changed))
    assert "silence" in load_table().patterns[0][1]["NAME"]


def test_a_text_without_faults_is_read_without_the_parser_generator() -> None:
    program = (
        "from gradwarden.policy import parse_policy\n"
        "parse_policy('policy p version 1 language 1 model { deep = rest }')\n"
        "import sys; sys.exit('lark' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
