"""Comments that allow a finding, what they are about, and what is said of those that do nothing."""

from __future__ import annotations

import pytest

from gradwarden.policy import format_policy, parse_policy
from gradwarden.policy.linting.lint import Given, lint

HEAD = """policy p version 1 language 1
examples { kind : one of a, b  consent : bool }
model { m = rest }
depth d { when kind == a and consent  reach all }
"""
ALLOW = "# gradwarden: allow GW502 because it is plain"


def codes(text: str) -> list[str]:
    return [warning.code for warning in parse_policy(HEAD + text).warnings]


@pytest.mark.parametrize(
    "text",
    [
        f"suppress s {{ when kind == b }}  {ALLOW}\n",
        f"{ALLOW}\nsuppress s {{ when kind == b }}\n",
        f"{ALLOW}\n# and more\n\nsuppress s {{\n  when kind == b\n}}\n",
        f"suppress s {{\n  when kind == b\n}}  {ALLOW}\n",
        f"suppress s {{  {ALLOW}\n  when kind == b\n}}\n",
        "suppress s { when kind == b }  # gradwarden: allow GW502, GW502 because it is plain\n",
        "suppress s { when kind == b }  #gradwarden:allow GW502 because x\n",
    ],
)
def test_a_comment_beside_a_declaration_or_above_it_allows_a_finding(text: str) -> None:
    assert codes(text) == []
    assert [warning.code for warning in parse_policy(format_policy(HEAD + text)).warnings] == []


@pytest.mark.parametrize(
    "text",
    [
        f"suppress s {{ when kind == b }}\n{ALLOW}\n",
        f"suppress s {{\n  {ALLOW}\n  when kind == b\n}}\n",
        f'{ALLOW}\nsuppress t {{ when consent  because "x" }}\nsuppress s {{ when kind == b }}\n',
        "# gradwarden: allow GW503 because x\nsuppress s { when kind == b }\n",
    ],
)
def test_a_comment_elsewhere_allows_nothing_and_is_idle(text: str) -> None:
    assert sorted(codes(text)) == ["GW502", "GW538"]


@pytest.mark.parametrize(
    "comment",
    [
        "# gradwarden: allow GW502",
        "# gradwarden: allow GW502 because",
        "# gradwarden: allow GW999 because x",
        "# gradwarden: allow GW201 because x",
        "# gradwarden: allow GW536 because x",
        "# gradwarden: ignore GW502 because x",
        "# gradwarden: allow because x",
    ],
)
def test_a_comment_that_is_malformed_allows_nothing(comment: str) -> None:
    assert sorted(codes(f"suppress s {{ when kind == b }}  {comment}\n")) == ["GW502", "GW536"]


def test_comments_that_only_mention_the_tool_are_comments() -> None:
    assert codes("# see gradwarden: the manual\n") == []


def test_only_what_was_looked_for_can_be_idle() -> None:
    text = (
        HEAD + 'suppress s { when kind == b  because "x" }\n'
        "# gradwarden: allow GW517 because it is renewed every year\n"
        'waive s { when consent  approved by "A"  until 2026-01-01  because "y" }\n'
    )
    checked = parse_policy(text).checked
    assert [finding.diagnostic.code for finding in lint(checked)] == []
    lapsed, running = Given(today=30_000), Given(today=0)
    assert [finding.diagnostic.code for finding in lint(checked, lapsed)] == []
    assert [finding.diagnostic.code for finding in lint(checked, running)] == ["GW538", "GW518"]


def test_what_is_imported_may_allow_more_than_one_policy_needs(tmp_path) -> None:
    shared = f'examples {{ other : bool }}\n{ALLOW}\nsuppress s {{ when other  because "x" }}\n'
    (tmp_path / "shared.policy").write_text(shared)
    text = HEAD.replace("language 1\n", 'language 1\nimport "shared.policy"\n')
    assert parse_policy(text, directory=tmp_path).warnings == ()
