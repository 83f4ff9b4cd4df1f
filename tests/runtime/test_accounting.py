"""The cost of private steps: checked against Opacus, against closed form, and at the edge of the budget."""

from __future__ import annotations

import math
import subprocess
import sys
from importlib import import_module

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import RDPAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from gradwarden.policy.program import SCALE, Band, Clause, Constant, Limit, PrivacyTerms, Program
from gradwarden.runtime.errors import PrivacyError
from gradwarden.runtime.privacy import accounting
from gradwarden.runtime.privacy.accounting import (
    JointPlan,
    PrivacyRule,
    epsilon,
    epsilon_text,
    noise_multiplier_for,
    privacy_rules,
    steps_within,
)

USUAL = [(1.0, 0.01, 1000, 1e-5), (1.1, 0.02, 500, 1e-6), (0.7, 0.004, 2000, 1e-6), (2.0, 0.1, 300, 1e-5)]


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """Return the exact epsilon of one Gaussian release (Balle and Wang 2018, arXiv:1805.06530, theorem 8)."""

    def excess(value: float) -> float:
        half, shift = 0.5 / noise_multiplier, value * noise_multiplier
        return norm.cdf(half - shift) - math.exp(value) * norm.cdf(-half - shift) - delta

    return brentq(excess, 0.0, 200.0, xtol=1e-12)


@pytest.mark.parametrize(("z", "rate", "steps", "delta"), USUAL)
def test_epsilon_is_at_most_what_renyi_accounting_in_opacus_says(z, rate, steps, delta):
    other = RDPAccountant()
    other.history = [(z, rate, steps)]
    bound = other.get_epsilon(delta)
    assert 0.7 * bound < epsilon(z, rate, steps, delta) <= bound


