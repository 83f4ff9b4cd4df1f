"""Policy tests: the file format, what is compared, coverage and mutation."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import yaml

from gradwarden.policy import compile_policy, parse_policy
from gradwarden.policy.errors import PolicyError
from gradwarden.policy.program import Program
from gradwarden.policy.testing.coverage import condition_labels, measure
from gradwarden.policy.testing.mutation import mutants, survivors
from gradwarden.policy.testing.runner import CaseResult, check_fit, run_cases
from gradwarden.policy.testing.test_file import EXPECTATIONS, STAGES, Case, TestFile, parse_tests

POLICY = """
policy sample version 1 language 1
examples {
  license : one of mit, gpl
  lines   : integer 0..1000
  consent : bool
}
signals { loss : number 0..10 default 1 }
model { shallow = top 50%  deep = rest }
depth open { when license == mit reach shallow, deep at 0.5 }
suppress withdrawn { when not consent because "withdrawn" }
suppress long { when lines >= 100 cap deep at 0 }
retain thrice { when license == mit at most 3 exposures }
modulate calm { when true scale deep by loss from 1 to 0.5 }
"""

TESTS = """
policy: sample.policy
cases:
  - name: open
    example: {license: mit, lines: 1, consent: true}
    context: {signals: {loss: 0}}
    expect: {verdict: limit, weights: {shallow: 1, deep: 0.5}, rules: [calm, open], stage: null}
  - name: rows
    table:
      base: {license: mit, lines: 1, consent: true}
      context: {step: 3, signals: {loss: 0}}
      rows:
        - {example: {consent: false}, expect: {verdict: refuse, stage: suppress}}
        - {example: {license: gpl}, expect: {verdict: refuse, stage: depth}}
        - {example: {lines: 100}, expect: {weights: {deep: 0}}}
        - {example: {lines: 99}, expect: {weights: {deep: 0.5}}}
        - {context: {exposures: 3}, expect: {stage: retain}}
        - {context: {exposures: 2}, expect: {verdict: limit}}
        - {context: {signals: {loss: 10}}, expect: {weights: {deep: 0.25}}}
        - {name: bad, example: {lines: null, extra: 1}, expect: {verdict: invalid, problems: [lines, extra]}}
