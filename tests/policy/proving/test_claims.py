"""What is proved, what is refuted and by which example, and what a proof rests on."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradwarden.policy.context import Context
from gradwarden.policy.evaluation.evaluate import decide
from gradwarden.policy.program import (
    Arithmetic,
    AttributeSpec,
    AttributeValue,
    Compare,
    Condition,
    Constant,
    Not,
    NumericExpr,
    Or,
    Program,
    Text,
)
from gradwarden.policy.proving.claims import Claim, breaks, prove
from gradwarden.policy.proving.questions import without
from tests.policy.proving.policies import program_of
from tests.policy.proving.test_encoding import supplied
from tests.strategies import contexts, programs, valid_examples

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def claim_of(rules: str) -> Claim:
    (claim,) = prove(program_of(rules))
    return claim


# --- proved -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "rests_on"),
    [
        (
            'depth d { reach all } suppress s { when private cap deep at 0 because "p" }'
            "assert a { never reach deep when private }",
            ("s",),
        ),
        (
            'depth d { reach all } suppress s { when not consent because "c" }'
            "assert a { always refuse when not consent }",
            ("s",),
        ),
        (
            'depth d { reach all } suppress s { when kind == a cap deep at 0.5 because "k" }'
            "assert a { at most 0.5 in deep when kind == a }",
            ("s",),
        ),
        (
            "depth d { reach all } modulate m { when kind == a scale deep by loss from 0.5 to 0.25 }"
            "assert a { at most 0.5 in deep when kind == a }",
            ("m",),
        ),
        (
            "depth d { reach all }"
            "privacy p { when private within shallow epsilon 3 delta 1e-6 clip 1 unit person }"
            "assert a { always private when private }",
            ("p",),
        ),
        (
            "depth d { reach all } retain r { when has erase until erase }"
            'suppress s { when not has erase because "e" }'
            "assert a { always refuse when not has erase or today >= erase }",
            ("r", "s"),
        ),
    ],
)
def test_a_proof_names_the_rules_it_rests_on_and_is_refuted_without(
    rules: str, rests_on: tuple[str, ...]
) -> None:
    program = program_of(rules)
    (claim,) = prove(program)
    assert (claim.outcome, claim.rests_on, claim.default_deny) == ("proved", rests_on, False)
    control = claim.control
    assert control is not None
    assert set(control.dropped) <= set(rests_on)
    assert not control.granted
    broken = breaks(without(program, control.dropped), claim.assertion)
    assert broken(control.witness.metadata, control.witness.context)
    assert not breaks(program, claim.assertion)(control.witness.metadata, control.witness.context)


def test_what_no_rule_grants_rests_on_default_deny_and_is_refuted_where_all_is_granted() -> None:
    program = program_of("depth d { reach shallow } assert a { never reach deep when private }")
    (claim,) = prove(program)
    assert (claim.outcome, claim.rests_on, claim.default_deny) == ("proved", (), True)
    assert claim.control is not None
    assert claim.control.granted
    granted = without(program, (), everything=True)
    assert breaks(granted, claim.assertion)(claim.control.witness.metadata, claim.control.witness.context)


def test_a_claim_that_two_rules_see_to_is_refuted_without_both() -> None:
    claim = claim_of(
        'depth d { reach all } suppress s { when private because "s" }'
        'suppress t { when private cap deep at 0 because "t" } assert a { never reach deep when private }'
    )
    assert claim.outcome == "proved"
    assert len(claim.rests_on) == 1
    assert claim.control is not None
    assert claim.control.dropped == ("s", "t")


def test_an_implication_rests_on_no_rule() -> None:
    claim = claim_of("depth d { reach all } assert a { kind == a implies kind != b }")
    assert (claim.outcome, claim.rests_on) == ("proved", ())
    assert claim.control is not None
    assert claim.control.witness.metadata["kind"] == "a"


def test_waivers_are_seen_through() -> None:
    rules = (
        'depth d { reach all } suppress s { when private because "s" }assert a { always refuse when private }'
    )
    assert claim_of(rules).outcome == "proved"
    lifted = claim_of(rules + 'waive s { when kind == a approved by "X" until 2030-01-01 because "y" }')
    assert lifted.outcome == "refuted"
    assert lifted.witness is not None
    assert lifted.witness.metadata["kind"] == "a"


# --- not proved ---------------------------------------------------------------------------------------------


def test_the_assertion_itself_proves_nothing() -> None:
    """At run time a failed assertion refuses; the proof is about the rules beside it."""
    claim = claim_of("depth d { reach all } assert a { never reach deep when private }")
    assert claim.outcome == "refuted"
    assert claim.witness is not None
    assert claim.decision is not None
    assert claim.decision.micro == (1_000_000, 1_000_000)


def test_an_advisory_rule_carries_no_proof() -> None:
    claim = claim_of(
        'depth d { reach all } advisory suppress s { when private because "s" }'
        "assert a { never reach deep when private }"
    )
    assert claim.outcome == "refuted"


def test_an_advisory_assertion_is_proved_like_any_other() -> None:
    claim = claim_of("depth d { reach all } advisory assert a { never reach deep when private }")
    assert (claim.outcome, claim.assertion.level) == ("refuted", "advisory")


@pytest.mark.parametrize(
    "condition",
    ["kind == a and kind == b", "score > 0.5 and score < 0.5", 'person == "" and person contains "x"'],
)
def test_a_claim_about_no_example_is_vacuous(condition: str) -> None:
    claim = claim_of(f"depth d {{ reach all }} assert a {{ never reach deep when {condition} }}")
    assert claim.outcome == "vacuous"


@pytest.mark.parametrize(
    "claim", ["at most 1 in deep when private", "private implies private or consent or not consent"]
)
def test_a_claim_that_no_rules_could_break_is_trivial(claim: str) -> None:
    assert claim_of(f"depth d {{ reach all }} assert a {{ {claim} }}").outcome == "trivial"


def test_what_the_solver_cannot_settle_in_time_is_unknown() -> None:
    """A sum of two cubes is never a cube; no solver finds that in a moment."""
    program = program_of(
        "depth d { when consent reach shallow } assert a { never reach shallow when consent }"
    )
    attributes = tuple(AttributeSpec(name, "number", lo=1, hi=100_000) for name in ("u", "v", "w"))
    claim = claim_about(
        dataclasses.replace(
            program,
            attributes=tuple(sorted((*program.attributes, *attributes), key=lambda spec: spec.name)),
            grants=(dataclasses.replace(program.grants[0], when=CUBES),),
        ),
        timeout=0.3,
    )
    assert claim.outcome == "unknown"
    assert claim.why


def claim_about(program: Program, timeout: float = 10) -> Claim:
    (claim,) = prove(program, timeout=timeout)
    return claim


def cube(name: str) -> NumericExpr:
    value = AttributeValue(name)
    return Arithmetic("mul", Arithmetic("mul", value, value), value)


CUBES = Compare("eq", Arithmetic("add", cube("u"), cube("v")), cube("w"))


def far_program(*, guarded: bool) -> Program:
    """A program whose string tests are too many to be listed, and name a character that z3 does not know."""
    program = program_of("depth d { reach all } assert a { never reach deep when private }")
    tests = [Text("person", "contains", (f"\U0003fffe{a}{b}{a}{b}",)) for a in "abcd" for b in "efgh"]
    when: Condition = Not(Or(tuple(tests))) if guarded else Constant(True)
    assertion = dataclasses.replace(program.assertions[0], when=Or(tuple(tests)))
    return dataclasses.replace(
        program, grants=(dataclasses.replace(program.grants[0], when=when),), assertions=(assertion,)
    )


def test_a_text_that_the_solver_cannot_hold_leaves_a_claim_unknown() -> None:
    """Tests whose outcome is guessed may carry a proof, but no example: neither refutation nor control."""
    for guarded in (True, False):
        claim = claim_about(far_program(guarded=guarded))
        assert claim.outcome == "unknown"
        assert "`person`" in claim.why


# --- counterexamples ----------------------------------------------------------------------------------------


def test_a_counterexample_is_as_plain_as_it_can_be() -> None:
    claim = claim_of(
        'depth d { when score >= 0.8 and person starts with "x" and step >= 500 and has erase reach all }'
        "assert a { never reach deep when tags contains y }"
    )
    assert claim.witness is not None
    assert dict(claim.witness.metadata) == {
        "consent": False,
        "erase": "2026-01-01",
        "kind": "a",
        "person": "x",
        "private": False,
        "score": 0.8,
        "size": 0,
        "tags": ["y"],
    }
    assert claim.witness.context.step == 500
    assert not claim.witness.context.signals


def test_a_counterexample_from_which_something_is_learned_is_preferred() -> None:
    claim = claim_of("depth d { when consent reach all } assert a { private implies consent }")
    assert claim.outcome == "refuted"
    assert claim.decision is not None
    assert claim.decision.verdict == "refuse", "nothing can be learned without consent"
    other = claim_of("depth d { when kind == c reach all } assert a { private implies consent }")
    assert other.decision is not None
    assert other.decision.verdict == "admit"


def check_claims(program: Program, rows: list[dict[str, Any]], context: Context) -> list[str]:
    """Every counterexample is one, every proof survives random search, every control refutes."""
    context = supplied(context)
    outcomes = []
    for claim in prove(program, timeout=5):
        outcomes.append(claim.outcome)
        broken = breaks(program, claim.assertion)
        if claim.outcome == "refuted":
            assert claim.witness is not None
            assert broken(claim.witness.metadata, claim.witness.context)
            assert decide(program, claim.witness.metadata, claim.witness.context).verdict != "invalid"
        elif claim.outcome != "unknown":
            assert not any(broken(row, context) for row in rows)
        if claim.outcome == "proved":
            assert claim.control is not None
            metadata, when = claim.control.witness.metadata, claim.control.witness.context
            assert not broken(metadata, when)
            if claim.assertion.form != "implies":
                reduced = without(program, claim.control.dropped, everything=claim.control.granted)
                assert breaks(reduced, claim.assertion)(metadata, when)
    return outcomes


@given(programs(), st.lists(valid_examples(), min_size=1, max_size=5), contexts())
@settings(max_examples=15, deadline=None, suppress_health_check=SLOW)
def test_random_claims_are_what_they_are_said_to_be(
    program: Program, rows: list[dict[str, Any]], context: Context
) -> None:
    check_claims(program, rows, context)


@pytest.mark.soak
@given(programs(), st.lists(valid_examples(), min_size=1, max_size=10), contexts())
@settings(max_examples=3000, deadline=None, suppress_health_check=SLOW)
def test_soak_of_random_claims(program: Program, rows: list[dict[str, Any]], context: Context) -> None:
    check_claims(program, rows, context)
