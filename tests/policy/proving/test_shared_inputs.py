"""Programs with different schemas, asked about one example: each decides it as its own evaluator does."""

from __future__ import annotations

import dataclasses
from datetime import date
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradwarden.policy import parse_policy
from gradwarden.policy.context import Context
from gradwarden.policy.evaluation.evaluate import decide
from gradwarden.policy.evaluation.partition import reads_of
from gradwarden.policy.program import AttributeSpec, AttributeValue, Program, SignalSpec
from gradwarden.policy.proving.encoding import Encoding
from gradwarden.policy.proving.inputs import Inputs, conflicts
from gradwarden.policy.proving.smt import conjunction, negation, solver, z3
from gradwarden.policy.proving.witness import pin, read_witness
from tests.policy.proving.test_encoding import decided, expected, model_of, supplied
from tests.strategies import contexts, programs, valid_examples

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


@st.composite
def relatives(draw: st.DrawFn, program: Program) -> Program:
    """The program over another schema: ranges, places, presence, values and types are changed."""
    read = {name for condition in program.conditions() for name in reads_of(condition).attributes}
    attributes = [draw(altered(spec, free=spec.name not in read)) for spec in program.attributes]
    signals = [draw(altered_signal(spec)) for spec in program.signals]
    return dataclasses.replace(
        program, attributes=tuple(spec for spec in attributes if spec is not None), signals=tuple(signals)
    )


@st.composite
def altered(draw: st.DrawFn, spec: AttributeSpec, *, free: bool) -> AttributeSpec | None:
    change = draw(st.sampled_from(("none", "none", "presence", "range", "places", "values", "type", "drop")))
    match change:
        case "presence":
            return dataclasses.replace(spec, optional=not spec.optional)
        case "range" if spec.type in ("number", "date"):
            return dataclasses.replace(spec, lo=spec.lo + draw(st.integers(0, 2)), hi=spec.hi - 1)
        case "places" if spec.type == "number":
            return dataclasses.replace(spec, places=draw(st.integers(0, 7)))
        case "values" if spec.values:
            return dataclasses.replace(spec, values=(*spec.values[:0:-1], "new", spec.values[0]))
        case "type" if free:
            return AttributeSpec(spec.name, "bool" if spec.type != "bool" else "string", spec.optional, hi=12)
        case "drop" if free:
            return None
        case _:
            return spec


@st.composite
def altered_signal(draw: st.DrawFn, spec: SignalSpec) -> SignalSpec:
    default = draw(st.integers(spec.lo, spec.hi))
    finer = dataclasses.replace(spec, places=spec.places + 1)
    return draw(st.sampled_from((spec, dataclasses.replace(spec, default=default), finer)))


def check_shared(programs_: list[Program], metadata: dict[str, Any], context: Context) -> None:
    inputs = Inputs.of(*programs_)
    try:
        pinned = pin(inputs, metadata, context)
    except Exception:  # an example that fits none of the schemas is no input
        return
    asked = solver(10)
    asked.add(*inputs.domain, *pinned)
    if asked.check() != z3.sat:
        return
    model = asked.model()
    witness = read_witness(model, inputs)
    for program in programs_:
        decision = decide(program, witness.metadata, witness.context)
        assert decided(Encoding(program, inputs), model) == expected(decision)


@given(st.data(), programs(), valid_examples(), contexts())
@settings(max_examples=20, deadline=None, suppress_health_check=SLOW)
def test_each_program_decides_a_shared_example_by_its_own_schema(
    data: st.DataObject, program: Program, metadata: dict[str, Any], context: Context
) -> None:
    check_shared([program, data.draw(relatives(program))], metadata, supplied(context))


@pytest.mark.soak
@given(st.data(), programs(), valid_examples(), contexts())
@settings(max_examples=3000, deadline=None, suppress_health_check=SLOW)
def test_soak_of_shared_examples(
    data: st.DataObject, program: Program, metadata: dict[str, Any], context: Context
) -> None:
    check_shared([program, data.draw(relatives(program))], metadata, supplied(context))


def program(attributes: str, rules: str = "depth d { reach all }") -> Program:
    text = f"policy p version 1 language 1 examples {{ {attributes} }} model {{ m = rest }} {rules}"
    return parse_policy(text).program


def both(one: Program, other: Program) -> tuple[Any, Encoding, Encoding]:
    """A solver over examples that fit both programs, and their encodings."""
    inputs = Inputs.of(one, other)
    first, second = Encoding(one, inputs), Encoding(other, inputs)
    asked = solver(10)
    asked.add(*inputs.domain, first.valid, second.valid)
    return asked, first, second


def test_enumerations_are_shared_by_the_names_of_their_values() -> None:
    one = program("k : one of a, b", "depth d { when k == a reach all }")
    other = program("k : one of c, b, a", "depth d { when k == a reach all }")
    asked, first, second = both(one, other)
    assert asked.check(z3.Not(first.weights[0] == second.weights[0])) == z3.unsat


@pytest.mark.parametrize("k", ["a", "b", "c", "d", "ax", ""])
def test_an_enumeration_is_a_string_to_a_program_that_reads_one(k: str) -> None:
    listed = program("k : one of b, a, c", "depth d { when k in [a, c] reach all }")
    text = program("k : string", 'depth d { when k like "a*" or k == "b" reach all }')
    inputs = Inputs.of(listed, text)
    model = model_of(inputs, {"k": k}, Context())
    for side in (listed, text):
        encoding = Encoding(side, inputs)
        decision = decide(side, {"k": k}, Context())
        assert z3.is_true(model.eval(encoding.valid, model_completion=True)) is (
            decision.verdict != "invalid"
        )
        assert decided(encoding, model) == expected(decision)


