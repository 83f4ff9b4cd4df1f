"""No combination of the library's modules widens what one of them allows: for every example, by the solver.

The solver is asked for an example and a context for which the combination gives some band a greater weight
than one of its parts does. The parts decide about the same record, cut to what they declare.
"""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest

from gradwarden.policy.program import Program
from tests.policies.composing import MODULES, compose, shipped, within

HOSPITAL = ("rights_pretraining", "medical_records", "dual_use_containment")


def widens(whole: Program, *parts: Program) -> list[bool]:
    """Return for each part whether some example is given more by `whole`."""
    from gradwarden.policy.proving.encoding import Encoding
    from gradwarden.policy.proving.inputs import Inputs
    from gradwarden.policy.proving.smt import z3

    parts = tuple(within(part, whole) for part in parts)
    inputs = Inputs.of(whole, *parts)
    encoded = Encoding(whole, inputs)
    answers = []
    for part in parts:
        allowed = dict(zip(part.band_names, (own := Encoding(part, inputs)).weights, strict=True))
        solver = z3.Solver()
        solver.add(*inputs.domain)
        solver.add(
            z3.Or(
                [
                    weight > allowed[band] if band in allowed else z3.And(weight > 0, own.nothing)
                    for band, weight in zip(whole.band_names, encoded.weights, strict=True)
                ]
            )
        )
        answer = solver.check()
        assert answer != z3.unknown, f"the solver gave up: {solver.reason_unknown()}"
        answers.append(answer == z3.sat)
    return answers


def test_the_hospital_widens_none_of_the_three_policies_it_is_made_of():
    assert widens(shipped("hospital_pretraining"), *map(shipped, HOSPITAL)) == [False, False, False]


@pytest.mark.parametrize("pair", list(pairwise([*MODULES, MODULES[0]])), ids="+".join)
def test_a_module_and_the_next_widen_neither(pair):
    assert widens(compose(pair), *(compose((module,)) for module in pair)) == [False, False]


@pytest.mark.soak
@pytest.mark.parametrize("pair", list(combinations(MODULES, 2)), ids="+".join)
def test_no_pair_of_modules_widens_either(pair):
    assert widens(compose(pair), *(compose((module,)) for module in pair)) == [False, False]


@pytest.mark.soak
def test_all_modules_in_one_policy_widen_none():
    everything = compose(tuple(MODULES))
    for module in MODULES:
        assert widens(everything, compose((module,))) == [False], module


def test_modules_joined_by_or_do_widen():
    # The question can be answered with yes: nothing above holds for want of examples.
    either = compose(("rights", "medical"), "or")
    assert widens(either, compose(("rights",)), compose(("medical",))) == [False, True]


def test_the_hospital_learns_something_in_every_band():
    from gradwarden.policy.proving.encoding import Encoding
    from gradwarden.policy.proving.inputs import Inputs
    from gradwarden.policy.proving.smt import z3

    hospital = shipped("hospital_pretraining")
    inputs = Inputs.of(hospital)
    encoded = Encoding(hospital, inputs)
    solver = z3.Solver()
    solver.add(*inputs.domain)
    for band in hospital.band_names:
        assert solver.check(encoded.above(band, 0)) == z3.sat, band
