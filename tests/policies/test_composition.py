"""No combination of the library's modules widens what one of them allows: on examples, by the evaluator."""

from __future__ import annotations

import datetime
from dataclasses import replace
from decimal import Decimal
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from gradwarden.policy.context import Context
from gradwarden.policy.program import AttributeSpec, Program
from tests.policies.composing import MODULES, Given, compose, merge, shipped, vouched, widened

HOSPITAL = ("rights_pretraining", "medical_records", "dual_use_containment")
EPOCH = datetime.date(1970, 1, 1)


def values(spec: AttributeSpec) -> SearchStrategy[object]:
    match spec.type:
        case "bool":
            return st.booleans()
        case "enum":
            return st.sampled_from(spec.values)
        case "set":
            return st.lists(st.sampled_from(spec.values), max_size=4, unique=True)
        case "number":
            steps = st.sampled_from((spec.lo, spec.hi)) | st.integers(spec.lo, spec.hi)
            return steps.map(lambda n: Decimal(n).scaleb(-spec.places))
        case "date":
            near = st.integers(-400, 800).map(lambda d: datetime.date(2026, 6, 1) + datetime.timedelta(d))
            return near.filter(lambda d: spec.lo <= (d - EPOCH).days <= spec.hi)
        case "string":
            return st.sampled_from(("", "a", "p-17"))


@st.composite
def inputs(draw: DrawFn, modules: tuple[str, ...], program: Program) -> Given:
    """Examples that the tests of the modules vouch for, put together, with up to three values replaced."""
    example, context = merge(
        [draw(st.sampled_from(vouched(module))) for module in draw(st.permutations(modules))]
    )
    changed = dict(example)
    for spec in draw(st.lists(st.sampled_from(program.attributes), max_size=3)):
        changed[spec.name] = draw(values(spec))
    return changed, draw(contexts(program, context))


@st.composite
def contexts(draw: DrawFn, program: Program, context: Context) -> Context:
    signals = dict(context.signals)
    for spec in program.signals:
        if draw(st.booleans()):
            signals[spec.name] = draw(st.integers(spec.lo, spec.hi)) / 10**spec.places
    return replace(
        context,
        exposures=draw(st.sampled_from((context.exposures, 0, 1, 2))),
        epoch=draw(st.sampled_from((context.epoch, 0, 1))),
        step=draw(st.sampled_from((context.step, 0, 100_000))),
        signals=signals,
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_hospital_widens_none_of_the_three_policies_it_is_made_of(data):
    hospital = shipped("hospital_pretraining")
    example = data.draw(inputs(("rights", "medical", "dual_use"), hospital))
    assert hospital.decide(*example).verdict != "invalid"
    for name in HOSPITAL:
        assert widened(hospital, shipped(name), example) == {}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_pair_of_modules_widens_either(data):
    pair = data.draw(st.sampled_from(list(combinations(MODULES, 2))))
    both = compose(pair)
    example = data.draw(inputs(pair, both))
    assert both.decide(*example).verdict != "invalid"
    for module in pair:
        assert widened(both, compose((module,)), example) == {}


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_all_modules_in_one_policy_widen_none(data):
    everything = compose(tuple(MODULES))
    example = data.draw(inputs(tuple(MODULES), everything))
    for module in MODULES:
        assert widened(everything, compose((module,)), example) == {}


def admits_something(pair: tuple[str, str]) -> bool:
    both = compose(pair)
    cases = (merge(given) for a in vouched(pair[0]) for b in vouched(pair[1]) for given in ((a, b), (b, a)))
    return any(any(both.decide(*case).micro) for case in cases)


@pytest.mark.parametrize("pair", list(pairwise([*MODULES, MODULES[0]])), ids="+".join)
def test_a_module_and_the_next_still_admit_what_both_admit(pair):
    assert admits_something(pair)


@pytest.mark.soak
@pytest.mark.parametrize("pair", list(combinations(MODULES, 2)), ids="+".join)
def test_any_two_modules_still_admit_what_both_admit(pair):
    assert admits_something(pair)


def test_modules_joined_by_or_do_widen():
    # What the other tests would show if a policy granted what any one of its modules admits.
    example, context = vouched("medical")[0]
    unassessed = merge((vouched("rights")[0], ({**example, "phi_status": "unassessed"}, context)))
    medical = compose(("medical",))
    assert set(widened(compose(("rights", "medical"), "or"), medical, unassessed)) == set(medical.band_names)
    assert widened(compose(("rights", "medical")), medical, unassessed) == {}
