"""Every lint has a page, whose first example has the finding and whose mended one has none."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from gradwarden.cli.app import cli
from gradwarden.policy.linting.pages import BASE, completed, index, pages
from gradwarden.policy.linting.registry import RULES
from tests.cli.conftest import here, run

ROOT = Path(__file__).parents[3]
CODES = [rule.code for rule in RULES]

RECORDS = [
    {
        "kind": "a",
        "tags": ["pii"],
        "source": "s",
        "lines": 3,
        "agreement": 0.9,
        "entropy": 4.0,
        "consent": True,
        "person": "p1",
        "collected": "2026-01-01",
    }
]
RECORDS.append({**RECORDS[0], "tags": [], "person": "p2"})

__all__ = ["cli", "here", "run"]


def codes_of(run, here: Path, example: str, options: str) -> set[str]:
    (here / "base.policy").write_text(BASE)
    (here / "example.policy").write_text(completed(example))
    (here / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    wanted = shlex.split(options)
    if "--at" not in wanted:
        wanted += ["--at", "2026-06-01"]
    result = run("check", "example.policy", *wanted, "--format", "json")
    document = json.loads(result.stdout)
    assert document["errors"] == 0, document["findings"]
    return {finding["code"] for finding in document["findings"]}


def test_there_are_many_lints_and_each_has_a_page() -> None:
    assert len(RULES) >= 25
    assert sorted(set(CODES)) == CODES
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert list(pages()) == CODES
    assert all(page.good for page in pages().values())


@pytest.mark.parametrize("code", CODES)
def test_the_example_of_a_page_has_its_finding_and_no_other(run, here: Path, code: str) -> None:
    page = pages()[code]
    found = codes_of(run, here, page.bad, page.options)
    if code == "GW511":  # the attribute that only the idle condition read is reported where it is declared
        found.discard("GW504")
    assert found == {code}


@pytest.mark.parametrize("code", CODES)
def test_the_mended_example_has_no_finding(run, here: Path, code: str) -> None:
    page = pages()[code]
    assert codes_of(run, here, page.good, page.options) == set()


@pytest.mark.parametrize("code", [rule.code for rule in RULES if rule.mends])
def test_what_the_registry_calls_mendable_can_be(run, here: Path, code: str) -> None:
    if code in ("GW513", "GW514", "GW516"):  # these are mended only where the program stays the same
        examples = {
            "GW513": 'suppress x { when true  cap deep at 0.5  because "x" }\n',
            "GW514": 'suppress x { when consent and consent  because "x" }\n',
            "GW516": pages()["GW517"].good + pages()["GW517"].good.split("\n")[1] + "\n",
        }
        example = examples[code]
    else:
        example = pages()[code].bad
    assert codes_of(run, here, example, "") == {code}
    result = run("check", "example.policy", "--at", "2026-06-01", "--fix", "--strict")
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "1 file checked: no findings")
    assert f"[{code}]" in result.stdout


def test_the_pages_in_the_docs_are_up_to_date() -> None:
    """`python -m gradwarden.policy.linting.pages docs/rules` writes them."""
    folder = ROOT / "docs" / "rules"
    expected = {f"{code}.md": page.markdown() for code, page in pages().items()} | {"README.md": index()}
    assert {path.name: path.read_text("utf-8") for path in folder.iterdir()} == expected


def test_links_of_pages_lead_somewhere() -> None:
    for page in pages().values():
        for target in re.findall(r"\]\(([^)]+)\)", page.markdown()):
            assert (ROOT / "docs" / "rules" / target).exists()
