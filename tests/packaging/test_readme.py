"""What the README shows is true: its policy is clean and canonical, its verbs and files exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gradwarden.cli.app import VERBS
from gradwarden.policy import format_policy, parse_policy

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```\w*\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def shown_policy() -> str:
    return next(block for block in BLOCKS if block.startswith("policy "))


def test_the_policy_has_no_findings() -> None:
    assert parse_policy(shown_policy(), "README.md").warnings == ()


def test_the_policy_is_laid_out_canonically() -> None:
    assert format_policy(shown_policy()) == shown_policy()


def test_every_verb_shown_exists() -> None:
    verbs = {verb for block in BLOCKS for verb in re.findall(r"^gradwarden (\w+)", block, re.MULTILINE)}
    assert verbs
    assert verbs <= VERBS.keys()


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([\w/.-]+)\)", README))))
def test_every_link_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
