"""Every policy in the documentation is one, and decides as the page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradwarden.policy import PolicyError, load_policy
from gradwarden.policy.testing.runner import check_fit, run_cases
from gradwarden.policy.testing.test_file import parse_tests
from tests.docs.pages import DOCS, Example, examples

PAGES = sorted(
    path.name
    for path in DOCS.glob("*.md")
    if "\n```policy" in path.read_text("utf-8") and path.name != "tutorial.md"  # followed by its own test
)
EXAMPLES = [example for page in PAGES for example in examples(page)]


def written(example: Example, folder: Path) -> Path:
    """Write the policy of an example, and the files that it imports."""
    for place, text in {**example.files, "example.policy": example.text}.items():
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text(text, "utf-8")
    return folder / "example.policy"


@pytest.mark.parametrize("example", [e for e in EXAMPLES if not e.codes], ids=str)
def test_the_policy_is_one_and_decides_as_the_page_says(example: Example, tmp_path: Path) -> None:
    path = written(example, tmp_path)
    try:
        program = load_policy(path).program
    except PolicyError as error:
        raise AssertionError("\n".join(finding.render() for finding in error.diagnostics)) from error
    for text in example.tests:
        tests = parse_tests(text, path.with_name("example_test.yaml"))
        check_fit(program, tests)
        assert tests.cases
        failed = [result for result in run_cases(program, tests.cases) if not result.passed]
        assert not failed, "\n".join(f"{result.case.name}: {result.mismatches}" for result in failed)


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.codes], ids=str)
def test_the_policy_has_the_findings_that_the_page_says(example: Example, tmp_path: Path) -> None:
    """Errors are exactly those named; warnings are among others that a part of a policy has."""
    path = written(example, tmp_path)
    if all(code.startswith("GW5") for code in example.codes):
        assert set(example.codes) <= {finding.code for finding in load_policy(path).warnings}
    else:
        with pytest.raises(PolicyError) as caught:
            load_policy(path)
        assert {finding.code for finding in caught.value.diagnostics} == set(example.codes)


def test_the_reference_shows_decisions_throughout() -> None:
    here = examples("language.md")
    shown = sum(len(example.tests) for example in here)
    assert shown >= 20
    assert shown >= len([example for example in here if not example.codes]) // 2
