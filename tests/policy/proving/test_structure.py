"""Rules and conditions that do nothing are found, and those that do something are left alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradwarden.policy import parse_policy
from gradwarden.policy.context import Context
from gradwarden.policy.evaluation.evaluate import decide, truth_of
from gradwarden.policy.program import Constant, Program
from gradwarden.policy.proving.questions import without
from gradwarden.policy.proving.structure import Finding, examine, rules_of, steps
from tests.policy.proving.policies import program_of
from tests.policy.proving.test_encoding import supplied
from tests.strategies import contexts, programs, valid_examples

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def found(rules: str) -> list[Finding]:
    """What is found besides unused attributes and examples that no rule is about."""
    findings = examine(program_of(rules), timeout=10)
    return [finding for finding in findings if finding.kind not in ("unused", "undecided")]


def test_a_policy_in_which_all_rules_matter_has_no_findings() -> None:
    rules = (
        'depth d { when kind in [a, b] reach all } suppress s { when kind == b cap deep at 0.5 because "b" }'
        'suppress t { when not consent because "c" }'
        "modulate m { when private scale deep by loss from 1 to 0.5 }"
        'waive t { when tags contains x approved by "X" until 2030-01-01 because "y" }'
    )
    assert found(rules) == []


def test_a_rule_that_can_never_match_is_found_with_what_excludes_it() -> None:
    rules = (
        "depth d { reach all }"
        'suppress s { when consent and score > 0.5 and size > 3 and score < 0.25 because "s" }'
    )
    assert found(rules) == [Finding("never", "s", "score > 0.5 and score < 0.25")]


def test_strings_that_exclude_each_other_are_found() -> None:
    rules = (
        'depth d { reach all } suppress s { when person starts with "a" and person like "b*" because "s" }'
    )
    assert [finding.kind for finding in found(rules)] == ["never"]


def test_one_effect_that_can_never_come_about_is_found() -> None:
    rules = (
        "phases { early until step 10  late } depth d { reach all }"
        "retain r { when has erase and erase < 2026-01-01 from 2026-01-01 until erase }"
    )
    assert found(rules) == []
    program = program_of(
        "depth d { reach all } retain r { when step > 5 at most 3 exposures at most 2 epochs }"
    )
    limit = program.limits[0]
    never = dataclasses.replace(limit.clauses[0], when=program_of(CONTRADICTORY).grants[0].when)
    program = dataclasses.replace(
        program, limits=(dataclasses.replace(limit, clauses=(never, limit.clauses[1])),)
    )
    kinds = [finding.kind for finding in examine(program, timeout=10)]
    assert kinds.count("effect") == 1


CONTRADICTORY = "depth d { when kind == a and kind == b reach all }"


@pytest.mark.parametrize(
    ("condition", "text", "always"),
    [
        ("consent and (size >= 0 or private)", "size >= 0", True),
        ("consent or (kind == a and kind == b)", "kind == a and kind == b", False),
        ("consent or not (kind in [a, b, c])", "kind in [a, b, c]", True),
        ('consent or person like "*"', 'person like "*"', True),
    ],
)
def test_a_part_that_never_changes_is_found(condition: str, text: str, always: bool) -> None:
    rules = f'depth d {{ reach all }} suppress s {{ when {condition} cap deep at 0.5 because "s" }}'
    parts = [finding for finding in found(rules) if finding.kind == "part"]
    assert parts == [Finding("part", "s", text, always=always)]


def test_a_rule_that_another_makes_idle_is_found_with_the_other() -> None:
    rules = (
        'depth d { reach all } suppress narrow { when private and consent cap deep at 0.5 because "n" }'
        'suppress wide { when private cap deep at 0.5 because "w" }'
    )
    assert found(rules) == [Finding("shadowed", "narrow", by=("wide",))]


def test_a_grant_that_others_make_idle_together_is_found() -> None:
    rules = (
        "depth one { when kind == a reach all } depth two { when kind == b reach all }"
        "depth three { when kind in [a, b] reach deep at 0.5 }"
    )
    assert found(rules) == [Finding("shadowed", "three", by=("one", "two"))]


def test_a_limit_on_what_nothing_grants_is_told_apart() -> None:
    rules = 'depth d { when consent reach all } suppress s { when not consent because "s" }'
    assert found(rules) == [Finding("silent", "s")]


def test_an_assertion_shadows_no_rule() -> None:
    rules = (
        'depth d { reach all } suppress s { when private because "s" }assert a { always refuse when private }'
    )
    assert found(rules) == []


def test_a_rule_may_matter_by_its_obligation_alone() -> None:
    program = parse_policy(
        "policy p version 1 language 1 examples { a : bool }"
        'model { deep = rest  quarantine = names "adapter.*" } depth d { reach quarantine }'
        'suppress s { when a route to quarantine because "watched" }'
    ).program
    assert [f for f in examine(program, timeout=10) if f.kind in ("shadowed", "silent")] == []


def test_a_rule_may_matter_by_its_verdict_alone() -> None:
    """Where an embargo never ends, a suppression still turns a deferral into a refusal."""
    program = program_of(
        'depth d { reach all } retain r { from 2026-01-01 } suppress s { when private because "s" }'
    )
    (embargo, suppression) = program.limits
    endless = dataclasses.replace(embargo.clauses[0], when=Constant(True))
    program = dataclasses.replace(
        program, limits=(dataclasses.replace(embargo, clauses=(endless,)), suppression)
    )
    idle = [f.rule for f in examine(program, timeout=10) if f.kind in ("shadowed", "silent")]
    assert idle == []


def test_an_example_that_no_rule_is_about_is_shown() -> None:
    program = program_of("depth d { when consent and score > 0.5 reach all }")
    (finding,) = [f for f in examine(program, timeout=10) if f.kind == "undecided"]
    assert finding.witness is not None
    decision = decide(program, finding.witness.metadata, finding.witness.context)
    assert (decision.verdict, decision.rules) == ("refuse", ())


def test_a_rule_about_every_example_leaves_none_undecided() -> None:
    kinds = [finding.kind for finding in examine(program_of("depth d { reach all }"), timeout=10)]
    assert "undecided" not in kinds


def test_attributes_that_nothing_reads_are_found_and_privacy_units_are_read() -> None:
    program = program_of(
        "depth d { when score > 0.5 reach all }"
        "privacy p { when private within shallow epsilon 3 delta 1e-6 clip 1 unit person }"
    )
    names = [finding.text for finding in examine(program, timeout=10) if finding.kind == "unused"]
    assert names == ["consent", "erase", "kind", "size", "tags"]


def test_every_step_is_counted() -> None:
    program = program_of('depth d { reach all } suppress s { when private because "s" }')
    counted: list[int] = []
    list(examine(program, timeout=10, advance=counted.append))
    assert sum(counted) == steps(program) == 4


def check_findings(program: Program, rows: list[dict[str, Any]], context: Context) -> None:
    """What is found holds of random examples: dropped rules change nothing, dead conditions stay false."""
    context = supplied(context)
    bare = dataclasses.replace(program, assertions=())
    truths = [truth_of(program, row, context) for row in rows]
    conditions = list(program.conditions())
    where = {
        rule.name: [index for index, c in enumerate(conditions) if any(c is own for own in whens(rule))]
        for rule in rules_of(program)
    }
    for finding in examine(program, timeout=5):
        match finding.kind:
            case "never":
                assert not any(truth[i] for truth in truths for i in where[finding.rule])
            case "shadowed" | "silent":
                less = without(bare, [finding.rule])
                for row in rows:
                    one, other = decide(bare, row, context), decide(less, row, context)
                    assert (one.micro, one.verdict, one.obligations) == (
                        other.micro,
                        other.verdict,
                        other.obligations,
                    )
            case "undecided":
                assert finding.witness is not None
                witness = finding.witness
                count = len(program.grants) + sum(len(limit.clauses) for limit in program.limits)
                assert not any(truth_of(program, witness.metadata, witness.context)[:count])


def whens(rule: Any) -> list[Any]:
    return [clause.when for clause in rule.clauses] if hasattr(rule, "clauses") else [rule.when]


@given(programs(), st.lists(valid_examples(), min_size=1, max_size=5), contexts())
@settings(max_examples=12, deadline=None, suppress_health_check=SLOW)
def test_random_findings_hold_of_random_examples(
    program: Program, rows: list[dict[str, Any]], context: Context
) -> None:
    check_findings(program, rows, context)


@pytest.mark.soak
@given(programs(), st.lists(valid_examples(), min_size=1, max_size=10), contexts())
@settings(max_examples=2000, deadline=None, suppress_health_check=SLOW)
def test_soak_of_random_findings(program: Program, rows: list[dict[str, Any]], context: Context) -> None:
    check_findings(program, rows, context)
