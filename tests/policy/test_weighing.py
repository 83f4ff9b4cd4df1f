"""Folded conditions and the weights that follow from them, held to the evaluator and to `combine`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden.policy.context import Context
from gradwarden.policy.decision import VERDICTS
from gradwarden.policy.evaluation import classes
from gradwarden.policy.evaluation.batch import decide_columns
from gradwarden.policy.evaluation.evaluate import Facts, decide, holds
from gradwarden.policy.evaluation.factoring import MAX_DEPTH, any_of
from gradwarden.policy.program import (
    SCALE,
    And,
    Assertion,
    AttributeSpec,
    Clause,
    Condition,
    Constant,
    Effect,
    Flag,
    Grant,
    Level,
    Limit,
    Not,
    Or,
    Program,
)
from tests.policy.test_values import program_of

NAMES = "abcdef"
A, B, C, D = (Flag(name) for name in "abcd")

flags = st.sampled_from([Flag(name) for name in NAMES])
formulas: st.SearchStrategy[Condition] = st.recursive(
    flags | st.sampled_from([Constant(True), Constant(False)]),
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(And, st.lists(inner, max_size=4).map(tuple)),
        st.builds(Or, st.lists(inner, max_size=4).map(tuple)),
    ),
    max_leaves=12,
)
conjunctions = st.lists(flags, max_size=4).map(lambda terms: And(tuple(terms)))


def facts(truth: dict[str, bool]) -> Facts:
    return Facts(truth, {}, 0, 0, 0, 0, frozenset())


@given(
    st.lists(formulas | conjunctions, max_size=10),
    st.lists(st.fixed_dictionaries(dict.fromkeys(NAMES, st.booleans())), min_size=1, max_size=6),
)
@settings(max_examples=150)
def test_what_is_taken_out_changes_no_truth(whens: list[Condition], rows: list[dict[str, bool]]) -> None:
    folded = any_of(whens)
    for row in rows:
        assert holds(folded, facts(row)) is any(holds(when, facts(row)) for when in whens)


def test_what_rules_share_is_joined_once() -> None:
    assert any_of([And((A, B)), And((A, C)), D]) == Or((And((A, Or((And((B,)), And((C,)))))), And((D,))))
    assert any_of([And((A, B, C)), And((C, A))]) == And((A, C, Constant(True)))


def depth(condition: Condition) -> int:
    terms = condition.terms if isinstance(condition, And | Or) else ()
    return 1 + max(map(depth, terms), default=0)


def test_conditions_do_not_nest_as_deep_as_there_are_rules() -> None:
    """Each rule asks all that the one before it asks, and more."""
    asked = [Flag(f"x{i}") for i in range(200)]
    whens = [And((*asked[: i + 1], Flag(f"y{i}"))) for i in range(200)]
    folded = any_of(whens)
    assert depth(folded) <= 2 * MAX_DEPTH + 3
    row = {flag.attribute: True for flag in asked} | {"y150": True}
    assert holds(folded, facts(row))
    assert not holds(folded, facts(row | {"x150": False}))


def many_weights(count: int) -> Program:
    """A program with as many weights as rules, so that nothing can be folded."""
    attributes = tuple(AttributeSpec(f"a{i:02}", "bool") for i in range(2 * count))
    grants = tuple(Grant(f"g{i:02}", Flag(f"a{i:02}"), ((i + 1) * 1000, i * 500)) for i in range(count))
    limits = tuple(
        Limit(f"l{i:02}", "curriculum", (_clause(Flag(f"a{count + i:02}"), i),)) for i in range(count)
    )
    program = program_of(*attributes)
    bands = tuple(replace(program.bands[0], name=name) for name in ("shallow", "deep"))
    return replace(program, bands=bands, grants=grants, limits=limits)


def _clause(when: Condition, index: int) -> Clause:
    return Clause(
        when, "not_open", (0 if index == 0 else SCALE - index * 40_000, index * 700), index % 2 == 0
    )


def rows_of(program: Program, count: int) -> Iterator[dict[str, object]]:
    draw = np.random.default_rng(3)
    for row in draw.random((count, len(program.attributes))) < 0.15:
        yield {spec.name: bool(value) for spec, value in zip(program.attributes, row, strict=True)}


@pytest.mark.parametrize("count", [1, 3, 4, 20])
@pytest.mark.parametrize("broken", [False, True])
def test_many_kinds_are_weighed_as_one_example_is(count: int, broken: bool) -> None:
    """Few kinds are numbered by a byte, many by tables; invalid examples have a number beside them."""
    program = many_weights(count)
    rows = list(rows_of(program, 300))
    if broken:
        for row in rows[::7]:
            row["a00"] = "no"
    columns = {spec.name: [row[spec.name] for row in rows] for spec in program.attributes}
    decisions = decide_columns(program, columns, Context())
    expected = [decide(program, row, Context()) for row in rows]
    assert decisions.micro.tolist() == [list(decision.micro) for decision in expected]
    assert [VERDICTS[code] for code in decisions.verdicts] == [decision.verdict for decision in expected]
    assert (decisions.kind_ids.dtype == np.uint8) == (2 * count <= classes.MAX_NARROW)


def test_rows_of_one_class_have_one_decision() -> None:
    program = many_weights(4)
    rows = list(rows_of(program, 200))
    columns = {spec.name: [row[spec.name] for row in rows] for spec in program.attributes}
    decisions = decide_columns(program, columns, Context())
    one_by_one = [decisions.decision(row) for row in range(200)]
    by_class = dict(zip(decisions.class_ids.tolist(), one_by_one, strict=True))
    assert [by_class[number] for number in decisions.class_ids.tolist()] == one_by_one
    assert [decisions.decision(row) for row in range(200)] == one_by_one


@pytest.mark.parametrize("effect", ["confined", "capped"])
@pytest.mark.parametrize("level", ["hard", "advisory"])
def test_only_an_enforced_privacy_rule_makes_an_example_private(effect: Effect, level: Level) -> None:
    """One example meets the rule, the other does not; the assertion refuses what is not private."""
    clause = Clause(A, effect, (SCALE,))
    program = replace(
        program_of(AttributeSpec("a", "bool")),
        grants=(Grant("everything", Constant(True), (SCALE,)),),
        limits=(Limit("patients", "privacy", (clause,), level),),
        assertions=(Assertion("private", "always_private", Constant(True)),),
    )
    decisions = decide_columns(program, {"a": [True, False]}, Context())
    expected = [decide(program, {"a": a}, Context()) for a in (True, False)]
    assert list(decisions.verdict_names) == [decision.verdict for decision in expected]
    assert decisions.rule_counts()["private"] == sum("private" in d.rules for d in expected)
