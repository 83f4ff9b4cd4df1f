"""What a private run costs, worked out by the verifier itself: epsilon bounded from both sides.

Training accounts with `dp-accounting`. That its numbers are right is checked here by another method and other
code: the privacy loss of one step is discretised and composed numerically (Gopi, Lee and Wutschitz 2021,
arXiv:2106.02848). With Y the loss of one step, delta(epsilon) = E[max(0, 1 - exp(epsilon - sum of Y))].

Losses are rounded to a grid of width h, then shifted so that their mean is kept. By Hoeffding's inequality
the sum of T rounding errors is within s = h sqrt(T/2 log(2/p)) but for a probability of p, so that

    delta'(epsilon + s) - p  <=  delta(epsilon)  <=  delta'(epsilon - s) + p

where delta' is that of the rounded losses, composed by one Fourier transform. What else is lost is added to
p: the mass cut off from the tails of one step, that of sums outside of the transform's window (bounded by the
moments of the loss, Chernoff), and rounding. Both neighbours are looked at, a unit removed and a unit added.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from gradwarden.runtime.verification.renyi_bound import renyi_epsilon

FloatArray = npt.NDArray[np.float64]

PRECISION = 0.002
"""The rounding errors of losses may add up to this part of epsilon, where `MOST_POINTS` allow it."""

MOST_POINTS = 2**20

LEAST_NOISE = 0.05
"""Noise multipliers below it promise nothing, and need too fine a grid for losses."""

NO_NOISE, MOST_NOISE, LEAST_RATE = 1e-3, 1e6, 1e-9
"""Below NO_NOISE epsilon is not bounded; beyond the others it is at most what it is there."""

_ROUNDING = 1e-14
"""How much probability one step may lose to float64."""

_SHARE = 1e-3
"""The part of delta that all errors together may take, but for rounding; each kind gets a quarter."""


@dataclass(frozen=True, slots=True)
class EpsilonBounds:
    """Epsilon at a given delta is proved to lie from `low` to `high`."""

    low: float
    high: float


@lru_cache(maxsize=256)
def epsilon_bounds(noise_multiplier: float, sampling_rate: float, steps: int, delta: float) -> EpsilonBounds:
    """Return bounds of the epsilon of `steps` steps. Without noise it is infinite.

    Where delta is too small for float64 (below 1e-12 times the steps) or the rate below LEAST_RATE, only
    Rényi divergence bounds it, from above. Noise below LEAST_NOISE costs at least what LEAST_NOISE does.
    """
    if steps == 0 or sampling_rate == 0.0:
        return EpsilonBounds(0.0, 0.0)
    if noise_multiplier == 0.0:
        return EpsilonBounds(math.inf, math.inf)
    if noise_multiplier < LEAST_NOISE:
        least = epsilon_bounds(LEAST_NOISE, sampling_rate, steps, delta).low
        known = noise_multiplier >= NO_NOISE
        high = renyi_epsilon(noise_multiplier, sampling_rate, steps, delta) if known else math.inf
        return EpsilonBounds(least, max(least, high))
    noise, rate = min(noise_multiplier, MOST_NOISE), max(sampling_rate, LEAST_RATE)
    renyi = renyi_epsilon(noise, rate, steps, delta)
    if (noise, rate) != (noise_multiplier, sampling_rate) or steps * _ROUNDING > delta / 100:
        return EpsilonBounds(0.0, renyi)
    found = [_Composed(noise, rate, steps, delta, renyi, added).bounds() for added in (False, True)]
    low, high = max(bounds.low for bounds in found), max(bounds.high for bounds in found)
    return EpsilonBounds(low, max(low, min(high, renyi)))


class _Composed:
    """The sum of the privacy losses of some steps, for one of the two neighbours. scale: epsilon, about."""

    def __init__(
        self, noise: float, rate: float, steps: int, delta: float, scale: float, added: bool
    ) -> None:
        self._noise, self._rate, self._steps, self._delta, self._added = noise, rate, steps, delta, added
        self._share = delta * _SHARE / 4
        # One step's outcome beyond so many standard deviations has less than its share of probability.
        reach = noise * math.sqrt(2.0 * math.log(2.0 * steps / self._share))
        self._outcomes = (-reach, reach + (0.0 if added else 1.0))
        grid, density = self._integral()
        losses = self._loss(grid)
        self._mean = float(density @ losses)
        bottom, top = self._window(losses, density)
        slack = math.sqrt(steps / 2 * math.log(2.0 / self._share))
        allowed = PRECISION * max(scale, 1e-6)
        # A window that is next to nothing, where all losses are alike, would have no grid in float64.
        top = max(top, bottom + allowed)
        wanted = (top - bottom) * slack / allowed
        self._points = min(MOST_POINTS, 2 ** max(12, math.ceil(math.log2(wanted))))
        self._width = (top - bottom) / self._points
        self._slack = slack * self._width
        self._bottom = bottom

    def _loss(self, outcome: FloatArray) -> FloatArray:
        """Return the privacy loss of outcomes: log of the ratio of densities."""
        without = math.log1p(-self._rate) if self._rate < 1.0 else -math.inf
        ratio = np.logaddexp(without, math.log(self._rate) + (2 * outcome - 1) / (2 * self._noise**2))
        return -ratio if self._added else ratio

    def _integral(self) -> tuple[FloatArray, FloatArray]:
        """Return outcomes and their weights, which add up to 1. The trapezoidal rule: the integrands are
        analytic up to pi times noise² beside the real line, and vanish at both ends.
        """
        step = min(self._noise, self._noise**2) / 5
        start, end = self._outcomes
        grid = np.linspace(start, end, 2 + int((end - start) / step))
        density = np.exp(-0.5 * (grid / self._noise) ** 2)
        if not self._added:
            moved = np.exp(-0.5 * ((grid - 1) / self._noise) ** 2)
            density = (1 - self._rate) * density + self._rate * moved
        return grid, density / density.sum()

    def _window(self, losses: FloatArray, density: FloatArray) -> tuple[float, float]:
        """Return between what the sum of losses lies, but for its share of probability, by its moments."""
        rare = math.log(2.0 / self._share)
        deviation = math.sqrt(float(density @ (losses - self._mean) ** 2) * self._steps)
        tilts = np.geomspace(0.01, 100.0, 60) / max(deviation, 1e-12)
        centred = losses - self._mean
        ends = []
        for sign in (-1.0, 1.0):
            exponents = np.outer(tilts, sign * centred)
            peaks = exponents.max(axis=1)
            moments = peaks + np.log(np.exp(exponents - peaks[:, None]) @ density)
            ends.append(sign * float(((self._steps * moments + rare) / tilts).min()))
        total = self._steps * self._mean
        return total + ends[0], total + ends[1]

    def _mass(self) -> tuple[int, FloatArray]:
        """Return the probabilities of one step's losses, rounded to the grid, and the first one's place."""
        losses = self._loss(np.array(self._outcomes))
        first, last = (round(float(loss) / self._width) for loss in (losses.min(), losses.max()))
        edges = (np.arange(first, last + 2) - 0.5) * self._width
        outcomes = np.clip(self._outcome(edges), *self._outcomes)
        if self._added:
            outcomes = outcomes[::-1]
        mass = self._probability(outcomes)
        mass /= mass.sum()
        return first, mass[::-1] if self._added else mass

    def _outcome(self, loss: FloatArray) -> FloatArray:
        """Return at which outcome the privacy loss is `loss`; minus infinity where it never is so low."""
        ratio = -loss if self._added else loss
        without = math.log1p(-self._rate) if self._rate < 1.0 else -math.inf
        above = ratio > without
        part = np.where(above, -np.expm1(np.where(above, without - ratio, -1.0)), 1.0)
        found = self._noise**2 * (ratio + np.log(part) - math.log(self._rate)) + 0.5
        return np.where(above, found, -np.inf)

    def _probability(self, outcomes: FloatArray) -> FloatArray:
        """Return the probability between each outcome and the next, precise at both ends."""
        found = _between(outcomes / self._noise)
        if self._added:
            return found
        return (1 - self._rate) * found + self._rate * _between((outcomes - 1) / self._noise)

    def bounds(self) -> EpsilonBounds:
        first, mass = self._mass()
        places = np.arange(first, first + len(mass))
        kept = self._mean - float(places @ mass) * self._width
        wrapped = np.bincount(places % self._points, weights=mass, minlength=self._points)
        composed = np.fft.irfft(np.fft.rfft(wrapped) ** self._steps, self._points)
        # The transform knows sums up to multiples of its window: take the one that the window holds.
        shift = self._steps * kept
        start = math.ceil((self._bottom - shift) / self._width)
        composed = np.maximum(np.roll(composed, -(start % self._points)), 0.0)
        sums = (start + np.arange(self._points)) * self._width + shift
        error = self._delta * _SHARE + self._steps * _ROUNDING
        lower = _last_above(sums, composed, self._delta + error)
        upper = _last_above(sums, composed, self._delta - error) + self._width
        return EpsilonBounds(max(0.0, lower - self._slack), max(0.0, upper + self._slack))


def _between(deviations: FloatArray) -> FloatArray:
    """Return the standard normal probability between each place and the next. Places ascend."""
    tails = 0.5 * np.fromiter(map(math.erfc, (np.abs(deviations) / math.sqrt(2)).tolist()), np.float64)
    signed = np.where(deviations > 0, -tails, tails)
    return np.diff(signed) + ((deviations[1:] > 0) & (deviations[:-1] <= 0))


def _last_above(sums: FloatArray, mass: FloatArray, delta: float) -> float:
    """Return the last of the sums at which delta is still at least `delta`, 0 where it never is."""

    def reaches(place: int) -> bool:
        beyond = sums[place:]
        return float(mass[place:] @ -np.expm1(beyond[0] - beyond)) >= delta

    low, high = int(np.searchsorted(sums, 0.0)), len(sums)
    if low == high or not reaches(low):
        return 0.0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if reaches(middle) else (low, middle)
    return float(sums[low])