def test_numbers_are_shared_finely_enough_for_every_program() -> None:
    one = program("x : number 0..10 places 1", "depth d { when x >= 2 reach all }")
    other = program("x : integer 0..10", "depth d { when x >= 2 reach all }")
    asked, first, second = both(one, other)
    assert asked.check(first.nothing, negation(second.nothing)) == z3.sat
    witness = read_witness(asked.model(), first.inputs)
    assert 1.5 <= witness.metadata["x"] < 2  # type: ignore[operator]  # a number
    assert decide(one, witness.metadata, Context()).verdict == "refuse"
    assert decide(other, witness.metadata, Context()).verdict == "admit"


def test_each_program_rounds_the_value_of_the_data_set_not_that_of_another_program() -> None:
    one = program("x : number 0..1 places 2", "depth d { when x >= 0.51 reach all }")
    other = program("x : integer 0..1", "depth d { when x == 1 reach all }")
    asked, first, second = both(one, other)
    assert asked.check(first.nothing, negation(second.nothing)) == z3.sat
    witness = read_witness(asked.model(), first.inputs)
    assert decide(one, witness.metadata, Context()).verdict == "refuse"
    assert decide(other, witness.metadata, Context()).verdict == "admit"


def test_what_is_rounded_into_a_range_fits_it() -> None:
    one, other = program("x : number 0..1 places 2"), program("x : integer 0..1")
    inputs = Inputs.of(one, other)
    first, second = Encoding(one, inputs), Encoding(other, inputs)
    asked = solver(10)
    asked.add(*inputs.domain, second.valid, negation(first.valid))
    assert asked.check() == z3.sat
    assert decide(other, read_witness(asked.model(), inputs).metadata, Context()).verdict == "admit"


@pytest.mark.parametrize(
    ("x", "fine", "coarse"), [(0.004, 0, 0), (0.505, 50, 1), (1.004, 100, 1), (1.006, 101, 1), (1.5, 150, 2)]
)
def test_a_pinned_number_is_rounded_by_each_program(x: float, fine: int, coarse: int) -> None:
    one, other = program("x : number 0..2 places 2"), program("x : integer 0..2")
    inputs = Inputs.of(one, other)
    model = model_of(inputs, {"x": x}, Context())
    for side, value in ((one, fine), (other, coarse)):
        number = Encoding(side, inputs).view.number(AttributeValue("x"))
        assert model.eval(number).as_long() == value


@pytest.mark.parametrize("x", [0.4, 0.5, 0.6, 1.5, 2.5, 3.5])
def test_a_coarser_program_rounds_half_to_even(x: float) -> None:
    one = program("x : number 0..10 places 1", "depth d { when x == 2 reach all }")
    others = [program("x : integer 0..10", f"depth d {{ when x == {n} reach all }}") for n in range(5)]
    for other in others:
        check_shared([one, other], {"x": x}, Context())


def test_an_attribute_that_one_program_lacks_is_absent_wherever_both_hold() -> None:
    one, other = program("x : bool optional  y : bool"), program("y : bool")
    asked, first, _ = both(one, other)
    assert asked.check(first.view.truth(one.grants[0].when)) == z3.sat
    assert "x" not in read_witness(asked.model(), first.inputs).metadata


def test_no_example_fits_programs_that_require_one_attribute_of_two_types() -> None:
    one, other = program("x : bool"), program("x : integer 0..1")
    assert conflicts(one, other) == ("x",)
    asked, first, second = both(one, other)
    assert asked.check() == z3.unsat
    alone = solver(10)
    alone.add(*first.inputs.domain, first.valid)
    assert alone.check(negation(second.valid)) == z3.sat


def test_an_optional_attribute_of_two_types_may_be_absent() -> None:
    asked, first, _ = both(program("x : bool optional"), program("x : integer 0..1 optional"))
    assert asked.check() == z3.sat
    assert dict(read_witness(asked.model(), first.inputs).metadata) == {}


def test_strings_of_different_greatest_length_keep_both_bounds() -> None:
    one, other = program("x : string"), program("x : string")
    (spec,) = other.attributes
    other = dataclasses.replace(other, attributes=(dataclasses.replace(spec, hi=3),))
    inputs = Inputs.of(one, other)
    short, long = Encoding(other, inputs), Encoding(one, inputs)
    asked = solver(10)
    asked.add(*inputs.domain, long.valid, negation(short.valid))
    assert asked.check() == z3.sat
    assert len(str(read_witness(asked.model(), inputs).metadata["x"])) > 3


def test_a_pinned_day_is_the_day_of_the_context() -> None:
    one = program("x : date", "depth d { when today >= x reach all }")
    inputs = Inputs.of(one)
    encoding = Encoding(one, inputs)
    for day, learned in ((date(2026, 1, 1), True), (date(2025, 12, 31), False)):
        model = model_of(inputs, {"x": "2026-01-01"}, Context(at=day))
        assert z3.is_true(model.eval(conjunction((encoding.learned,)))) is learned
