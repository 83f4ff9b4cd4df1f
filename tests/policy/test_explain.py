"""An explanation names the rules that made a decision, what they read and what they did."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

from hypothesis import given, settings

from gradwarden.policy import compile_policy, parse_policy
from gradwarden.policy.context import Context
from gradwarden.policy.evaluation.evaluate import decide
from gradwarden.policy.evaluation.explain import explain
from gradwarden.policy.program import Program
from tests.strategies import contexts, examples, programs

PROGRAM = compile_policy(
    parse_policy(
        """
policy clinic version 3
examples {
  agreement : number 0..1
  consent   : bool
  erase_on  : date optional
  kind      : one of surface, concept
}
signals { frustration : number 0..1 default 0 }
model { shallow = top 25%  deep = rest }
depth labels   { when kind == surface  reach shallow }
depth concepts { when kind == concept and agreement >= 0.8  reach shallow, deep at 0.1 }
suppress opted_out { when not consent  because "consent withdrawn" }
retain trial { when has erase_on  until erase_on  at most 3 exposures }
advisory suppress doubtful { when agreement < 0.9 }
modulate calm { when kind == concept  scale shallow by frustration from 1 to 0.5 }
waive trial { when kind == surface  approved by "Dr. X" until 2026-12-31 because "audit" }
"""
    )
)
TODAY = date(2026, 6, 1)
CONCEPT: dict[str, Any] = {"agreement": 0.85, "consent": True, "kind": "concept"}


def test_a_masked_example_shows_the_grant_its_values_and_the_advice() -> None:
    explanation = explain(PROGRAM, CONCEPT, Context(at=TODAY, signals={"frustration": 0.5}))
    text = explanation.render()
    assert text.startswith("limit: shallow 0.75, deep 0.1")
    assert "depth concepts: enforced" in text
    assert "agreement = 0.85" in text
    assert "-> reach shallow at 1, deep at 0.1" in text
    assert "suppress doubtful: advisory" in text
    assert "shallow by frustration from 1 to 0.5" in text
    assert "labels" not in text
    assert "depth labels: silent" in explanation.render(every_rule=True)


def test_a_refused_example_names_the_rule_and_its_reason() -> None:
    text = explain(PROGRAM, CONCEPT | {"consent": False}, Context(at=TODAY)).render()
    assert text.startswith("refuse: shallow 0, deep 0")
    assert "nothing is left after the `suppress` rules" in text
    assert "suppress opted_out: enforced (because consent withdrawn)" in text
    assert "-> suppressed: every band closed" in text


def test_an_example_without_a_grant_says_so() -> None:
    text = explain(PROGRAM, CONCEPT | {"agreement": 0.1}, Context(at=TODAY)).render()
    assert "no `depth` rule grants anything" in text


def test_a_waiver_shows_what_it_lifts_and_who_approved() -> None:
    example = {"agreement": 1, "consent": True, "kind": "surface", "erase_on": date(2026, 1, 1)}
    explanation = explain(PROGRAM, example, Context(at=TODAY))
    states = {rule.name: rule.state for rule in explanation.rules}
    assert (states["trial"], states["waive:trial"]) == ("waived", "enforced")
    text = explanation.render()
    assert "lifts trial, approved by Dr. X" in text
    assert "erase_on = 2026-01-01, today = 2026-06-01" in text


def test_an_invalid_example_lists_its_problems_and_no_rules() -> None:
    explanation = explain(PROGRAM, {"agreement": 2, "kindd": "concept", "consent": True}, Context(at=TODAY))
    assert explanation.rules == ()
    assert [problem.code for problem in explanation.problems] == [
        "out_of_range",
        "missing",
        "unknown_attribute",
    ]
    assert "did you mean `kind`?" in explanation.render()


@given(programs(), examples, contexts())
@settings(max_examples=60)
def test_every_decision_can_be_explained_and_the_rules_named_are_those_that_bore_on_it(
    program: Program, example: dict[str, Any], context: Context
) -> None:
    decision = decide(program, example, context)
    explanation = explain(program, example, context)
    assert explanation.decision == decision
    assert explanation.render(every_rule=True)
    json.dumps(explanation.to_json(), allow_nan=False)
    named = {r.name for r in explanation.rules if r.state != "silent" and r.role != "waives"}
    assert named == {*decision.rules, *decision.advisory, *decision.waived}
    rules = [r for r in explanation.rules if r.role in ("grants", "limits", "scales")]
    assert {r.name for r in rules if any(c.holds for c in r.conditions)} == named & {r.name for r in rules}


def test_a_broken_assertion_says_what_would_have_been_learned() -> None:
    program = compile_policy(
        parse_policy(
            """policy p version 1 language 1
examples { phi : bool }
signals { calm : number 0..1 default 0 }
model { shallow = top 50%  deep = rest }
depth d { reach shallow, deep at 0.8 }
modulate m { scale deep by calm from 1 to 0.5 }
assert no_deep { never reach deep when phi }
assert nothing { always refuse when phi }
advisory assert less { at most 0.1 in deep when phi }
"""
        )
    )
    explanation = explain(program, {"phi": True}, Context(signals={"calm": 5.0}))
    effects = {rule.name: rule.conditions[0].effect for rule in explanation.rules}
    assert effects["no_deep"] == "never reach deep; without it: deep at 0.4"
    assert effects["nothing"] == "always refuse; without it: shallow at 1, deep at 0.4"
    assert effects["less"] == "at most 0.1 in deep; without it: deep at 0.4"
    assert effects["m"] == "deep by calm from 1 to 0.5, where calm is 1"
    kept = {rule.name: rule for rule in explain(program, {"phi": False}, Context()).rules}
    assert kept["no_deep"].conditions[0].effect == "never reach deep"
