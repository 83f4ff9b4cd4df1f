"""The ready policies compile without a warning, and their own tests pass and cover them."""

import pytest

from gradwarden.policy import load_policy
from gradwarden.policy.testing.coverage import measure
from gradwarden.policy.testing.mutation import survivors
from gradwarden.policy.testing.runner import check_fit, run_cases
from gradwarden.policy.testing.test_file import parse_tests, sibling_tests
from tests.policies.composing import POLICIES, shipped

KINDS = {"suppress", "retain", "privacy", "memorization", "curriculum", "pace"}


def name(path):
    return path.stem


@pytest.fixture(params=POLICIES, ids=name)
def policy(request):
    return request.param


def test_the_library_is_found():
    assert {path.stem for path in POLICIES} >= {
        "children_education",
        "clinical_finetune",
        "code_licences",
        "creator_rights",
        "legal_precedent",
    }


def test_a_ready_policy_has_no_warnings(policy):
    assert [str(warning) for warning in load_policy(policy).warnings] == []


def test_its_own_tests_pass_and_reach_both_sides_of_every_condition(policy):
    program = shipped(policy.stem)
    path = sibling_tests(policy)
    tests = parse_tests(path.read_text("utf-8"), path)
    check_fit(program, tests)
    results = run_cases(program, tests.cases)
    assert [(r.case.name, r.mismatches) for r in results if not r.passed] == []
    assert measure(program, results).percent == 100


def test_its_own_tests_notice_nearly_every_damage(policy):
    # What survives are changes that an assertion or a second rule makes good.
    program = shipped(policy.stem)
    path = sibling_tests(policy)
    total, alive = survivors(program, parse_tests(path.read_text("utf-8"), path).cases)
    assert len(alive) <= 0.05 * total, [(mutant.rule, mutant.change) for mutant in alive]


def test_every_rule_gives_its_reason_where_it_forbids(policy):
    program = shipped(policy.stem)
    silent = [limit.name for limit in program.limits if limit.kind == "suppress" and not limit.because]
    assert silent == []
    assert program.assertions


def test_the_library_shows_every_kind_of_rule():
    programs = [shipped(path.stem) for path in POLICIES]
    assert {limit.kind for program in programs for limit in program.limits} == KINDS
    assert any(program.modulations for program in programs)
    assert any(program.waivers for program in programs)
    assert any(program.starvation for program in programs)
    assert any(program.gradient_caps for program in programs)
    forms = {assertion.form for program in programs for assertion in program.assertions}
    assert forms == {"never_reach", "at_most", "always_refuse", "always_private", "implies"}
    levels = {limit.level for program in programs for limit in program.limits}
    assert levels == {"hard", "advisory"}