@pytest.mark.parametrize("z", [0.8, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("steps", [1, 7, 100])
def test_without_subsampling_epsilon_is_the_closed_form_of_the_gaussian(z, steps):
    # Gaussians compose to a Gaussian: `steps` releases at z are one release at z / sqrt(steps).
    exact = gaussian_epsilon(z / math.sqrt(steps), 1e-6)
    found = epsilon(z, 1.0, steps, 1e-6)
    assert exact <= found + 1e-9
    assert found == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize(
    ("z", "rate", "steps", "delta"),
    [
        *USUAL[:2],
        *(pytest.param(*case, marks=pytest.mark.soak) for case in [*USUAL[2:], (5.0, 0.01, 10**4, 1e-6)]),
    ],
)
def test_epsilon_is_within_one_percent_of_a_ten_times_finer_grid(z, rate, steps, delta):
    distributions = import_module("dp_accounting.pld").privacy_loss_distribution
    fine = distributions.from_gaussian_mechanism(
        z, sampling_prob=rate, value_discretization_interval=accounting._interval(z, rate) / 10
    )
    finer = fine.self_compose(steps).get_epsilon_for_delta(delta)
    assert finer - 1e-9 <= epsilon(z, rate, steps, delta) <= 1.01 * finer


@pytest.mark.parametrize(
    ("budget", "delta", "rate", "z"),
    [(3.0, 1e-6, 0.01, 1.0), (1.0, 1e-5, 0.1, 4.0), (0.5, 1e-6, 1.0, 20.0), (300.0, 1e-6, 0.5, 0.5)],
)
def test_the_last_step_within_the_budget_is_the_last(budget, delta, rate, z):
    steps = steps_within(budget, delta, rate, z)
    assert steps > 0
    assert epsilon(z, rate, steps, delta) <= budget < epsilon(z, rate, steps + 1, delta)


@pytest.mark.parametrize(("budget", "rate", "steps"), [(3.0, 0.01, 1000), (0.5, 1.0, 10), (8.0, 0.05, 1)])
def test_the_calibrated_noise_is_the_least_on_its_grid(budget, rate, steps):
    z = noise_multiplier_for(budget, 1e-6, rate, steps)
    assert epsilon(z, rate, steps, 1e-6) <= budget < epsilon(z - 0.001, rate, steps, 1e-6)


@settings(max_examples=8)
@given(
    z=st.sampled_from([0.7, 1.0, 3.0]),
    rate=st.sampled_from([0.001, 0.05, 1.0]),
    steps=st.sampled_from([1, 2, 10, 100, 3000]),
    more=st.sampled_from([1, 7, 2000]),
)
def test_more_steps_never_cost_less(z, rate, steps, more):
    assert epsilon(z, rate, steps, 1e-6) <= epsilon(z, rate, steps + more, 1e-6)


def test_nothing_spent_costs_nothing_and_no_noise_costs_everything():
    assert epsilon(1.0, 0.01, 0, 1e-6) == 0.0
    assert epsilon(1.0, 0.0, 100, 1e-6) == 0.0
    assert epsilon(0.0, 0.01, 1, 1e-6) == math.inf
    assert steps_within(3.0, 1e-6, 0.01, 0.0) == 0


def test_extreme_parameters_give_a_bound_and_do_not_hang():
    assert epsilon(0.001, 0.5, 100, 1e-5) > 1e6
    assert 0.0 < epsilon(1000.0, 1e-6, 10**8, 1e-6) < 1.0
    assert epsilon(1.0, 0.01, 1000, 1e-15) > epsilon(1.0, 0.01, 1000, 1e-9)
    assert steps_within(3.0, 1e-6, 0.0, 1.0) == accounting.MAX_STEPS


@pytest.mark.parametrize(
    "arguments",
    [
        (-1.0, 0.1, 1, 1e-6),
        (math.nan, 0.1, 1, 1e-6),
        (1.0, 1.5, 1, 1e-6),
        (1.0, 0.1, -1, 1e-6),
        (1.0, 0.1, 1, 0),
    ],
)
def test_parameters_without_meaning_are_refused(arguments):
    with pytest.raises(PrivacyError):
        epsilon(*arguments)


def test_a_budget_that_no_noise_can_keep_is_refused_with_help():
    with pytest.raises(PrivacyError) as caught:
        noise_multiplier_for(0.0001, 1e-12, 1.0, 10**8)
    assert "plan fewer steps" in str(caught.value)


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    accounting._library.cache_clear()
    monkeypatch.setitem(sys.modules, "dp_accounting.pld", None)
    with pytest.raises(PrivacyError, match=r"gradwarden\[privacy\]"):
        accounting._library()


def test_accounting_never_imports_torch():
    code = (
        "import sys; from gradwarden.runtime.privacy.accounting import epsilon; epsilon(1, 1, 1, 1e-5);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


A = PrivacyRule("a", epsilon=3.0, delta=1e-6, clip=1.0, bands=("shallow",), unit="patient")
B = PrivacyRule("b", epsilon=1.0, delta=1e-6, clip=0.5, bands=("shallow", "middle"), unit="author")


def test_every_rule_of_a_plan_lasts_as_long_as_planned():
    plan = JointPlan.for_steps([A, B], 0.01, 20)
    assert all(part.steps >= 20 for part in plan.rules)
    assert [part.noise_multiplier for part in plan.rules] == [plan.sigma / A.clip, plan.sigma / B.clip]
    tightest = min(plan.rules, key=lambda part: part.steps)
    assert epsilon(tightest.noise_multiplier - 0.002, 0.01, 20, 1e-6) > tightest.rule.epsilon


def test_eight_bands_cost_what_one_costs():
    # The trap: eight bands, each clipped and noised as if alone, cost epsilon 41.4 in this setting.
    bands = tuple(f"band{n}" for n in range(8))
    plan = JointPlan.for_noise([PrivacyRule("p", 10.0, 1e-5, 2.0, bands)], 0.01, 1.0)
    assert plan.sigma == 2.0
    assert epsilon(plan.rules[0].noise_multiplier, 0.01, 1000, 1e-5) == pytest.approx(1.83, abs=0.01)
    assert epsilon(1 / math.sqrt(8), 0.01, 1000, 1e-5) == pytest.approx(41.4, rel=0.02)


def test_a_plan_by_noise_gives_no_rule_less():
    plan = JointPlan.for_noise([A, B], {"a": 0.01, "b": 0.02}, 1.5)
    assert min(part.noise_multiplier for part in plan.rules) == 1.5
    assert [part.sampling_rate for part in plan.rules] == [0.01, 0.02]


def test_a_spent_rule_is_named_and_its_bands_need_no_more_noise():
    plan = JointPlan.for_sigma([A, B], 0.05, 0.8)
    last = {part.rule.name: part.steps for part in plan.rules}
    assert plan.spent({"a": last["a"] - 1, "b": last["b"] - 1}) == frozenset()
    assert plan.spent({"a": last["a"] - 1, "b": last["b"]}) == {"b"}
    assert plan.noised_bands() == ("shallow", "middle")
    assert plan.noised_bands({"b"}) == ("shallow",)
    assert plan.noised_bands({"a", "b"}) == ()


@settings(max_examples=20)
@given(st.integers(0, 600))
def test_the_recorded_cost_is_never_less_than_the_cost_nor_more_than_the_budget(steps):
    plan = JointPlan.for_sigma([B], 0.02, 1.0)
    steps = min(steps, plan.rules[0].steps)
    recorded = plan.epsilon("b", steps)
    assert epsilon(2.0, 0.02, steps, 1e-6) <= recorded <= B.epsilon


def test_the_recorded_cost_is_exact_when_the_budget_is_spent():
    plan = JointPlan.for_sigma([B], 0.02, 1.0)
    last = plan.rules[0].steps
    assert plan.epsilon("b", last) == epsilon(2.0, 0.02, last, 1e-6)


def test_a_unit_under_two_rules_gets_the_lesser_bound():
    plan = JointPlan.for_sigma([A, B], 0.01, 1.0)
    assert plan.clip({"a"}) == 1.0
    assert plan.clip({"a", "b"}) == 0.5


def test_rules_that_count_different_units_cannot_share_an_example():
    plan = JointPlan.for_sigma([A, B], 0.01, 1.0)
    assert plan.unit({"a"}) == "patient"
    with pytest.raises(PrivacyError, match="`a` by `patient`, `b` by `author`"):
        plan.unit({"a", "b"})


def test_a_rule_without_a_sampling_rate_is_named():
    with pytest.raises(PrivacyError, match="`b`"):
        JointPlan.for_noise([A, B], {"a": 0.01}, 1.0)


def test_advisory_privacy_rules_are_not_planned_for():
    terms = PrivacyTerms(epsilon="3", delta="0.000001", clip="1.5", unit="", bands=("top",))
    clause = Clause(Constant(True), "confined", (SCALE,))
    program = Program(
        name="p",
        version=1,
        language=1,
        max_weight=SCALE,
        attributes=(),
        signals=(),
        bands=(Band("top", ()),),
        grants=(),
        limits=(
            Limit("draft", "privacy", (clause,), level="advisory", privacy=terms),
            Limit("patients", "privacy", (clause,), privacy=terms),
        ),
        modulations=(),
        waivers=(),
        assertions=(),
    )
    assert privacy_rules(program) == (PrivacyRule("patients", 3.0, 1e-6, 1.5, ("top",), ""),)


def test_the_declaration_is_strings_only():
    declared = JointPlan.for_sigma([A], 0.01, 1.25).declaration()
    assert declared == [
        {
            "rule": "a",
            "sampling_rate": "0.01",
            "noise_multiplier": "1.25",
            "clip": "1.0",
            "unit": "patient",
            "epsilon": "3.0",
            "delta": "1e-06",
        }
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (3.0, "3"), (1.82821, "1.8283"), (100.0, "100"), (math.inf, "inf")]
)
def test_epsilon_is_written_rounded_up(value, text):
    assert epsilon_text(value) == text
