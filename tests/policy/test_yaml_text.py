"""YAML is read strictly: a subset, with positions, in bounded time."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.policy.errors import PolicyError
from gradwarden.policy.source import Source
from gradwarden.policy.testing.yaml_text import MAX_CHARACTERS, read_yaml


def plain(text: str) -> object:
    return read_yaml(Source("t.yaml", text)).plain()


def codes(text: str) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        plain(text)
    return [diagnostic.code for diagnostic in caught.value.diagnostics]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("false", False),
        ("~", None),
        ("", None),
        ("12", 12),
        ("-12", -12),
        ("0.5", 0.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("-.inf", float("-inf")),
        ("1:30", "1:30"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("2026-01-31", date(2026, 1, 31)),
        ("2026-02-30", "2026-02-30"),
        ("2026-01-31T00:00:00", "2026-01-31T00:00:00"),
        ("'12'", "12"),
        ('"2026-01-31"', "2026-01-31"),
        ("1.0.0", "1.0.0"),
    ],
)
def test_scalars_follow_the_core_schema_plus_dates(text: str, value: object) -> None:
    got = plain(text)
    assert got == value
    assert type(got) is type(value)


def test_nan_is_a_number() -> None:
    got = plain(".nan")
    assert isinstance(got, float)
    assert got != got


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a: 1\na: 2", "GW413"),
        ("a: &x 1", "GW411"),
        ("a: !!python/object 1", "GW411"),
        ("--- 1\n--- 2", "GW411"),
        ("a: [1", "GW410"),
        ("a:\n\tb: 1", "GW410"),
        ("a: \x07", "GW410"),
        ("? [a]\n: 1", "GW412"),
        ("[" * 10_000, "GW411"),
        ("{a: " * 10_000, "GW411"),
        ("x" * (MAX_CHARACTERS + 1), "GW410"),
    ],
)
def test_everything_else_is_refused(text: str, code: str) -> None:
    assert codes(text) == [code]


def test_aliases_cannot_expand() -> None:
    laughs = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]"
    assert set(codes(laughs)) == {"GW411"}


def test_all_faults_are_told_at_their_places() -> None:
    with pytest.raises(PolicyError) as caught:
        plain("é: {b: 1, b: 2}\nc: *x\nc: 3\n")
    spans = [diagnostic.span for diagnostic in caught.value.diagnostics]
    assert [(span.line, span.column, span.text) for span in spans if span] == [
        (1, 11, "b"),
        (2, 4, "*x"),
        (3, 1, "c"),
    ]


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=8)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | WORDS
    | st.floats(allow_nan=False, allow_infinity=False)
)


@given(st.recursive(SCALARS, lambda x: st.lists(x, max_size=4) | st.dictionaries(WORDS, x, max_size=4)))
def test_json_is_read_as_json_reads_it(value: object) -> None:
    text = json.dumps(value, ensure_ascii=False)
    assert plain(text) == value


@given(st.text(alphabet="{}[]:,-?!&*|>'\"\n\t #ab1~", max_size=60))
def test_no_text_makes_anything_but_a_diagnostic(text: str) -> None:
    with suppress(PolicyError):
        plain(text)
