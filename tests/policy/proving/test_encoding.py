"""The encoding means what the program means: pinned to an example, it gives the evaluator's decision."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from gradwarden.policy import parse_policy
from gradwarden.policy.context import Context
from gradwarden.policy.decision import VERDICTS, Decision
from gradwarden.policy.evaluation.batch import decide_columns
from gradwarden.policy.evaluation.evaluate import decide, truth_of
from gradwarden.policy.program import Program
from gradwarden.policy.proving.encoding import Encoding
from gradwarden.policy.proving.inputs import Inputs
from gradwarden.policy.proving.smt import solver, z3
from gradwarden.policy.proving.witness import confirm, pin, read_witness
from tests.strategies import contexts, programs, valid_examples

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def supplied(context: Context) -> Context:
    """The context without signals that are no numbers: an example that has one is invalid."""
    signals = {name: value for name, value in context.signals.items() if math.isfinite(float(value))}
    return dataclasses.replace(context, signals=signals)


def model_of(inputs: Inputs, metadata: dict[str, Any], context: Context) -> Any:
    asked = solver()
    asked.add(*inputs.domain, *pin(inputs, metadata, context))
    assert asked.check() == z3.sat, "an example that fits the schema is in the domain"
    return asked.model()


def decided(encoding: Encoding, model: Any) -> dict[str, Any]:
    """All that an encoding says of the example of a model."""

    def holds(truth: Any) -> bool:
        return bool(z3.is_true(model.eval(truth, model_completion=True)))

    def listed(flags: dict[Any, Any]) -> list[Any]:
        return sorted(name for name, truth in flags.items() if holds(truth))

    return {
        "verdict": listed(encoding.verdicts),
        "weights": [model.eval(w, model_completion=True).as_long() for w in encoding.weights],
        "rules": listed(encoding.matched),
        "advisory": listed(encoding.advised),
        "waived": listed(encoding.waived),
        "obligations": listed(encoding.obligations),
        "nothing": holds(encoding.nothing),
        "refused": holds(encoding.refused),
        "private": holds(encoding.private),
    }


def expected(decision: Decision) -> dict[str, Any]:
    return {
        "verdict": [decision.verdict],
        "weights": list(decision.micro),
        "rules": list(decision.rules),
        "advisory": list(decision.advisory),
        "waived": list(decision.waived),
        "obligations": sorted({(o.kind, o.rule) for o in decision.obligations}),
        "nothing": not any(decision.micro),
        "refused": decision.verdict == "refuse",
        "private": any(o.kind == "privacy" for o in decision.obligations),
    }


def check_pinned(program: Program, rows: list[dict[str, Any]], context: Context) -> None:
    """Scalar evaluator, columns and encoding say the same of every row; assertions off and on."""
    context = supplied(context)
    inputs = Inputs.of(program)
    encoding = Encoding(program, inputs)
    columns = {name: [row.get(name) for row in rows] for name in {k for row in rows for k in row}}
    batch = decide_columns(program, columns, context)
    bare = dataclasses.replace(program, assertions=())
    for number, metadata in enumerate(rows):
        model = model_of(inputs, metadata, context)
        decision = decide(program, metadata, context)
        assert decided(encoding, model) == expected(decision)
        assert [model.eval(w, model_completion=True).as_long() for w in encoding.unchecked] == list(
            decide(bare, metadata, context).micro
        )
        truth = [bool(z3.is_true(model.eval(t, model_completion=True))) for t in encoding.truth]
        assert truth == list(truth_of(program, metadata, context))
        assert list(batch.micro[number]) == list(decision.micro)
        assert VERDICTS[batch.verdicts[number]] == decision.verdict
        for band, weight in zip(program.band_names, decision.micro, strict=True):
            for bound in (0, 249_999, 250_000, 999_999, 1_000_000):
                above = model.eval(encoding.above(band, bound), model_completion=True)
                assert bool(z3.is_true(above)) == (weight > bound)


@given(programs(), st.lists(valid_examples(), min_size=1, max_size=5), contexts())
@settings(max_examples=40, deadline=None, suppress_health_check=SLOW)
def test_a_pinned_encoding_decides_as_the_evaluators(
    program: Program, rows: list[dict[str, Any]], context: Context
) -> None:
    check_pinned(program, rows, context)


@pytest.mark.soak
@given(programs(), st.lists(valid_examples(), min_size=1, max_size=3), contexts())
@settings(max_examples=4000, deadline=None, suppress_health_check=SLOW)
def test_soak_of_pinned_encodings(program: Program, rows: list[dict[str, Any]], context: Context) -> None:
    check_pinned(program, rows, context)


@pytest.mark.parametrize("ends", [(1_000_000, 333_333), (333_333, 1_000_000), (1_000_000, 0), (7, 3)])
def test_factors_are_rounded_down_whichever_way_they_run(ends: tuple[int, int]) -> None:
    program = parse_policy(
        "policy p version 1 language 1 examples { a : bool } signals { s : number 0..1 places 3 default 0 }"
        "model { m = rest } depth d { when a reach m at 0.75 } modulate n { scale m by s from 1 to 1 }"
    ).program
    (modulation,) = program.modulations
    scaling = dataclasses.replace(modulation.scalings[0], at_low=ends[0], at_high=ends[1])
    program = dataclasses.replace(
        program, modulations=(dataclasses.replace(modulation, scalings=(scaling,)),)
    )
    for value in (0, 0.001, 0.002, 0.333, 0.334, 0.5, 0.998, 0.999, 1):
        check_pinned(program, [{"a": True}], Context(signals={"s": value}))


def test_a_closed_quarantine_limits_nothing() -> None:
    program = parse_policy(
        "policy p version 1 language 1 examples { a : bool  b : bool }"
        'model { deep = rest  quarantine = names "adapter.*" } depth d { when a reach all }'
        "depth e { when b reach quarantine }"
    ).program
    rows = [{"a": a, "b": b} for a in (False, True) for b in (False, True)]
    check_pinned(program, rows, Context())
    assert decide(program, rows[2], Context()).verdict == "admit"


def test_an_advisory_assertion_refuses_nothing() -> None:
    program = parse_policy(
        "policy p version 1 language 1 examples { a : bool } model { m = rest } depth d { reach m }"
        "advisory assert n { never reach m when a }"
    ).program
    check_pinned(program, [{"a": True}, {"a": False}], Context())


@given(programs(), st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=SLOW)
def test_what_the_solver_finds_is_decided_so_by_the_evaluator(program: Program, data: st.DataObject) -> None:
    """Any satisfiable question has a model whose example the evaluator decides as the encoding does."""
    inputs = Inputs.of(program)
    encoding = Encoding(program, inputs)
    questions = [*encoding.verdicts.values(), *encoding.matched.values(), *encoding.failed.values()]
    question = data.draw(st.sampled_from(questions))
    asked = solver(5)
    asked.add(*inputs.domain, question)
    assume(asked.check() == z3.sat)
    model = asked.model()
    witness = confirm(encoding, model)
    assert witness is not None
    assert decided(encoding, model) == expected(decide(program, witness.metadata, witness.context))
    assert witness == read_witness(model, inputs)
