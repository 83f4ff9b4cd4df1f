"""An upper bound of epsilon by Rényi divergence, from closed forms: the verifier's own, with numpy alone.

One step is the Poisson-subsampled Gaussian mechanism: every unit with probability q, noise of z times the
clip. Its divergence at an integer order a is log(A) / (a - 1), where A is the sum over k = 0..a of
C(a, k) (1 - q)^(a - k) q^k exp((k² - k) / (2z²)) (Mironov, Talwar and Zhang 2019, arXiv:1908.10530, section
3.3). The binomial terms alone add up to 1, so A - 1 is the same sum over exp(…) - 1: no digits are lost where
A is close to 1. Divergences of steps add up, and give epsilon by Canonne, Kamath and Steinke 2020,
arXiv:2004.00010, proposition 12.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 384, 512, 1024)


def renyi_epsilon(noise_multiplier: float, sampling_rate: float, steps: int, delta: float) -> float:
    """Return an upper bound of epsilon. Noise and sampling rate lie above 0, the rate at most at 1."""
    found = [
        steps * divergence + math.log1p(-1.0 / order) - math.log(delta * order) / (order - 1)
        for order, divergence in zip(ORDERS, divergences(noise_multiplier, sampling_rate), strict=True)
    ]
    return float(max(0.0, min(found)))


@lru_cache(maxsize=64)
def divergences(noise_multiplier: float, sampling_rate: float) -> tuple[float, ...]:
    """Return the Rényi divergence of one step at each of ORDERS."""
    if sampling_rate == 1.0:
        return tuple(order / (2.0 * noise_multiplier**2) for order in ORDERS)
    return tuple(_divergence(noise_multiplier, sampling_rate, order) for order in ORDERS)


def _divergence(noise_multiplier: float, sampling_rate: float, order: int) -> float:
    chosen = np.arange(2, order + 1, dtype=np.float64)
    whole = math.lgamma(order + 1)
    ways = np.array([whole - math.lgamma(k + 1) - math.lgamma(order - k + 1) for k in range(2, order + 1)])
    exponents = chosen * (chosen - 1) / (2.0 * noise_multiplier**2)
    terms = ways + (order - chosen) * math.log1p(-sampling_rate) + chosen * math.log(sampling_rate)
    terms += exponents + np.log(-np.expm1(-exponents))
    return float(np.logaddexp(0.0, np.logaddexp.reduce(terms))) / (order - 1)
