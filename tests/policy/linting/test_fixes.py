"""Mending keeps the program, leaves nothing to mend, and keeps comments."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from gradwarden.policy import PolicyError, parse_policy
from gradwarden.policy.checking.check import CheckedPolicy
from gradwarden.policy.errors import Diagnostic
from gradwarden.policy.linting import fixes
from gradwarden.policy.linting.fixes import mend
from gradwarden.policy.linting.lint import Given, lint
from gradwarden.policy.linting.subject import Edit, Finding
from gradwarden.policy.source import Span
from gradwarden.policy.syntax.format import format_policy
from gradwarden.policy.syntax.lexemes import lexemes
from tests.policy.strategies_text import conditions, declarations, text_of

SCHEMA = """policy p version 1 language 1
examples { kind : one of a, b  consent : bool  source : string  lines : integer 0..9  note : string optional }
model { m = rest }
"""

MENDED = frozenset({"GW501", "GW505", "GW511", "GW537", "GW538"})
"""Codes of which nothing is left after mending, whatever the policy."""


@st.composite
def clumsy(draw: DrawFn) -> list[str]:
    """Declarations of a policy in which some conditions are written roundabout."""
    parts = draw(declarations())
    inner = draw(conditions())
    form = draw(
        st.sampled_from(
            [
                "not not ({})",
                "({}) == true",
                "({}) == false",
                "not (not (({}) != true))",
                "has source and ({})",
                "({}) and has source and consent and consent",
                "consent or ({}) or consent",
                "has license",
                "true and ({})",
            ]
        )
    )
    extra = [
        f'suppress clumsy {{ when {form.format(inner)}  because "x" }}  # kept',
        f"let idle = {form.format(inner)}  # kept too",
        "let idler = idle",
        "# gradwarden: allow GW502, GW534 because nothing of it is here\nlet also_idle = consent",
    ]
    return [*parts, *draw(st.lists(st.sampled_from(extra), unique=True, min_size=1))]


def comments(text: str) -> Counter[str]:
    return Counter(x.text for x in lexemes(text) if x.kind == "comment" and "gradwarden:" not in x.text)


@settings(max_examples=15, deadline=None)
@given(clumsy())
def test_mending_never_changes_the_program(parts: list[str]) -> None:
    text = text_of(parts)
    try:
        policy = parse_policy(text)
    except PolicyError:
        return
    mended = mend(text)
    again = parse_policy(mended.text)
    assert again.program == policy.program
    assert mend(mended.text).text == mended.text
    assert comments(mended.text) == comments(text)
    left = [f.diagnostic.code for f in lint(again.checked) if f.edits and "#" not in text]
    assert not set(left) & MENDED
    format_policy(mended.text)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("when not not consent", "when consent"),
        ("when not (not consent)", "when consent"),
        ("when not not not consent", "when not consent"),
        ("when consent == true and kind == a", "when consent and kind == a"),
        ("when consent == false or kind == a", "when not consent or kind == a"),
        ("when (consent or kind == a) != false", "when (consent or kind == a)"),
        ("when has source and kind == a", "when kind == a"),
        ("when kind == a and has source and consent", "when kind == a and consent"),
        ("when consent and consent and kind == a", "when consent and kind == a"),
        ("when (kind == a) and lines > 3 and kind == a", "when (kind == a) and lines > 3"),
        ("when true and consent", "when consent"),
        ("when not (has note and has note)", "when not (has note)"),
    ],
)
def test_conditions_are_mended(before: str, after: str) -> None:
    text = "{}depth d {{ {}  reach all }}\n"
    assert mend(text.format(SCHEMA, before)).text == text.format(SCHEMA, after)


@pytest.mark.parametrize(
    "rule",
    [
        "depth d { when lines > 3 and lines > 2  reach all }",
        "depth d { when kind in [a, b]  reach all }",
        "depth d { when consent or not consent  reach all }",
        "depth d { when not # why\n not consent  reach all }",
        "depth d { reach all }\nlet x = consent # why\n and kind == a",
    ],
)
def test_what_would_change_the_program_or_lose_a_comment_is_left(rule: str) -> None:
    assert mend(f"{SCHEMA}{rule}\n").text == f"{SCHEMA}{rule}\n"


def test_whole_lines_go_and_what_shares_a_line_stays() -> None:
    text = f"{SCHEMA}let idle = consent\n\n  let more = consent  # told\n"
    text += "depth d {\n  when true\n  reach all\n}\n"
    mended = mend(text)
    assert mended.text == f"{SCHEMA}\n    # told\ndepth d {{\n  reach all\n}}\n"
    assert sorted(gone.code for gone in mended.mended) == ["GW511", "GW511", "GW513"]


def test_a_text_with_errors_is_refused() -> None:
    with pytest.raises(PolicyError):
        mend(f"{SCHEMA}depth d {{ when nothing  reach all }}")


def test_the_version_is_pinned_at_the_end_of_the_header() -> None:
    text = SCHEMA.replace(" language 1", "  # ours") + "depth d { reach all }\n"
    assert mend(text).text == text.replace("version 1", "version 1 language 1")


def test_an_edit_that_would_change_the_program_is_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a lint proposes, together with what is safe or alone."""
    text = f"{SCHEMA}depth d {{ when not not consent and kind == a  reach all }}\n"

    def careless(checked: CheckedPolicy, given: Given) -> list[Finding]:
        source = checked.files[0].source
        at = source.text.index(" and kind == a") if " and kind == a" in source.text else 0
        harmful = Edit(Span(source, at, at + len(" and kind == a")), "")
        return [*lint(checked, given), Finding(Diagnostic("GW514", "careless", harmful.span), (harmful,))]

    monkeypatch.setattr(fixes, "lint", careless)
    assert mend(text).text == text.replace("not not ", "")
