"""`for all` cases: what is tried, what does not fit, and how simple a counterexample is."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden.policy import compile_policy, parse_policy
from gradwarden.policy.errors import PolicyError
from gradwarden.policy.evaluation.evaluate import read_facts
from gradwarden.policy.program import Program
from gradwarden.policy.testing.for_all import ForAll, assignments, shrink
from gradwarden.policy.testing.inputs import Domain, Variable, all_domains, inputs_of, number_scale, ranged
from gradwarden.policy.testing.runner import CaseResult, check_fit, examples_of, run_cases
from gradwarden.policy.testing.test_file import parse_tests
from tests.policy.test_testing import published_schema
from tests.strategies import programs

POLICY = """
policy sample version 1 language 1
examples {
  license  : one of mit, gpl, cc0
  lines    : integer 0..1000
  score    : number 0..1 places 2
  consent  : bool
  flags    : set of pii, minor
  source   : string
  received : date
  erase_on : date optional
}
signals { loss : number 0..10 default 1 }
model { shallow = top 50%  deep = rest }
depth open { when license == mit and consent and score >= 0.25  reach shallow, deep at 0.5 }
depth old { when license == cc0 and lines > 417 and source starts with "arch/"  reach all }
suppress pii { when flags contains pii  because "personal" }
retain due { when has erase_on  until erase_on }
modulate calm { when step < 100  scale deep by loss from 1 to 0.5 }
"""


@pytest.fixture(scope="module")
def program() -> Program:
    return compile_policy(parse_policy(POLICY))


def read(text: str) -> Any:
    return parse_tests(text, Path("sample_test.yaml"))


def run(program: Program, case: str) -> CaseResult:
    tests = read(f"cases:\n  - {{name: x, {case[1:]}")
    check_fit(program, tests)
    [result] = run_cases(program, tests.cases)
    return result


DAY = "context: {at: 2026-06-01}"


def test_what_holds_for_all_passes_and_says_how_much_was_tried(program: Program) -> None:
    result = run(program, f"{{for all: {{flags: [[pii], [pii, minor]]}}, {DAY}, expect: [always refuse]}}")
    assert result.passed
    assert len(result.tried) == 256
    assert all("pii" in case.example["flags"] for case in result.tried)  # type: ignore[operator]


def test_every_combination_of_listed_values_is_tried(program: Program) -> None:
    case = (
        f"for all: {{license: any, consent: any, flags: any}}, {DAY}, samples: 600, expect: {{stage: null}}"
    )
    tests = read(f"cases:\n  - {{name: x, {case}}}")
    tried = {
        (c.example["license"], c.example["consent"], tuple(c.example["flags"]))  # type: ignore[arg-type]
        for c in examples_of(program, tests.cases)
    }
    flags = ((), ("pii",), ("minor",), ("pii", "minor"))
    assert tried == set(product(("mit", "gpl", "cc0"), (True, False), flags))


def test_a_range_is_tried_at_its_ends_and_at_the_bounds_of_conditions(program: Program) -> None:
    tests = read(f"cases:\n  - {{name: x, for all: {{lines: 5..900}}, {DAY}, expect: {{stage: null}}}}")
    lines = {case.example["lines"] for case in examples_of(program, tests.cases)}
    assert {5, 900, 416, 417, 418} <= lines
    assert all(5 <= line <= 900 for line in lines if isinstance(line, int))


def test_texts_pass_and_miss_what_conditions_ask_for(program: Program) -> None:
    tests = read(f"cases:\n  - {{name: x, for all: {{source: any}}, {DAY}, expect: {{stage: null}}}}")
    sources = {case.example["source"] for case in examples_of(program, tests.cases)}
    assert {"", "arch/", "arch"} <= sources


def test_dates_and_absent_values_are_tried(program: Program) -> None:
    case = "{name: x, for all: {erase_on: any}, context: {at: 2026-01-01..2026-01-09}, expect: {stage: null}}"
    cases = examples_of(program, read(f"cases:\n  - {case}").cases)
    assert {c.context.at for c in cases} == {date(2026, 1, day) for day in range(1, 10)}
    assert any("erase_on" not in c.example for c in cases)
    assert any("erase_on" in c.example for c in cases)


def test_nothing_is_drawn_anew_unless_the_seed_is(program: Program) -> None:
    def tried(seed: int) -> list[Any]:
        text = (
            f"cases:\n  - {{name: x, for all: {{lines: any}}, {DAY}, seed: {seed}, expect: {{stage: null}}}}"
        )
        return [(c.example, c.context) for c in examples_of(program, read(text).cases)]

    assert tried(3) == tried(3)
    assert tried(3) != tried(4)


@pytest.mark.parametrize(
    ("case", "example"),
    [
        (
            f"{{for all: {{license: any}}, {DAY}, expect: [never reach deep]}}",
            {"license": "mit", "consent": True, "score": Decimal("0.25"), "lines": 0, "source": ""},
        ),
        (
            f"{{for all: {{license: [cc0]}}, {DAY}, expect: [at most 0.9 in deep]}}",
            {"license": "cc0", "consent": False, "score": 0, "lines": 418, "source": "arch/"},
        ),
    ],
)
def test_a_counterexample_is_as_simple_as_the_rule_allows(
    program: Program, case: str, example: dict[str, Any]
) -> None:
    result = run(program, case)
    assert not result.passed
    found = {key: result.case.example[key] for key in example}
    assert found == example
    assert "erase_on" not in result.case.example
    assert result.case.example["flags"] == []


def test_a_counterexample_of_the_context_is_simple_too(program: Program) -> None:
    case = """{for all: {license: [mit], erase_on: [2026-03-01]},
      context: {at: any, step: any, signals: {loss: any}}, expect: {weights: {deep: 0..0.49}}}"""
    result = run(program, case)
    assert not result.passed
    context = result.case.context
    # the first step at which the rule no longer scales, and the default of the signal
    assert (context.step, context.at, context.signals) == (100, date(2026, 1, 1), {"loss": 1})


@pytest.mark.parametrize(
    ("expect", "passes"),
    [
        ("{verdict: [refuse, defer]}", False),
        ("{verdict: [limit, refuse]}", True),
        ("{weights: {deep: at most 0.475}}", True),
        ("{weights: {deep: at most 0.474999}}", False),
        ("{weights: {shallow: at least 0.5}}", False),
        ("{weights: {deep: 0..0.5}}", True),
        ("{rules: {without: [old]}}", True),
        ("{rules: {without: [open]}}", False),
        ("{rules: {with: [open]}}", False),
        ("[at least 0 in shallow, at most 0.5 in deep]", True),
        ('["verdict in [limit, refuse]"]', True),
        ('["verdict in [limit]"]', False),
        ("[always refuse]", False),
    ],
)
def test_expectations_may_be_bounds(program: Program, expect: str, passes: bool) -> None:
    assert run(program, f"{{for all: {{license: [mit, gpl]}}, {DAY}, expect: {expect}}}").passed is passes


def faults(program: Program, case: str) -> list[tuple[str, str]]:
    with pytest.raises(PolicyError) as caught:
        check_fit(program, read(f"cases:\n  - {{name: x, {case}}}"))
    return [(d.code, d.span.text if d.span else "") for d in caught.value.diagnostics]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (f"for all: {{licence: any}}, {DAY}, expect: [always refuse]", [("GW428", "any")]),
        (f"for all: {{license: [mitt]}}, {DAY}, expect: [always refuse]", [("GW430", "[mitt")]),
        (f"for all: {{license: a..b}}, {DAY}, expect: [always refuse]", [("GW430", "a..b")]),
        (f"for all: {{lines: 0..2000}}, {DAY}, expect: [always refuse]", [("GW430", "0..2000")]),
        (f"for all: {{lines: 9..3}}, {DAY}, expect: [always refuse]", [("GW430", "9..3")]),
        (f"for all: {{lines: []}}, {DAY}, expect: [always refuse]", [("GW430", "[")]),
        (f"for all: {{lines: [null]}}, {DAY}, expect: [always refuse]", [("GW430", "[null")]),
        (f"for all: {{flags: [pii]}}, {DAY}, expect: [always refuse]", [("GW430", "[pii")]),
        (f"for all: {{received: 2026-02-30..2026-03-01}}, {DAY}, expect: [always refuse]", [("GW430", "")]),
        (
            f"for all: {{lines: any}}, example: {{lines: 3}}, {DAY}, expect: [always refuse]",
            [("GW424", "any")],
        ),
        (
            f"for all: {{lines: any}}, example: {{consent: 3}}, {DAY}, expect: [always refuse]",
            [("GW430", "3")],
        ),
        (f"for all: {{lines: any}}, {DAY}, samples: 0, expect: [always refuse]", [("GW423", "0")]),
        (f"for all: {{lines: any}}, {DAY}, samples: 10001, expect: [always refuse]", [("GW423", "10001")]),
        ("for all: {lines: any}, context: {at: any, step: -1..3}, expect: [always refuse]", [("GW430", "")]),
        ("for all: {lines: any}, context: {at: [soon]}, expect: [always refuse]", [("GW430", "[soon")]),
        (
            "for all: {lines: any}, context: {at: any, signals: {los: any}}, expect: [always refuse]",
            [("GW430", "any")],
        ),
        ("for all: {lines: any}, expect: [always refuse]", [("GW429", "")]),
        (f"for all: {{lines: any}}, {DAY}", [("GW422", "")]),
        (f"for all: {{lines: any}}, {DAY}, expect: []", [("GW425", "[]")]),
        (f"for all: {{lines: any}}, {DAY}, expect: [never reach depp]", [("GW428", "depp")]),
        (f"for all: {{lines: any}}, {DAY}, expect: [never touch deep]", [("GW427", "never touch deep")]),
        (f"for all: {{lines: any}}, {DAY}, expect: {{weights: {{deep: most}}}}", [("GW423", "most")]),
        (f"for all: {{lines: any}}, {DAY}, expect: {{weights: {{deep: 1..0.5}}}}", [("GW423", "1..0.5")]),
        (f"for all: {{lines: any}}, {DAY}, expect: {{verdict: []}}", [("GW425", "[]")]),
        (f"for all: {{lines: any}}, {DAY}, expect: {{rules: {{}}}}", [("GW425", "{}")]),
        (f"example: {{lines: 1}}, {DAY}, seed: 3, expect: [always refuse]", [("GW424", "3")]),
    ],
)
def test_what_does_not_fit_is_told_at_its_place(
    program: Program, case: str, expected: list[tuple[str, str]]
) -> None:
    found = faults(program, case)
    assert [code for code, _ in found] == [code for code, _ in expected]
    assert all(shown.startswith(part) for (_, shown), (_, part) in zip(found, expected, strict=True))


SCHEMA_CASES = {
    "{name: x, for all: {a: any, b: 0..3, c: [1]}, expect: [never reach deep]}": True,
    "{name: x, for all: {}, samples: 9, seed: 1, expect: {verdict: [limit]}}": True,
    "{name: x, for all: {}, context: {step: 0..3, at: any}, expect: {weights: {deep: at most 0.5}}}": True,
    "{name: x, for all: {}, expect: {rules: {with: [a], without: []}}}": True,
    "{name: x, for all: {}}": False,
    "{name: x, for all: {}, samples: 0, expect: [always refuse]}": False,
    "{name: x, for all: {}, expect: [sometimes refuse]}": False,
    "{name: x, for all: {}, expect: {weights: {deep: about 1}}}": False,
    "{name: x, example: {}, seed: 1, expect: [always refuse]}": False,
    "{name: x, for all: {}, table: {rows: []}, expect: [always refuse]}": False,
}


@pytest.mark.parametrize("case", SCHEMA_CASES)
def test_the_published_schema_agrees_with_the_reader(case: str) -> None:
    import yaml

    text = f"cases: [{case}]"
    assert published_schema().is_valid(yaml.safe_load(text)) is SCHEMA_CASES[case]
    if SCHEMA_CASES[case]:
        [parsed] = read(text).cases
        assert isinstance(parsed, ForAll)
    else:
        with pytest.raises(PolicyError):
            read(text)


@settings(max_examples=30, deadline=None)
@given(programs(), st.integers(0, 3))
def test_every_example_that_is_drawn_fits_the_schema(program: Program, seed: int) -> None:
    inputs = all_domains(program)
    drawn = list(assignments(inputs, 40, seed))
    assert 1 <= len(drawn) <= 40
    for assignment in drawn:
        example, context = inputs_of(assignment)
        assert read_facts(program, example, context)[1] == ()


@given(st.integers(-500, 500), st.integers(-500, 500), st.integers(-500, 500), st.booleans())
def test_shrinking_finds_the_least_number_that_fails(lo: int, hi: int, bound: int, above: bool) -> None:
    lo, hi = min(lo, hi), max(lo, hi)
    domain = ranged(number_scale(lo, hi, 0), (), min(max(0, lo), hi))
    variable = Variable("attribute", "n")
    failing = [n for n in range(lo, hi + 1) if (n > bound if above else n < bound)]
    if not failing:
        return
    found = shrink(
        lambda a: a[variable] in failing, {variable: failing[-1 if above else 0]}, {variable: domain}
    )
    assert found[variable] == min(failing, key=abs)


def test_a_value_is_never_its_own_simpler_one() -> None:
    domain = Domain((None, False, True), True)
    assert list(domain.simpler(True)) == [None, False]
    assert list(domain.simpler(None)) == []
