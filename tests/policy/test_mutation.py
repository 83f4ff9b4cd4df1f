"""Mutants, and the searches behind coverage and mutation: what they claim is what the evaluator says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradwarden.policy import compile_policy, parse_policy
from gradwarden.policy.context import Context
from gradwarden.policy.decision import Decision
from gradwarden.policy.evaluation.evaluate import holds, read_facts
from gradwarden.policy.program import Compare, Program
from gradwarden.policy.testing.coverage import example_for, measure
from gradwarden.policy.testing.inputs import Variable, all_domains, inputs_of, leaves, variables_read
from gradwarden.policy.testing.mutation import mutants, run_campaign
from gradwarden.policy.testing.runner import run_case, run_cases
from gradwarden.policy.testing.search import find, kinds
from gradwarden.policy.testing.test_file import Case, parse_tests
from tests.strategies import contexts, programs, valid_examples

HEAD = """
policy sample version 1 language 1
examples {
  license : one of mit, gpl, cc0
  lines   : integer 0..1000
  flags   : set of pii, minor, web
  source  : string
  consent : bool
}
model { shallow = top 50%  deep = rest }
"""


def program_of(rules: str) -> Program:
    return compile_policy(parse_policy(HEAD + rules))


def changes(rules: str) -> set[str]:
    return {mutant.change for mutant in mutants(program_of(rules))}


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("depth d { when license == mit and consent  reach all }", "the rule was dropped"),
        ("depth d { when license == mit and consent  reach all }", "`license == mit` was negated"),
        (
            "depth d { when license == mit and consent  reach all }",
            "`license == mit and consent` became `license == mit or consent`",
        ),
        (
            "depth d { when license == mit or consent  reach all }",
            "`license == mit or consent` became `license == mit and consent`",
        ),
        (
            "depth d { when license in [mit, cc0]  reach all }",
            "`license in [mit, cc0]` became `license == cc0`",
        ),
        (
            'depth d { when source in ["a", "b"]  reach all }',
            '`source in ["a", "b"]` became `source == "a"`',
        ),
        (
            "depth d { when flags has any [pii, web]  reach all }",
            "`flags has any [pii, web]` became `flags has all [pii, web]`",
        ),
        (
            "depth d { when flags has all [pii, web]  reach all }",
            "`flags has all [pii, web]` became `flags contains web`",
        ),
        ("depth d { when lines >= 9  reach all }", "`lines >= 9` became `lines > 9`"),
        ("depth d { when lines >= 9  reach all }", "`lines >= 9` became `lines >= 8`"),
        ("depth d { reach all at 0.5 }", "the weight of `deep`: 0.5 became 0.25"),
        (
            'suppress s { when consent because "x" }\n'
            'waive s { when lines > 3  approved by "A"  until 2026-01-01  because "x" }',
            "`today < 2026-01-01` became `today < 2025-12-31`",
        ),
    ],
)
def test_each_kind_of_damage_is_done(rules: str, expected: str) -> None:
    assert expected in changes(rules)


MIT = {"license": "mit", "lines": 1, "flags": [], "source": "s", "consent": True}
TESTS = """
cases:
  - name: licences
    table:
      base: {lines: 1, flags: [], source: s, consent: true}
      rows:
        - {example: {license: mit}, expect: {verdict: admit}}
        - {example: {license: gpl}, expect: {verdict: refuse}}
