"""Every evaluator gives the decision of the reference: scalar, columnar, classified and replayed."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden.policy import compile_policy, parse_policy
from gradwarden.policy.context import Context
from gradwarden.policy.decision import VERDICTS, Decision
from gradwarden.policy.evaluation.admission import Admission, classify
from gradwarden.policy.evaluation.batch import decide_columns
from gradwarden.policy.evaluation.columns import ColumnsError
from gradwarden.policy.evaluation.evaluate import ContextError, decide
from gradwarden.policy.evaluation.replay import Replayer, ReplayError
from gradwarden.policy.program import (
    SCALE,
    AttributeSpec,
    Band,
    Clause,
    ClockValue,
    Compare,
    Constant,
    Grant,
    Limit,
    Number,
    Program,
)
from tests.strategies import contexts, examples, programs, row_contexts


def as_columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(k for row in rows for k in row)}


def without_details(decision: Decision) -> Decision:
    """The decision with problems by attribute and code; their words are for people."""
    return dataclasses.replace(
        decision, problems=tuple(dataclasses.replace(p, detail="") for p in decision.problems)
    )


@st.composite
def batches(draw: st.DrawFn) -> tuple[Program, list[dict[str, Any]], Context, list[Decision]]:
    """A program, examples, a context, and the reference decision of each example."""
    program = draw(programs())
    rows = draw(st.lists(examples, min_size=1, max_size=12))
    context, of_row = draw(row_contexts(len(rows)))
    return program, rows, context, [decide(program, row, of_row(i)) for i, row in enumerate(rows)]


@given(batches())
@settings(max_examples=150)
def test_columns_decide_as_the_reference(
    batch: tuple[Program, list[dict[str, Any]], Context, list[Decision]],
) -> None:
    program, rows, context, expected = batch
    decisions = decide_columns(program, as_columns(rows), context)
    assert [decisions.decision(i) for i in range(len(rows))] == expected
    assert decisions.micro.tolist() == [list(decision.micro) for decision in expected]
    assert [VERDICTS[code] for code in decisions.verdicts] == [decision.verdict for decision in expected]
    assert list(decisions.verdict_names) == [decision.verdict for decision in expected]
    assert decisions.weights.tolist() == [list(decision.weights.values()) for decision in expected]


@given(batches())
@settings(max_examples=50)
def test_counts_are_those_of_the_decisions(
    batch: tuple[Program, list[dict[str, Any]], Context, list[Decision]],
) -> None:
    program, rows, context, expected = batch
    decisions = decide_columns(program, as_columns(rows), context)
    assert decisions.verdict_counts() == {v: sum(d.verdict == v for d in expected) for v in VERDICTS}
    for rule, count in decisions.rule_counts().items():
        assert count == sum(rule in (*d.rules, *d.advisory, *d.waived) for d in expected)


@given(batches(), st.integers(0, 12))
@settings(max_examples=150)
def test_admission_decides_as_the_reference_and_its_record_replays(
    batch: tuple[Program, list[dict[str, Any]], Context, list[Decision]], known: int
) -> None:
    """Some examples are classified beforehand as a data set, the rest join as they come."""
    program, rows, context, expected = batch
    admission = Admission(program, classify(program, as_columns(rows[:known])))
    admission.add(rows[known:])
    admitted = admission.admit(np.arange(len(rows)), context)
    wanted = [without_details(decision) for decision in expected]
    assert [without_details(admitted.decision(i)) for i in range(len(rows))] == wanted
    assert admitted.micro.tolist() == [list(decision.micro) for decision in expected]
    assert [VERDICTS[code] for code in admitted.verdicts] == [decision.verdict for decision in expected]

    replayer = Replayer(program)
    classes = [replayer.class_of(body) for body in admission.class_bodies()]
    replayed = replayer.replay_step(
        [classes[number] for number in admitted.class_ids],
        slots=admitted.slots,
        exposures=None if admitted.exposures is None else admitted.exposures.tolist(),
        signals={name: values.tolist() for name, values in admitted.signals.items()},
        step=context.step,
        epoch=context.epoch,
        today=context.today,
        spent=context.spent,
    )
    assert replayed == [admitted.decision(i) for i in range(len(rows))]


@given(programs(), st.lists(examples, min_size=1, max_size=6), st.lists(contexts(), min_size=2, max_size=4))
@settings(max_examples=60)
def test_admission_keeps_no_state_between_steps(
    program: Program, rows: list[dict[str, Any]], steps: list[Context]
) -> None:
    admission = Admission(program)
    admission.add(rows)
    for context in steps:
        order = np.array([i for i in range(len(rows)) for _ in range(2)])[::-1]
        admitted = admission.admit(order, context)
        expected = [without_details(decide(program, rows[i], context)) for i in order]
        assert [without_details(admitted.decision(i)) for i in range(len(order))] == expected


@given(programs(), examples)
@settings(max_examples=40)
def test_a_missing_date_is_the_callers_fault_wherever_the_policy_reads_it(
    program: Program, example: dict[str, Any]
) -> None:
    def outcome(call: Any) -> bool:
        try:
            call()
        except ContextError:
            return False
        return True

    admission = Admission(program)
    admission.add([example])
    results = {
        outcome(lambda: decide(program, example, Context())),
        outcome(lambda: decide_columns(program, as_columns([example]), Context())),
        outcome(lambda: admission.admit([0], Context())),
    }
    assert len(results) == 1


CAPPED = Program(
    name="capped",
    version=1,
    language=1,
    max_weight=SCALE,
    attributes=(AttributeSpec("score", "number", hi=100),),
    signals=(),
    bands=(Band("all", ()),),
    grants=(Grant("g", Constant(True), (SCALE,)),),
    limits=(
        Limit(
            "twice", "retain", (Clause(Compare("ge", ClockValue("exposures"), Number(2)), "expired", (0,)),)
        ),
    ),
    modulations=(),
    waivers=(),
    assertions=(),
)


def test_exposures_stop_an_example_row_by_row() -> None:
    decisions = decide_columns(CAPPED, {"score": [1, 1, 1]}, Context(exposures=np.array([1, 2, 3])))
    assert list(decisions.verdict_names) == ["admit", "refuse", "refuse"]


def test_arrays_of_another_length_are_refused() -> None:
    with pytest.raises(ContextError, match="one per example"):
        decide_columns(CAPPED, {"score": [1, 2]}, Context(exposures=np.zeros(3, int)))


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ColumnsError, match="`other` has 1 rows where others have 2"):
        decide_columns(CAPPED, {"score": [1, 2], "other": [1]}, Context())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exposures": None}, "exposures are recorded"),
        ({"exposures": [-1]}, "whole number"),
        ({"exposures": [0, 0]}, "one entry per example"),
        ({"signals": {"loss": [1]}}, "signals recorded"),
        ({"slots": {"score": [1]}}, "slots recorded"),
        ({"classes": [1]}, "more bits"),
    ],
)
def test_records_that_no_run_can_have_written_are_refused(change: dict[str, Any], message: str) -> None:
    record: dict[str, Any] = {"classes": [0], "exposures": [0], "signals": {}, "slots": {}}
    clock = {"step": 0, "epoch": 0, "today": None, "spent": frozenset[str]()}
    assert Replayer(CAPPED).replay_step(**record, **clock)[0].verdict == "admit"
    with pytest.raises(ReplayError, match=message):
        Replayer(CAPPED).replay_step(**(record | change), **clock)


def test_what_is_remembered_of_a_number_is_not_taken_for_a_bool() -> None:
    """1 and true are equal in Python, and only one of them is a day."""
    text = "policy p version 1\nexamples { gone : date }\nmodel { deep = rest }\n"
    text += "retain r { until gone }\ndepth d { reach all }\n"
    replayer = Replayer[Decision](compile_policy(parse_policy(text)))
    record: dict[str, Any] = {"classes": [0], "exposures": None, "signals": {}}
    clock = {"step": 0, "epoch": 0, "today": 0, "spent": frozenset[str]()}
    replayer.replay_step(**record, slots={"gone": [1]}, **clock)
    with pytest.raises(ReplayError, match="`gone`"):
        replayer.replay_step(**record, slots={"gone": [True]}, **clock)


@pytest.mark.parametrize(
    "body",
    [
        {"bits": "2"},
        {"bits": "00"},
        {"bits": "-1"},
        {"bits": 0},
        {},
        {"problems": []},
        {"problems": [["a", "b"]]},
    ],
)
def test_classes_that_do_not_fit_the_program_are_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ReplayError):
        Replayer(CAPPED).class_of(body)
