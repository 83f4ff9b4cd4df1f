"""The verifier's own bounds of epsilon: against closed form, dp-accounting and both accountants of Opacus."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import product

import dp_accounting
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant
from opacus.accountants.analysis.rdp import compute_rdp
from scipy.optimize import brentq
from scipy.stats import norm

from gradwarden.runtime.privacy.accounting import epsilon
from gradwarden.runtime.verification import epsilon_bounds as module
from gradwarden.runtime.verification.epsilon_bounds import EpsilonBounds, epsilon_bounds
from gradwarden.runtime.verification.renyi_bound import ORDERS, divergences, renyi_epsilon

FEW = [
    (1.0, 0.01, 1000, 1e-5),
    (0.7, 0.004, 2000, 1e-6),
    (2.0, 0.1, 300, 1e-5),
    (5.0, 0.05, 20, 1e-7),
]
GRID = list(product([0.7, 1.0, 4.0], [0.001, 0.01, 0.1], [1, 100, 10_000], [1e-5, 1e-7]))
"""Noise multipliers, sampling rates, steps, deltas."""

PRV_ERROR = 0.01
"""By so much Opacus raises its estimates, to have upper bounds."""

TOLERANCE, LEAST = 0.01, 0.001
"""Stated in docs/privacy.md: by what part, and by how much, the accountants may differ."""


def prv_of_opacus(z: float, rate: float, steps: int, delta: float, error: float = PRV_ERROR) -> float:
    accountant = PRVAccountant()
    accountant.history = [(z, rate, steps)]
    return float(accountant.get_epsilon(delta, eps_error=error))


def check_against_both(z: float, rate: float, steps: int, delta: float) -> None:
    recorded, bounds = epsilon(z, rate, steps, delta), epsilon_bounds(z, rate, steps, delta)
    estimate = prv_of_opacus(z, rate, steps, delta) - PRV_ERROR
    assert recorded == pytest.approx(estimate, rel=TOLERANCE, abs=LEAST)
    assert bounds.low <= recorded <= max(bounds.high * (1 + TOLERANCE), bounds.high + LEAST)
    assert bounds.low <= max(estimate * (1 + TOLERANCE), estimate + LEAST)
    assert min(estimate * (1 - TOLERANCE), estimate - LEAST) <= bounds.high


@pytest.mark.parametrize(("z", "rate", "steps", "delta"), FEW)
def test_three_accountants_agree(z, rate, steps, delta):
    check_against_both(z, rate, steps, delta)


@pytest.mark.soak
@pytest.mark.parametrize(("z", "rate", "steps", "delta"), GRID)
def test_three_accountants_agree_on_a_grid(z, rate, steps, delta):
    check_against_both(z, rate, steps, delta)


@pytest.mark.parametrize(("z", "rate", "steps", "delta"), FEW)
def test_the_bounds_are_close(z, rate, steps, delta):
    bounds = epsilon_bounds(z, rate, steps, delta)
    assert bounds.low < bounds.high < 1.01 * bounds.low


@pytest.mark.parametrize(
    ("z", "steps", "delta", "points"),
    [(1.0, 1, 1e-5, 2**20), (5.0, 100, 1e-6, 2**20), (0.6, 3, 1e-7, 2**6)],
)
def test_the_closed_form_of_the_gaussian_lies_between_the_bounds(z, steps, delta, points, monkeypatch):
    monkeypatch.setattr(module, "MOST_POINTS", points)

    def excess(value: float) -> float:
        half, shift = 0.5 * math.sqrt(steps) / z, value * z / math.sqrt(steps)
        return norm.cdf(half - shift) - math.exp(value + norm.logcdf(-half - shift)) - delta

    exact = brentq(excess, 0.0, 200.0, xtol=1e-12)
    bounds = epsilon_bounds.__wrapped__(z, 1.0, steps, delta)
    assert bounds.low <= exact <= bounds.high


@pytest.mark.parametrize("z", [0.3, 1.0, 7.0])
@pytest.mark.parametrize("rate", [1e-6, 0.01, 0.5, 1.0])
def test_renyi_divergences_are_those_of_two_libraries(z, rate):
    accountant = dp_accounting.rdp.RdpAccountant(ORDERS)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(z)))
    own = divergences(z, rate)
    # Both libraries lose the digits of divergences near 0: they form 1 plus the divergence.
    assert own == pytest.approx(accountant.rdp, rel=1e-9, abs=1e-13)
    opacus = compute_rdp(q=rate, noise_multiplier=z, steps=1, orders=list(ORDERS))
    assert own == pytest.approx(opacus, rel=1e-9, abs=1e-13)
    converted, _ = dp_accounting.rdp.compute_epsilon(ORDERS, [100 * value for value in own], 1e-6)
    assert renyi_epsilon(z, rate, 100, 1e-6) == pytest.approx(converted, rel=1e-9, abs=2e-3)
    assert renyi_epsilon(z, rate, 100, 1e-6) >= converted - 1e-9


@settings(max_examples=10, deadline=None)
@given(
    z=st.floats(0.06, 30.0),
    rate=st.floats(1e-6, 1.0),
    steps=st.integers(1, 100),
    delta=st.sampled_from([1e-3, 1e-6, 1e-9]),
)
def test_the_bounds_keep_their_order(z, rate, steps, delta):
    bounds = epsilon_bounds(z, rate, steps, delta)
    assert 0.0 <= bounds.low <= bounds.high <= renyi_epsilon(z, rate, steps, delta) + 1e-9
    assert epsilon_bounds(2 * z, rate, steps, delta).low <= bounds.high
    assert bounds.low <= epsilon_bounds(z, rate, 2 * steps, delta).high


@pytest.mark.parametrize(
    ("z", "rate", "steps", "delta"),
    [
        (1e-300, 0.5, 3, 1e-6), (0.01, 0.5, 3, 1e-6), (0.05, 1e-4, 100, 1e-5), (1e300, 0.5, 3, 1e-6),
        (1.0, 1e-300, 10**6, 1e-6), (1.0, 0.01, 10**9, 1e-6), (1.0, 0.01, 10, 1e-300), (1.0, 1.0, 1, 0.999),
        (1e5, 1e-8, 10**6, 1e-6),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_extreme_terms_are_bounded_without_a_warning(z, rate, steps, delta):
    bounds = epsilon_bounds(z, rate, steps, delta)
    assert 0.0 <= bounds.low <= bounds.high


def test_nothing_done_costs_nothing_and_no_noise_costs_everything():
    assert epsilon_bounds(1.0, 0.1, 0, 1e-6) == epsilon_bounds(1.0, 0.0, 9, 1e-6) == EpsilonBounds(0.0, 0.0)
    assert epsilon_bounds(0.0, 0.1, 1, 1e-6) == EpsilonBounds(math.inf, math.inf)


def test_the_verifier_needs_neither_torch_nor_the_accounting_library():
    code = (
        "import sys; from gradwarden.runtime.verification.epsilon_bounds import epsilon_bounds;"
        "epsilon_bounds(1.0, 0.01, 10, 1e-5);"
        "sys.exit(bool({'torch', 'scipy', 'dp_accounting'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
