"""The laws of combination: order does not matter, limits only restrict, ungranted is unlearned."""

from __future__ import annotations

import dataclasses
import random
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gradwarden.policy.context import Context
from gradwarden.policy.decision import VERDICTS, Decision
from gradwarden.policy.evaluation.batch import decide_columns
from gradwarden.policy.evaluation.evaluate import decide, read_facts, truth_of
from gradwarden.policy.program import (
    SCALE,
    And,
    Assertion,
    Clause,
    Constant,
    Grant,
    Limit,
    Modulation,
    Not,
    Or,
    Program,
    Scaling,
    SignalSpec,
    Waiver,
)
from tests.policy.test_values import program_of
from tests.strategies import (
    ATTRIBUTES,
    broken_examples,
    conditions,
    contexts,
    limits,
    programs,
    valid_examples,
)

usable_contexts = contexts().map(
    lambda context: dataclasses.replace(
        context, signals={n: v for n, v in context.signals.items() if abs(v) <= 12}
    )
)
no_assertions = programs().map(lambda program: dataclasses.replace(program, assertions=()))


def brute_force(
    program: Program, example: dict[str, Any], context: Context
) -> tuple[list[int], str, set[str]]:
    """Weights, verdict and enforced rules, worked out band by band with fractions, in no order."""
    facts, problems = read_facts(program, example, context)
    if problems:
        return [0] * len(program.bands), "invalid", set()
    truth = dict(zip(_places(program), truth_of(program, example, context), strict=True))
    lifted = {w.rule for i, w in enumerate(program.waivers) if truth["waiver", i, 0]}
    enforced: set[str] = set()
    grants, caps, lasting_caps, factors = [], [], [], []
    private = False
    for i, grant in enumerate(program.grants):
        if truth["grant", i, 0] and grant.level == "hard":
            enforced.add(grant.name)
            grants.append(grant.weights)
    for i, limit in enumerate(program.limits):
        for j, clause in enumerate(limit.clauses):
            if truth["limit", i, j] and limit.level == "hard" and limit.name not in lifted:
                enforced.add(limit.name)
                caps.append(clause.caps)
                private |= clause.effect == "confined"
                if not clause.defers:
                    lasting_caps.append(clause.caps)
    for i, modulation in enumerate(program.modulations):
        if truth["modulation", i, 0] and modulation.level == "hard":
            enforced.add(modulation.name)
            for scaling in modulation.scalings:
                factors.append((scaling.band, _factor(program, scaling, facts.signals)))

    def weight(band: int, limits: list[tuple[int, ...]]) -> int:
        granted = max((g[band] for g in grants), default=0)
        bound = min((c[band] for c in limits), default=program.max_weight)
        factor = min((f for name, f in factors if name == program.band_names[band]), default=SCALE)
        return int(Fraction(min(granted, bound) * factor, SCALE))

    bands = range(len(program.bands))
    weights = [weight(band, caps) for band in bands]
    failed = set()
    for i, claim in enumerate(program.assertions):
        if truth["assertion", i, 0] and claim.level == "hard":
            some = sum(weights) > 0
            own = weights[program.band_names.index(claim.band)] if claim.band else 0
            holds = {
                "never_reach": own == 0,
                "at_most": own <= claim.bound,
                "always_refuse": not some,
                "always_private": private or not some,
                "implies": truth.get(("assertion", i, 1), True),
            }[claim.form]
            if not holds:
                failed.add(claim.name)
    if failed:
        weights = [0 for _ in bands]
    if sum(weights) == 0:
        waits = not failed and any(weight(band, lasting_caps) for band in bands)
        return weights, "defer" if waits else "refuse", enforced | failed
    full = all(
        w >= SCALE for w, name in zip(weights, program.band_names, strict=True) if name != "quarantine"
    )
    return weights, "admit" if full else "limit", enforced


def _factor(program: Program, scaling: Scaling, signals: Any) -> int:
    spec = next(s for s in program.signals if s.name == scaling.signal)
    if spec.hi == spec.lo:
        return min(scaling.at_low, scaling.at_high)
    part = Fraction(signals[scaling.signal] - spec.lo, spec.hi - spec.lo)
    exact = scaling.at_low + (scaling.at_high - scaling.at_low) * part
    return exact.numerator // exact.denominator


def _places(program: Program) -> list[tuple[str, int, int]]:
    """Where each condition of the program stands: kind of rule, index, clause."""
    places = [("grant", i, 0) for i in range(len(program.grants))]
    places += [("limit", i, j) for i, limit in enumerate(program.limits) for j in range(len(limit.clauses))]
    places += [("modulation", i, 0) for i in range(len(program.modulations))]
    places += [("waiver", i, 0) for i in range(len(program.waivers))]
    for i, assertion in enumerate(program.assertions):
        places += [("assertion", i, j) for j in range(2 if assertion.form == "implies" else 1)]
    return places


