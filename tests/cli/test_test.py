"""`gradwarden test`: results, coverage and mutation, and what makes them fail."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.cli.conftest import Run

TESTS = """\
policy: sample.policy
cases:
  - name: ours
    example: {kind: a, lines: 1, topic: []}
    context: {at: 2026-01-01, signals: {loss: 0}}
    expect: {verdict: limit, weights: {shallow: 1, deep: 0.5}}
  - name: others
    table:
      base: {kind: a, lines: 1, topic: []}
      context: {at: 2026-01-01, signals: {loss: 0}}
      rows:
        - {name: long, example: {lines: 100}, expect: {weights: {deep: 0}}}
        - {name: marked, example: {topic: [x]}, expect: {verdict: refuse, stage: suppress}}
"""
WRONG = TESTS.replace("deep: 0.5", "deep: 0.75")


@pytest.fixture
def tests(policy: Path) -> Path:
    path = policy.with_name("sample_test.yaml")
    path.write_text(TESTS)
    return path


@pytest.mark.parametrize("target", ["sample_test.yaml", "sample.policy", "."])
def test_tests_are_found_by_file_policy_and_directory(run: Run, tests: Path, target: str) -> None:
    result = run("test", target)
    assert (result.exit_code, result.stdout) == (0, "sample.policy: 3 cases, all passed\n")


def test_a_file_meant_twice_runs_once(run: Run, tests: Path) -> None:
    document = json.loads(run("test", ".", "sample.policy", tests.name, "--format", "json").stdout)
    assert document["cases"] == 3


@pytest.mark.parametrize("target", ["empty", "sample.policy"])
def test_no_tests_is_a_failure(run: Run, policy: Path, target: str) -> None:
    (policy.parent / "empty").mkdir()
    result = run("test", target)
    assert result.exit_code == 1
    assert "no tests were found" in result.stderr


def test_a_file_without_cases_is_a_failure(run: Run, tests: Path) -> None:
    tests.write_text("cases: []\n")
    assert run("test", ".").exit_code == 1


def test_a_failure_shows_place_difference_and_explanation(run: Run, tests: Path) -> None:
    tests.write_text(WRONG)
    result = run("test", ".")
    assert result.exit_code == 1
    assert "FAILED sample_test.yaml:3:5: ours" in result.stdout
    assert "- expected  {deep: 0.75}" in result.stdout
    assert "+ decided   {deep: 0.5}" in result.stdout
    assert "| limit" in result.stdout
    assert "|     reach shallow at 1, deep at 0.5" in result.stdout
    assert result.stdout.endswith("sample.policy: 3 cases, 1 failed, 2 passed\n")


def test_json_holds_every_case(run: Run, tests: Path) -> None:
    tests.write_text(WRONG)
    document = json.loads(run("test", ".", "--format", "json").stdout)
    assert (document["ok"], document["cases"], document["failed"]) == (False, 3, 1)
    [suite] = document["suites"]
    assert [case["passed"] for case in suite["cases"]] == [False, True, True]
    assert suite["cases"][0]["mismatches"] == [
        {"key": "weights", "expected": "{deep: 0.75}", "actual": "{deep: 0.5}"}
    ]


def test_junit_holds_every_case(run: Run, tests: Path) -> None:
    tests.write_text(WRONG)
    result = run("test", ".", "--format", "junit")
    root = ElementTree.fromstring(result.stdout)
    [suite] = root
    assert (suite.get("tests"), suite.get("failures")) == ("3", "1")
    assert [case.get("name") for case in suite.iter("testcase")] == ["ours", "others: long", "others: marked"]
    [failure] = suite.iter("failure")
    assert "expected {deep: 0.75}, decided {deep: 0.5}" in (failure.get("message") or "")
    assert "when kind == a" in (failure.text or "")


def test_coverage_names_what_was_never_seen(run: Run, tests: Path) -> None:
    result = run("test", ".", "--coverage")
    assert result.exit_code == 0
    assert "expired never true; `has since` in expired never true" in result.stdout
    assert "confined never true; budget_spent never true" in result.stdout
    assert "coverage 54.5%: 12 of 22 outcomes of conditions" in result.stdout


def test_coverage_shows_an_example_for_what_is_missing(run: Run, tests: Path) -> None:
    result = run("test", ".", "--coverage")
    assert 'sample.policy:20:7: granted: for `kind == a` false, add kind = "b"' in result.stdout
    assert (
        'for `has since and today >= since` true, add since = "2025-12-31", at = "2026-01-01"'
        in result.stdout
    )
    coverage = json.loads(run("test", ".", "--coverage", "--format", "json").stdout)["suites"][0]["coverage"]
    assert len(coverage["missing"]) == coverage["outcomes"] - coverage["seen"] == 10
    assert {gap["never"] for gap in coverage["missing"]} == {"true", "false"}
    [expired] = [rule for rule in coverage["rules"] if rule["rule"] == "fresh"]
    assert expired["conditions"][0]["parts"] == [
        {"test": "has since", "true": 0, "false": 3},
        {"test": "today >= since", "true": 0, "false": 0},  # nothing to compare in any of the cases
    ]


@pytest.mark.parametrize(("minimum", "status"), [("54", 0), ("55", 1)])
def test_coverage_can_be_demanded(run: Run, tests: Path, minimum: str, status: int) -> None:
    result = run("test", ".", "--min-coverage", minimum, "--format", "json")
    document = json.loads(result.stdout)
    assert (result.exit_code, document["ok"]) == (status, status == 0)
    assert document["suites"][0]["coverage"]["percent"] == 54.55


def test_surviving_mutants_are_failures_with_names(run: Run, tests: Path) -> None:
    result = run("test", ".", "--mutate")
    assert result.exit_code == 1
    assert "survived sample.policy:23:8: fresh: the rule was dropped" in result.stdout
    long = "survived sample.policy:21:10: long: capped: `lines >= 100` became `lines >= 99`"
    shown = result.stdout.split(long)[1].split("survived")[0].splitlines()
    assert [line.strip() for line in shown if line] == [
        '--example  {"kind": "a", "lines": 99, "topic": []}',
        "--at 2026-01-01 --set loss=1",
        "weights: {deep: 0.45}, damaged {deep: 0}",
        "rules: [calm, granted], damaged [calm, granted, long]",
        "",
    ][: len(shown) - 1]
    assert "granted:" not in result.stdout
    mutation = json.loads(run("test", ".", "--mutate", "--format", "json").stdout)["suites"][0]["mutation"]
    told = {(survivor["rule"], survivor["change"]): survivor for survivor in mutation["survivors"]}
    survivor = told["fresh", "the rule was dropped"]
    assert survivor["example"]["example"]["since"] == "2025-12-31"
    assert (survivor["decision"]["verdict"], survivor["damaged"]["verdict"]) == ("refuse", "limit")


def test_an_example_that_is_shown_can_be_explained(run: Run, tests: Path) -> None:
    import shlex

    lines = run("test", ".", "--mutate").stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if "--example" in line)
    example = lines[at].split("--example", 1)[1]
    options = shlex.split(lines[at + 1])
    result = run("explain", "sample.policy", "--example", "-", *options, input=example)
    assert result.exit_code == 0
    assert result.stdout.startswith("refuse")


DOMAIN = """\
policy: sample.policy
cases:
  - name: long ones stay out of the deep band
    for all: {lines: 50..1000}
    context: {at: 2026-01-01}
    expect: [never reach deep]