"""


@pytest.fixture(scope="module")
def program() -> Program:
    return compile_policy(parse_policy(POLICY))


def parse(text: str) -> TestFile:
    return parse_tests(text, Path("suite", "sample_test.yaml"))


def run(program: Program, text: str) -> list[CaseResult]:
    tests = parse(text)
    check_fit(program, tests)
    return run_cases(program, tests.cases)


def one(program: Program, expect: str) -> CaseResult:
    example = "{license: mit, lines: 1, consent: true}"
    text = f"cases: [{{name: x, example: {example}, context: {{signals: {{loss: 0}}}}, expect: {expect}}}]"
    return run(program, text)[0]


def faults(text: str) -> list[tuple[str, str]]:
    with pytest.raises(PolicyError) as caught:
        parse(text)
    return [(d.code, d.span.text if d.span else "") for d in caught.value.diagnostics]


def test_a_suite_that_fits_its_policy_passes(program: Program) -> None:
    results = run(program, TESTS)
    assert [result.mismatches for result in results] == [()] * 9
    assert results[1].case.name == "rows: row 1"
    assert results[-1].case.name == "rows: bad"


def test_rows_inherit_and_override_base_and_context() -> None:
    case = parse(TESTS).cases[5]
    assert case.example == {"license": "mit", "lines": 1, "consent": True}
    assert (case.context.step, case.context.exposures, case.context.signals) == (3, 3, {"loss": 0})


def test_the_policy_is_found_beside_the_tests() -> None:
    assert parse("cases: []").policy == Path("suite", "sample.policy")
    assert parse("policy: ../x.policy\ncases: []").policy == Path("suite", "..", "x.policy")


@pytest.mark.parametrize(
    ("expect", "key", "expected", "actual"),
    [
        ("{verdict: admit}", "verdict", "admit", "limit"),
        ("{weights: {shallow: 1, deep: 0.25}}", "weights", "{deep: 0.25}", "{deep: 0.5}"),
        ("{weights: {deep: 0.500001}}", "weights", "{deep: 0.500001}", "{deep: 0.5}"),
        ("{rules: [open]}", "rules", "[open]", "[calm, open]"),
        ("{rules: []}", "rules", "[]", "[calm, open]"),
        ("{obligations: [privacy]}", "obligations", "[privacy]", "[]"),
        ("{stage: depth}", "stage", "depth", "null"),
        ("{problems: [lines]}", "problems", "[lines]", "[]"),
        ("{waived: [long]}", "waived", "[long]", "[]"),
        ("{advisory: [long]}", "advisory", "[long]", "[]"),
    ],
)
def test_each_expectation_can_fail(
    program: Program, expect: str, key: str, expected: str, actual: str
) -> None:
    [mismatch] = one(program, expect).mismatches
    assert (mismatch.key, mismatch.expected, mismatch.actual) == (key, expected, actual)


def test_only_what_is_named_is_compared(program: Program) -> None:
    assert one(program, "{weights: {shallow: 1}}").passed


def test_lists_are_compared_as_sets(program: Program) -> None:
    assert one(program, "{rules: [open, calm]}").passed


CASE = "cases: [{name: x, example: {}, expect: {verdict: admit}}]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [("GW423", "")]),
        ("[]", [("GW423", "[]")]),
        ("policy: x.policy", [("GW422", "policy: x.policy")]),
        ("cases: 3", [("GW423", "3")]),
        ("format: gradwarden/policy-test/9\ncases: []", [("GW421", "gradwarden/policy-test/9")]),
        ("casses: []\ncases: []", [("GW420", "casses")]),
        ("cases: [x]", [("GW423", "x")]),
        (CASE.replace("admit", "admitted"), [("GW427", "admitted")]),
        (CASE.replace("verdict", "verdikt"), [("GW420", "verdikt")]),
        (CASE.replace("{verdict: admit}", "{}"), [("GW425", "{}")]),
        (CASE.replace("{verdict: admit}", "{stage: gate}"), [("GW427", "gate")]),
        (CASE.replace("{verdict: admit}", "{rules: open}"), [("GW423", "open")]),
        (CASE.replace("{verdict: admit}", "{rules: [1]}"), [("GW423", "1")]),
        (CASE.replace("{verdict: admit}", "{obligations: [secrecy]}"), [("GW427", "secrecy")]),
        (CASE.replace("{verdict: admit}", "{weights: {deep: 5}}"), [("GW423", "5")]),
        (CASE.replace("{verdict: admit}", "{weights: {deep: -1}}"), [("GW423", "-1")]),
        (CASE.replace("{verdict: admit}", "{weights: {deep: .nan}}"), [("GW423", ".nan")]),
        (CASE.replace("{verdict: admit}", "{weights: {deep: 0.0000001}}"), [("GW423", "0.0000001")]),
        (CASE.replace("{verdict: admit}", "{weights: {deep: half}}"), [("GW423", "half")]),
        (CASE.replace("example", "context: {step: -1}, example"), [("GW423", "-1")]),
        (CASE.replace("example", "context: {epoch: 1.5}, example"), [("GW423", "1.5")]),
        (CASE.replace("example", "context: {at: tomorrow}, example"), [("GW423", "tomorrow")]),
        (CASE.replace("example", "context: {today: 2026-01-01}, example"), [("GW420", "today")]),
        (CASE.replace("example", "context: {signals: {loss: high}}, example"), [("GW423", "high")]),
        (CASE.replace("name: x", "name: 3"), [("GW423", "3")]),
        (CASE.replace("example: {}", "example: 3"), [("GW423", "3")]),
        (
            "cases: [{name: x, table: {rows: [{expect: {verdict: admit}}], columns: 1}}]",
            [("GW420", "columns")],
        ),
        ("cases: [{name: x, example: {}, table: {rows: []}}]", [("GW424", "{")]),
    ],
)
def test_what_breaks_the_format_is_told_at_its_place(text: str, expected: list[tuple[str, str]]) -> None:
    found = faults(text)
    assert [code for code, _ in found] == [code for code, _ in expected]
    assert all(shown.startswith(part) for (_, shown), (_, part) in zip(found, expected, strict=True))


def test_cases_may_not_share_a_name() -> None:
    case = "{name: x, example: {}, expect: {verdict: admit}}"
    assert [code for code, _ in faults(f"cases: [{case}, {case}]")] == ["GW426"]


def test_a_misspelt_key_gets_a_suggestion() -> None:
    with pytest.raises(PolicyError, match="did you mean `verdict`"):
        parse(CASE.replace("verdict", "verdct"))


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("{deep: 0}", "{depp: 0}", "no band `depp`"),
        ("[calm, open]", "[calm, opne]", "no rule `opne`"),
        ("{loss: 10}", "{los: 10}", "no signal `los`"),
        ("{exposures: 3}", "{spent: [patients]}", "no privacy rule `patients`"),
    ],
)
def test_names_that_the_policy_lacks_are_errors(program: Program, old: str, new: str, what: str) -> None:
    with pytest.raises(PolicyError, match=what):
        check_fit(program, parse(TESTS.replace(old, new)))


def test_a_policy_that_reads_the_date_needs_one_in_every_case() -> None:
    program = compile_policy(parse_policy(POLICY.replace("at most 3 exposures", "until 2027-01-01")))
    undated = parse(CASE)
    with pytest.raises(PolicyError, match="this case has no date"):
        check_fit(program, undated)
    check_fit(program, parse(CASE.replace("example", "context: {at: 2026-01-01}, example")))


def published_schema() -> jsonschema.Draft202012Validator:
    text = (files("gradwarden.policy") / "schemas" / "policy_test.schema.json").read_text("utf-8")
    schema = json.loads(text)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def as_json(text: str) -> object:
    def dates(value: object) -> object:
        if isinstance(value, dict):
            return {key: dates(item) for key, item in value.items()}
        if isinstance(value, list):
            return [dates(item) for item in value]
        return str(value) if isinstance(value, date) else value

    return dates(yaml.safe_load(text))


def test_the_published_schema_admits_what_the_reader_reads() -> None:
    schema = published_schema()
    schema.validate(as_json(TESTS))
    schema.validate(as_json(CASE.replace("example", "context: {at: 2026-01-01, spent: [a]}, example")))
    expect = schema.schema["$defs"]["expectations"]["properties"]
    assert tuple(expect) == EXPECTATIONS
    assert set(expect["stage"]["enum"]) == {*STAGES, None}


@pytest.mark.parametrize(
    "text",
    [
        "policy: x.policy",
        "cases: 3",
        "cases: [x]",
        CASE.replace("admit", "admitted"),
        CASE.replace("verdict", "verdikt"),
        CASE.replace("{verdict: admit}", "{}"),
        CASE.replace("{verdict: admit}", "{weights: {deep: 5}}"),
        CASE.replace("{verdict: admit}", "{rules: open}"),
        CASE.replace("example", "context: {step: -1}, example"),
        "cases: [{name: x, example: {}, table: {rows: []}}]",
    ],
)
def test_the_published_schema_refuses_what_the_reader_refuses(text: str) -> None:
    assert not published_schema().is_valid(as_json(text))
    assert faults(text)


def test_full_tests_cover_every_outcome(program: Program) -> None:
    coverage = measure(program, run(program, TESTS))
    assert coverage.percent == 100
    assert [rule.rule for rule in coverage.rules] == ["calm", "long", "open", "thrice", "withdrawn"]
    opened = coverage.rules[2]
    assert (opened.matched, opened.unmatched) == (7, 1)


def test_what_no_case_reaches_is_named(program: Program) -> None:
    results = [result for result in run(program, TESTS) if "row 1" not in result.case.name]
    coverage = measure(program, results)
    missing = {
        (rule.rule, c.part): c.missing for rule in coverage.rules for c in rule.conditions if c.missing
    }
    assert missing == {("withdrawn", "suppressed"): ("true",)}
    assert (coverage.reached, coverage.sides) == (12, 13)


def test_labels_follow_the_order_of_conditions(program: Program) -> None:
    assert len(list(condition_labels(program))) == len(list(program.conditions()))


def test_without_cases_nothing_is_covered(program: Program) -> None:
    assert measure(program, []).reached == 0


def test_every_mutant_differs_from_the_program(program: Program) -> None:
    everything = list(mutants(program))
    assert len({mutant.program for mutant in everything}) == len(everything)
    assert program not in {mutant.program for mutant in everything}
    assert {mutant.rule for mutant in everything} == {"open", "withdrawn", "long", "thrice", "calm"}


def test_thorough_tests_kill_all_but_mutants_without_effect(program: Program) -> None:
    total, alive = survivors(program, parse(TESTS).cases)
    assert total == len(list(mutants(program)))
    told = [(mutant.rule, mutant.change) for mutant in alive]
    assert told == [("long", "capped: the cap of `shallow`: 1 became 0")]


def test_a_missing_boundary_case_lets_a_moved_bound_live(program: Program) -> None:
    cases = [case for case in parse(TESTS).cases if case.example.get("lines") != 99]
    _, alive = survivors(program, cases)
    assert "capped: `lines >= 100` became `lines >= 99`" in {mutant.change for mutant in alive}


def test_a_test_that_compares_little_kills_little(program: Program) -> None:
    weak: list[Case] = [replace(case, expect=case.expect[:0]) for case in parse(TESTS).cases]
    total, alive = survivors(program, weak)
    assert len(alive) == total