@given(programs(), valid_examples(), contexts())
@settings(max_examples=150)
def test_decisions_are_those_of_an_independent_oracle(
    program: Program, example: dict[str, Any], context: Context
) -> None:
    decision = decide(program, example, context)
    weights, verdict, rules = brute_force(program, example, context)
    assert (list(decision.micro), decision.verdict, set(decision.rules)) == (weights, verdict, rules)


@given(programs(), valid_examples(), contexts(), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_the_order_of_rules_does_not_matter(
    program: Program, example: dict[str, Any], context: Context, source: random.Random
) -> None:
    groups = ("grants", "limits", "modulations", "waivers", "assertions")
    shuffled = {name: tuple(source.sample(g := getattr(program, name), len(g))) for name in groups}
    other = decide(dataclasses.replace(program, **shuffled), example, context)
    decision = decide(program, example, context)
    assert _unordered(other) == _unordered(decision)


def _unordered(decision: Decision) -> tuple[object, ...]:
    """A decision, where the order in which obligations and causes are listed means nothing."""
    plain = dataclasses.replace(decision, obligations=(), causes=())
    return plain, set(decision.obligations), set(decision.causes)


def no_greater(left: Decision, right: Decision) -> bool:
    return all(a <= b for a, b in zip(left.micro, right.micro, strict=True))


@given(no_assertions, st.data(), valid_examples(), usable_contexts)
@settings(max_examples=60)
def test_a_further_limit_never_raises_a_weight(
    program: Program, data: st.DataObject, example: dict[str, Any], context: Context
) -> None:
    """Whatever the one before leaves, which always holds here: seldom do two of those drawn."""
    first, more = (
        always(data.draw(limits(name, program.band_names, program.max_weight)))
        for name in ("limit_y", "limit_z")
    )
    once = dataclasses.replace(program, limits=(*program.limits, first))
    twice = dataclasses.replace(program, limits=(*program.limits, first, more))
    decisions = [decide(one, example, context) for one in (program, once, twice)]
    assert no_greater(decisions[1], decisions[0])
    assert no_greater(decisions[2], decisions[1])


def always(limit: Limit) -> Limit:
    """Return a limit of every example."""
    clauses = tuple(dataclasses.replace(clause, when=Constant(True)) for clause in limit.clauses)
    return dataclasses.replace(limit, level="hard", clauses=clauses)


@given(no_assertions, st.data(), valid_examples(), usable_contexts)
@settings(max_examples=60)
def test_a_further_clause_never_raises_a_weight(
    program: Program, data: st.DataObject, example: dict[str, Any], context: Context
) -> None:
    assume(program.limits)
    more = data.draw(limits("limit_z", program.band_names, program.max_weight))
    index = data.draw(st.integers(0, len(program.limits) - 1))
    changed = list(program.limits)
    changed[index] = dataclasses.replace(changed[index], clauses=changed[index].clauses + more.clauses)
    limited = dataclasses.replace(program, limits=tuple(changed))
    assert no_greater(decide(limited, example, context), decide(program, example, context))


@given(programs(), conditions, valid_examples(), usable_contexts)
@settings(max_examples=60)
def test_a_further_assertion_can_only_refuse(
    program: Program, when: Any, example: dict[str, Any], context: Context
) -> None:
    before = decide(program, example, context)
    claim = Assertion("claim_z", "always_refuse", when)
    after = decide(dataclasses.replace(program, assertions=(*program.assertions, claim)), example, context)
    assert after.micro in (before.micro, (0,) * len(before.micro))


@given(no_assertions, st.data(), valid_examples(), usable_contexts)
@settings(max_examples=60)
def test_a_waiver_never_lowers_a_weight_and_never_passes_what_was_granted(
    program: Program, data: st.DataObject, example: dict[str, Any], context: Context
) -> None:
    assume(program.limits)
    rule = data.draw(st.sampled_from(program.limits)).name
    waiver = Waiver("waive:z", rule, Constant(True), "Dr. X", 30_000)
    waived = decide(dataclasses.replace(program, waivers=(*program.waivers, waiver)), example, context)
    assert no_greater(decide(program, example, context), waived)
    assert no_greater(waived, decide(dataclasses.replace(program, limits=()), example, context))
    assert rule not in waived.rules


@given(programs(), valid_examples(), usable_contexts)
@settings(max_examples=30)
def test_without_a_grant_nothing_is_learned(
    program: Program, example: dict[str, Any], context: Context
) -> None:
    decision = decide(dataclasses.replace(program, grants=()), example, context)
    assert not any(decision.micro)
    assert decision.verdict == "refuse"
    if decision.stage == "depth":
        assert ("", "not_granted") in {(cause.rule, cause.effect) for cause in decision.causes}


@given(programs(), valid_examples(), usable_contexts)
@settings(max_examples=60)
def test_advisory_rules_change_nothing_but_the_notes(
    program: Program, example: dict[str, Any], context: Context
) -> None:
    def hard(rules: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(rule for rule in rules if rule.level == "hard")

    enforced = dataclasses.replace(
        program,
        grants=hard(program.grants),
        limits=hard(program.limits),
        modulations=hard(program.modulations),
        assertions=hard(program.assertions),
    )
    decision = decide(program, example, context)
    assert dataclasses.replace(decision, advisory=(), waived=()) == dataclasses.replace(
        decide(enforced, example, context), advisory=(), waived=()
    )


@given(programs(), broken_examples(), usable_contexts)
@settings(max_examples=60)
def test_metadata_that_break_the_schema_teach_nothing_and_name_the_attribute(
    program: Program, example: dict[str, Any], context: Context
) -> None:
    _, problems = read_facts(program, example, context)
    decision = decide(program, example, context)
    assert (decision.verdict == "invalid") == bool(problems)
    if problems:
        assert not any(decision.micro)
        assert {problem.attribute for problem in decision.problems} <= {
            *example,
            *(s.name for s in ATTRIBUTES),
        }


@given(programs(), valid_examples(), contexts())
@settings(max_examples=60)
def test_weights_stay_below_the_ceiling_and_the_verdict_says_what_they_are(
    program: Program, example: dict[str, Any], context: Context
) -> None:
    decision = decide(program, example, context)
    assert all(0 <= weight <= program.max_weight for weight in decision.micro)
    assert any(decision.micro) == (decision.verdict in ("admit", "limit"))
    assert (decision.stage is None) == any(decision.micro)


@given(conditions, valid_examples(), usable_contexts)
@settings(max_examples=60)
def test_conditions_keep_the_laws_of_logic(when: Any, example: dict[str, Any], context: Context) -> None:
    def truth(condition: Any) -> bool:
        grant = Grant("g", condition, (SCALE,))
        program = dataclasses.replace(PLAIN, grants=(grant,))
        return truth_of(program, example, context)[0]

    value = truth(when)
    assert truth(Not(when)) is not value
    assert truth(And((when, Not(when)))) is False
    assert truth(Or((when, Not(when)))) is True
    assert truth(And(())) is True
    assert truth(Or(())) is False


RATIO = SignalSpec("ratio", 0, 1000, 3, 0)
PLAIN = dataclasses.replace(
    program_of(*ATTRIBUTES),
    signals=(RATIO, SignalSpec("frustration", 0, 1000, 3, 0), SignalSpec("loss_ratio", 0, 10**7, 6, 10**6)),
)
STAGED = dataclasses.replace(
    program_of(),
    signals=(RATIO,),
    limits=(Limit("stage", "curriculum", (Clause(Constant(True), "not_open", (0,), defers=True),)),),
    modulations=(Modulation("fade", Constant(True), (Scaling("all", "ratio", SCALE, 0),)),),
)


def test_what_waits_for_a_stage_is_deferred_only_where_something_will_be_left() -> None:
    """A row whose signal scales everything to nothing is refused, not deferred, in every evaluator."""
    context = Context(signals={"ratio": np.array([0.0, 0.5, 1.0])})
    columns = decide_columns(STAGED, {"nothing": [None] * 3}, context)
    assert [VERDICTS[code] for code in columns.verdicts] == ["defer", "defer", "refuse"]
    for row, ratio in enumerate((0.0, 0.5, 1.0)):
        assert columns.decision(row) == decide(STAGED, {}, Context(signals={"ratio": ratio}))


def test_signal_arrays_are_rounded_as_single_signals() -> None:
    program = dataclasses.replace(STAGED, limits=())
    values = [0.0005, 0.0015, 0.0025, 0.1235, -1.0, 7.0, 1e308]
    columns = decide_columns(program, {"nothing": [None] * 7}, Context(signals={"ratio": np.array(values)}))
    expected = [decide(program, {}, Context(signals={"ratio": value})) for value in values]
    assert [columns.decision(i) for i in range(7)] == expected
    assert columns.micro[:, 0].tolist() == [SCALE, 998_000, 998_000, 876_000, SCALE, 0, 0]


def test_a_signal_that_is_not_finite_makes_the_example_invalid() -> None:
    columns = decide_columns(
        STAGED, {"nothing": [None] * 2}, Context(signals={"ratio": np.array([0.5, np.nan])})
    )
    assert list(columns.verdict_names) == ["defer", "invalid"]
    assert [(p.attribute, p.code) for p in columns.decision(1).problems] == [("ratio", "not_finite")]