"""


def test_a_counterexample_is_shown_and_can_be_explained(run: Run, tests: Path) -> None:
    tests.write_text(DOMAIN)
    result = run("test", ".")
    assert result.exit_code == 1
    assert "- expected  {deep: 0}" in result.stdout
    assert '--example  {"kind": "a", "lines": 50, "topic": []}' in result.stdout
    [case] = json.loads(run("test", ".", "--format", "json").stdout)["suites"][0]["cases"]
    assert case["counterexample"]["example"] == {"kind": "a", "lines": 50, "topic": []}
    assert case["counterexample"]["context"]["at"] == "2026-01-01"
    example = json.dumps(case["counterexample"]["example"])
    assert (
        run("explain", "sample.policy", "--example", "-", "--at", "2026-01-01", input=example).exit_code == 0
    )
    tests.write_text(DOMAIN.replace("50..1000", "100..1000"))
    assert run("test", ".").stdout == "sample.policy: 1 case, all passed\n"


def test_findings_of_tests_are_valid_sarif(run: Run, tests: Path) -> None:
    from tests.cli.test_sarif import VALIDATOR

    tests.write_text(WRONG)
    failed = run("test", ".", "--format", "sarif")
    tests.write_text(TESTS)
    passed = run("test", ".", "--format", "sarif")
    weak = run("test", ".", "--mutate", "--min-coverage", "90", "--format", "sarif")
    assert (failed.exit_code, passed.exit_code, weak.exit_code) == (1, 0, 1)
    found = []
    for result in (failed, passed, weak):
        log = json.loads(result.stdout)
        VALIDATOR.validate(log)
        found.append(log["runs"][0]["results"])
    assert [r["ruleId"] for r in found[0]] == ["GW480"]
    assert found[0][0]["locations"][0]["physicalLocation"]["region"]["startLine"] == 3
    assert found[1] == []
    assert {r["ruleId"] for r in found[2]} == {"GW481", "GW482"}
    places = {r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for r in found[2]}
    assert places == {"sample.policy"}


def test_findings_of_tests_are_annotations(run: Run, tests: Path) -> None:
    tests.write_text(WRONG)
    result = run("test", ".", "--format", "github")
    head, _, message = result.stdout.removeprefix("::").partition("::")
    assert head.startswith("error title=GW480,file=sample_test.yaml,line=3,endLine=")
    assert message == "`ours` fails: weights: expected {deep: 0.75}, decided {deep: 0.5}\n"


def test_mutation_waits_until_the_tests_pass(run: Run, tests: Path) -> None:
    tests.write_text(WRONG)
    assert "mutants" not in run("test", ".", "--mutate").stdout


def test_a_policy_with_errors_is_unreadable(run: Run, tests: Path, policy: Path) -> None:
    policy.write_text(policy.read_text().replace("kind == a", "kind == z"))
    result = run("test", ".")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "sample.policy:20:30" in result.stderr


def test_faults_of_all_files_are_told_at_once(run: Run, tests: Path) -> None:
    tests.write_text(TESTS.replace("verdict: limit", "verdict: limits"))
    other = tests.with_name("other_test.yaml")
    other.write_text(TESTS.replace("deep: 0}", "depp: 0}"))
    result = run("test", ".")
    assert result.exit_code == 2
    assert "`limits` is not a verdict" in result.stderr
    assert "no band `depp`" in result.stderr


def test_every_fault_of_a_test_file_is_told_at_once(run: Run, tests: Path) -> None:
    text = TESTS.replace("verdict: limit,", "verdict: limits, rules: [ourz],").replace(
        "shallow: 1", "shalow: 1"
    )
    tests.write_text(text)
    (tests.parent / "lost_test.yaml").write_text(TESTS.replace("sample.policy", "absent.policy"))
    result = run("test", ".")
    assert result.exit_code == 2
    for told in (
        "`limits` is not a verdict",
        "has no rule `ourz`",
        "has no band `shalow`",
        "is about `absent.policy`, which does not exist",
    ):
        assert told in result.stderr


def test_a_misspelt_key_is_one_fault(run: Run, tests: Path) -> None:
    tests.write_text(TESTS.replace("    example:", "    exmaple:").replace("    expect:", "    expcet:"))
    result = run("test", ".")
    assert result.exit_code == 2
    assert result.stderr.count("error[") == 2
    assert result.stderr.count("error[GW420]") == 2


def test_tests_that_fail_say_why_nothing_was_mutated(run: Run, tests: Path) -> None:
    tests.write_text(WRONG)
    assert "its tests must pass first" in run("test", ".", "--mutate").stderr


def test_coverage_tells_the_stages_of_a_curriculum_apart(run: Run, tests: Path, policy: Path) -> None:
    stages = "curriculum slow { before step 10 reach shallow  from step 10 before step 20 reach all at 0.5 }"
    policy.write_text(f"{policy.read_text()}\n{stages}\n")
    result = run("test", ".", "--coverage")
    assert "not_open (`step >= 10 and step < 20`) never true" in result.stdout
    assert "not_open (`step < 10`) never false" in result.stdout
