"""What docs/testing.md shows is true: its tests pass, and its reports are those of the command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gradwarden.policy import format_policy
from tests.cli.conftest import Run, here, run  # noqa: F401 - fixtures

PAGE = (Path(__file__).parents[2] / "docs" / "testing.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
[POLICY] = [text for kind, text in BLOCKS if kind == "policy"]
TESTS = [text for kind, text in BLOCKS if kind == "yaml"]
REPORTS = [text for kind, text in BLOCKS if kind == "text"]


@pytest.fixture(autouse=True)
def policy(here: Path) -> None:  # noqa: F811
    (here / "scores.policy").write_text(POLICY)


def test_the_policy_is_clean_and_canonical(run: Run) -> None:  # noqa: F811
    assert run("check", "--strict", ".").exit_code == 0
    assert format_policy(POLICY) == POLICY


@pytest.mark.parametrize("tests", TESTS)
def test_the_tests_pass(run: Run, tests: str) -> None:  # noqa: F811
    Path("scores_test.yaml").write_text(tests)
    assert run("test", ".").exit_code == 0


def test_the_reports_are_those_of_the_command(run: Run) -> None:  # noqa: F811
    coverage, mutation = REPORTS
    case = "cases:\n  - {name: a, example: {license: mit, lines: 10, flags: []}, expect: {verdict: limit}}\n"
    Path("scores_test.yaml").write_text(case)
    shown = run("test", ".", "--min-coverage", "90").stdout
    assert [line for line in coverage.splitlines() if line not in shown.splitlines()] == []
    row = "        - {example: {lines: 99}, expect: {weights: {deep: 0.5}}}\n"
    assert row in TESTS[0]
    Path("scores_test.yaml").write_text(TESTS[0].replace(row, ""))
    assert mutation in run("test", ".", "--mutate").stdout.replace("\n\n", "\n")
