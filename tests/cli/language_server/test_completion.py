"""What is offered at a place in a policy, also where the text around it does not parse."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradwarden.cli.language_server.completion import import_prefix, proposals
from gradwarden.cli.language_server.declarations import declared_in, merged
from gradwarden.policy.source import Source
from gradwarden.policy.syntax.parse import parse
from tests.cli.language_server.policies import POLICY, cut

RULES = """
depth all_of_it { reach all }
suppress opted_out { when not consent  because "no" }
retain trial { at most 3 exposures }
"""


def offered(marked: str) -> list[str]:
    """Return what is written when a proposal at the cursor, after the schema and some rules, is taken."""
    text, offset = cut(POLICY + RULES + marked)
    now, before = (declared_in([parse(Source("a.policy", x))[0]]) for x in (text, POLICY + RULES))
    declared = merged(now, before)
    return [proposal.text for proposal in proposals(text, offset, declared)]


EXACTLY = {
    "depth d { reach ‸": ["shallow", "deep", "quarantine", "all"],
    "depth d { reach shallow, ‸": ["shallow", "deep", "quarantine", "all"],
    "depth d { when kind == ‸": ["surface", "concept", '"C-2"', "false", "true"],
    "depth d { when kind in [surface, ‸": ["surface", "concept", '"C-2"'],
    "depth d { when kind not in [‸": ["surface", "concept", '"C-2"'],
    "depth d { when tags contains ‸": ["pii", "minor"],
    "depth d { when tags has any [‸": ["pii", "minor"],
    "depth d { when phase == ‸": ["warmup", "main", "false", "true"],
    "depth d { when has ‸": ["patient", "erase_on"],
    "depth d { when band ‸": ["low"],
    "suppress s { cap ‸": ["shallow", "deep", "quarantine", "all"],
    "suppress s { route to ‸": ["quarantine"],
    "privacy p { within ‸": ["shallow", "deep", "quarantine"],
    "privacy p { unit ‸": ["patient"],
    "retain r { until ‸": ["erase_on", "epoch", "step"],
    "curriculum c { in ‸": ["warmup", "main"],
    "modulate m { scale ‸": ["shallow", "deep", "quarantine"],
    "modulate m { scale deep by ‸": ["loss"],
    "waive ‸": ["opted_out", "trial"],
    "starvation ‸": ["shallow", "deep", "quarantine"],
    "starvation deep { ‸": ["after", "below"],
    "starvation deep { below 0.01 ‸": ["after"],
    "gradient { ‸": ["shallow", "deep", "quarantine", "record"],
    "gradient { record 1 in ‸": [],
    "gradient { record 1 in 16 ‸": ["steps"],
    "gradient { record 1 in 16 steps ‸": ["shallow", "deep", "quarantine", "record"],
    "gradient { deep at most 1 ‸": ["shallow", "deep", "quarantine", "in", "record"],
    "gradient { deep at most 1 in 4 ‸": ["steps"],
    "gradient { deep at most 1 in 4 steps ‸": ["shallow", "deep", "quarantine", "record"],
    "model { a = rest  semantics ‸": ["detach", "mask"],
    "maintain m { within ‸": ["shallow", "deep", "quarantine"],
    "maintain m { within deep, ‸": ["shallow", "deep", "quarantine"],
    "maintain m { drift ‸": ["at most"],
    "maintain m { drift at ‸": ["most"],
    "maintain m { rehearse ‸": ["all_of_it"],
    "maintain m { rehearse labelled ‸": ["at least"],
    "maintain m { rehearse labelled at ‸": ["least"],
    "memorization m { hold ‸": ["out"],
    "memorization m { hold out 1 in 4 ‸": ["tokens"],
    "maintain m { ‸": ["because", "drift", "from", "rehearse", "strength", "within"],
    "assert a { never reach ‸": ["shallow", "deep", "quarantine"],
    "assert a { at most 0.5 in ‸": ["shallow", "deep", "quarantine"],
    "depth ‸": [],
    "let ‸": [],
}


@pytest.mark.parametrize("marked", EXACTLY)
def test_what_fits_a_place_is_offered_and_nothing_else(marked: str) -> None:
    assert offered(marked) == EXACTLY[marked]


INCLUDED = {
    "depth d { when ‸": {"kind", "loss", "fine", "low", "today", "phase", "not", "has"},
    "depth d { when consent and ‸": {"kind", "fine", "not"},
    "depth d { when score > ‸": {"score", "loss", "step"},
    "depth d { when entropy > 3 ‸": {"bits/byte", "and", "reach"},
    "depth d { when consent ‸": {"and", "or", "implies", "reach", "because"},
    "depth d { when con‸": {"consent"},
    "depth d { ‸": {"when", "reach", "because"},
    "retain r { ‸": {"at most", "until", "from"},
    "‸": {"depth", "suppress", "let"},
    "assert a { ‸": {"never", "always", "consent", "at most"},
    "let x = ‸": {"consent", "fine", "low"},
    "examples { x : ‸": {"one", "number", "bool"},
    "examples { x : number 0..8 ‸": {"bits/byte", "places", "optional"},
}


@pytest.mark.parametrize("marked", INCLUDED)
def test_what_fits_a_place_is_among_what_is_offered(marked: str) -> None:
    assert set(offered(marked)) >= INCLUDED[marked]


EXCLUDED = {
    "depth d { ‸": {"cap", "route", "epsilon", "at most"},
    "depth d { when consent ‸": {"cap", "until", "epsilon"},
    "depth d { when ‸": {"shallow", "opted_out"},
    'suppress s { because "a ‸': {"kind", "and"},
    "# ‸": {"depth", "kind"},
}


@pytest.mark.parametrize("marked", EXCLUDED)
def test_what_does_not_fit_is_not_offered(marked: str) -> None:
    assert not set(offered(marked)) & EXCLUDED[marked]


def test_text_behind_the_cursor_may_be_broken() -> None:
    assert offered("depth d { reach ‸ @@ }\ndepth e { when ( }")[:2] == ["shallow", "deep"]


def test_an_unclosed_block_does_not_hide_the_declarations_before_it() -> None:
    assert "consent" in offered("depth d { when kind == concept\n\ndepth e { when ‸")


def test_the_path_of_an_import_is_told_from_other_strings() -> None:
    assert import_prefix('import "sha', 11) == "sha"
    assert import_prefix('import "sha"', 12) is None
    assert import_prefix('x because "sha', 14) is None


def test_files_that_can_be_imported_are_listed_as_they_are_written(tmp_path: Path) -> None:
    from gradwarden.cli.language_server.workspace import policies_beside

    (tmp_path / "a" / "shared").mkdir(parents=True)
    for name in ("a/main.policy", "a/shared/one.policy", "two.policy", "a/notes.txt"):
        (tmp_path / name).write_text("")
    assert policies_beside(tmp_path / "a" / "main.policy") == ["../two.policy", "shared/one.policy"]
