"""Every policy in the documentation is one, and decides as the page says."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gradwarden.policy import PolicyError, compile_policy, load_policy
from gradwarden.policy.model_map import Layer, ModelMap, Parameter
from gradwarden.policy.testing.mutants import mutants
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


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.tests and e.page == "language.md"], ids=str)
def test_the_decisions_of_the_reference_would_notice_that_a_rule_was_dropped(
    example: Example, tmp_path: Path
) -> None:
    path = written(example, tmp_path)
    program = load_policy(path).program
    cases = [case for text in example.tests for case in parse_tests(text, path.with_name("t.yaml")).cases]
    dropped = [mutant for mutant in mutants(program) if mutant.change == "the rule was dropped"]
    unnoticed = [m.rule for m in dropped if all(result.passed for result in run_cases(m.program, cases))]
    assert set(unnoticed) <= {"everything"}


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.bands], ids=str)
def test_the_bands_take_the_parameters_that_the_page_says(example: Example, tmp_path: Path) -> None:
    places: list[tuple[str, int | None, int]] = [
        ("embedding", None, 1_000_000),
        *((f"blocks.{number}", number, (7 - number) * 125_000) for number in range(8)),
        *((name, None, 0) for name in ("lm_head", "adapter", "lora_a")),
    ]
    layers = (
        Layer(name, block, depth, (Parameter(f"{name}.weight", (2,)),)) for name, block, depth in places
    )
    model = ModelMap("page", tuple(layers))
    program = compile_policy(load_policy(written(example, tmp_path)), model)
    assert {band.name: sorted(band.parameters or ()) for band in program.bands} == {
        name: sorted(parameters) for name, parameters in yaml.safe_load(example.bands).items()
    }


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
