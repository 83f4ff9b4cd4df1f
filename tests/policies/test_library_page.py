"""The page that lists the library names every policy, and only policies there are."""

import re
from importlib.resources import files
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "policies.md"
SHIPPED = {path.stem for path in Path(str(files("gradwarden.policies"))).glob("*.policy")}
APPLICATIONS = (
    "licences, opt-outs",
    "a regulated model",
    "medicine",
    "law",
    "finance",
    "defence",
    "education",
    "creative works",
    "training in stages",
    "written principles",
    "image-text models with LoRA",
    "one artist's style",
    "a labelling workforce",
    "exports of a labelling platform",
    "weak supervision",
    "experiment tracking",
    "elastic training and hyper-parameter trials",
    "trainer callbacks",
)


def section(title):
    _, _, rest = PAGE.read_text("utf-8").partition(f"## {title}\n")
    return [line for line in rest.partition("\n## ")[0].splitlines() if line.startswith("|")][2:]


def test_every_policy_is_listed_and_every_link_leads_to_one():
    linked = re.findall(r"\]\(\.\./policies/(\w+)\.policy\)", "\n".join(section("By application")))
    assert set(linked) == SHIPPED


@pytest.mark.parametrize("application", APPLICATIONS)
def test_every_application_has_a_policy(application):
    rows = [row for row in section("By application") if application in row.split("|")[1]]
    assert rows
    assert all(".policy)" in row for row in rows)


def test_the_constructs_are_shown_by_policies_there_are():
    for row in section("To learn the language by reading"):
        named = re.findall(r"\b[a-z]+(?:_[a-z]+)+\b|\bcreative\b|\beducation\b", row.split("|")[2])
        assert named or "all" in row
        assert set(named) <= SHIPPED