"""


def campaign(rules: str, tests: str = TESTS) -> tuple[int, int, set[str]]:
    program = program_of(rules)
    cases = parse_tests(tests, Path("x_test.yaml")).cases
    assert all(result.passed for result in run_cases(program, cases))
    result = run_campaign(program, cases)
    return result.mutants, result.equivalent, {survivor.change for survivor in result.survivors}


def test_a_change_that_changes_nothing_is_no_mutant() -> None:
    rules = """
    depth d { when license == mit  reach all }
    suppress s { when license == gpl and lines >= 1001 because "never" }
    """
    _, equivalent, alive = campaign(rules.replace("1001", "1000"))
    assert "suppressed: `lines >= 1000` became `lines > 1000`" in alive
    _, more, dead = campaign(rules.replace("lines >= 1001", "lines > 1000"))
    assert "the rule was dropped" not in dead  # the rule can never match, so it may as well not be there
    assert more > equivalent


def test_for_all_cases_notice_what_single_ones_do_not() -> None:
    rules = "depth d { when license in [mit, cc0]  reach all }"
    lost = "`license in [mit, cc0]` became `license == mit`"
    assert lost in campaign(rules)[2]
    table = TESTS + "  - {name: c, for all: {license: [mit, cc0]}, expect: {verdict: admit}}\n"
    assert lost not in campaign(rules, table)[2]


def seen(decision: Decision) -> Decision:
    return replace(decision, causes=())


@st.composite
def small(draw: Callable[..., Any]) -> tuple[Program, list[Case]]:
    """A program, and tests that say what it decides on some examples, in full or in part."""
    program = draw(programs())
    program = replace(
        program,
        grants=program.grants[:2],
        limits=program.limits[:1],
        modulations=program.modulations[:1],
        waivers=(),
        assertions=program.assertions[:1],
    )
    cases = []
    for number in range(draw(st.integers(1, 3))):
        example, context = draw(valid_examples()), draw(contexts())
        decision = program.decide(example, replace(context, signals={}))
        text = f"cases: [{{name: x, example: {{}}, expect: {{verdict: {decision.verdict}}}}}]"
        [case] = parse_tests(text, Path("x_test.yaml")).cases
        cases.append(
            replace(case, name=str(number), example=example, context=replace(context, signals={}))  # type: ignore[type-var]
        )
    return program, cases


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(small(), st.randoms(use_true_random=False))
def test_what_the_campaign_says_is_true_of_the_evaluator(
    drawn: tuple[Program, list[Case]], random: Random
) -> None:
    program, cases = drawn
    campaign = run_campaign(program, cases)
    alive = {id(survivor.mutant.program): survivor for survivor in campaign.survivors}
    by_text = {(s.rule, s.change): s for s in campaign.survivors}
    assert len(alive) == len(campaign.survivors)
    domains = all_domains(program)
    drawn_inputs = [{v: d.draw(random) for v, d in domains.items()} for _ in range(30)]
    equivalent = 0
    for mutant in mutants(program):
        passes = all(run_case(mutant.program, case).passed for case in cases)
        survivor = by_text.get((mutant.rule, mutant.change))
        assert passes or survivor is None
        if survivor is not None and survivor.assignment is not None:
            example, context = inputs_of(survivor.assignment)
            assert seen(program.decide(example, context)) == seen(survivor.program_decision)  # type: ignore[arg-type]
            assert seen(survivor.mutant.program.decide(example, context)) == seen(survivor.mutant_decision)  # type: ignore[arg-type]
            assert seen(survivor.program_decision) != seen(survivor.mutant_decision)  # type: ignore[arg-type]
        if passes and survivor is None:  # said to decide alike everywhere
            equivalent += 1
            for assignment in drawn_inputs:
                example, context = inputs_of(assignment)
                assert seen(program.decide(example, context)) == seen(mutant.program.decide(example, context))
    assert equivalent == campaign.equivalent or len(by_text) < len(campaign.survivors)


@pytest.mark.parametrize(
    ("condition", "listed"),
    [
        ('source in ["a", "b"] and lines > 7', True),
        ('source starts with "a"', False),
        ('source like "a*b"', False),
        ("lines * lines > 7", False),
        ("lines > 7 or step > 3", True),
    ],
)
def test_kinds_are_listed_only_where_trying_them_is_trying_everything(condition: str, listed: bool) -> None:
    program = program_of(f"depth d {{ when {condition}  reach all }}")
    assert (kinds(program, program.conditions()) is not None) is listed


def test_kinds_hold_every_turn_of_bands_between_two_bounds() -> None:
    paces = "gradient { deep at most 1 in 4 steps  shallow at most 1 in 6 steps }"
    program = program_of(f"depth d {{ when step > 3 and step < 100  reach all }}\n{paces}")
    listed = kinds(program, program.conditions())
    assert listed is not None

    def truths(step: int) -> tuple[bool, ...]:
        facts, _ = read_facts(program, MIT, Context(step=step))
        return tuple(holds(condition, facts) for condition in program.conditions())

    steps = {assignment[Variable("clock", "step")] for assignment in listed}
    assert {truths(step) for step in steps} == {truths(step) for step in range(200)}


@settings(max_examples=8, deadline=None)
@given(programs(), st.randoms(use_true_random=False))
def test_one_example_of_each_kind_shows_every_pattern_of_truth(program: Program, random: Random) -> None:
    """Whatever truth the tests of conditions can have together is that of one of the kinds."""
    domains = all_domains(program)
    for condition in program.conditions():
        everything = kinds(program, [condition])
        if everything is None:
            continue
        parts = list(dict.fromkeys(leaves(condition)))

        def pattern(assignment: Any, parts: Any = parts) -> tuple[bool, ...]:
            facts, problems = read_facts(program, *inputs_of(assignment))
            assert problems == ()
            return tuple(holds(part, facts) for part in parts)

        patterns = {pattern(assignment) for assignment in everything}
        for _ in range(20):
            assert pattern({v: d.draw(random) for v, d in domains.items()}) in patterns


@settings(max_examples=8, deadline=None)
@given(programs())
def test_what_is_found_has_the_truth_asked_for(program: Program) -> None:
    for condition in program.conditions():
        for wanted in (True, False):
            found = find(program, condition, wanted, [])
            if found is not None:
                facts, problems = read_facts(program, *inputs_of(found))
                assert problems == ()
                assert holds(condition, facts) is wanted


def test_a_comparison_between_inputs_is_found_on_its_edge() -> None:
    text = HEAD.replace("consent : bool", "consent : bool  got : date  due : date")
    program = compile_policy(
        parse_policy(text + "depth d { when due - got == 30 days and lines > 7 reach all }")
    )
    [condition] = program.conditions()
    found = find(program, condition, True, [])
    assert found is not None
    example, _ = inputs_of(found)
    assert (example["due"] - example["got"]).days == 30
    assert any(isinstance(leaf, Compare) and len(variables_read([leaf])) == 2 for leaf in leaves(condition))


def test_an_example_for_a_gap_closes_it() -> None:
    program = program_of(
        'depth d { when source starts with "arch/" and (lines > 417 or consent)  reach all }'
    )
    example = "{license: mit, lines: 1, flags: [], source: s, consent: false}"
    cases = parse_tests(
        f"cases: [{{name: a, example: {example}, expect: {{verdict: refuse}}}}]", Path("x")
    ).cases
    results = run_cases(program, cases)
    coverage = measure(program, results)
    assert {(gap.text, gap.side) for gap in coverage.gaps() if not gap.whole} == {
        ('source starts with "arch/"', "true"),
        ("lines > 417", "true"),
        ("consent", "true"),
    }
    for gap in list(coverage.gaps()):
        found = example_for(program, gap, results)
        assert found is not None
        [case] = cases
        changed = {variable.name: value for variable, value in found.items()}
        case = replace(case, example={**case.example, **changed})  # type: ignore[type-var]
        facts, _ = read_facts(program, case.example, case.context)  # type: ignore[arg-type]
        assert holds(gap.condition, facts) is (gap.side == "true")


def test_a_part_counts_only_where_its_attribute_is_there() -> None:
    text = HEAD.replace("consent : bool", "consent : bool  due : date optional")
    program = compile_policy(parse_policy(text + "depth d { when has due and due > 2026-01-01 reach all }"))
    example = "{license: mit, lines: 1, flags: [], source: s, consent: true}"
    cases = parse_tests(
        f"cases: [{{name: a, example: {example}, expect: {{verdict: refuse}}}}]", Path("x")
    ).cases
    [rule] = measure(program, run_cases(program, cases)).rules
    assert [(part.true, part.false) for part in rule.conditions[0].parts] == [(0, 1), (0, 0)]
