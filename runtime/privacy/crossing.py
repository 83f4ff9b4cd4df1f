"""The place where a function of whole numbers, which rises or falls throughout, crosses a bound.

Each value of the function may cost a second, so places are guessed from the values at both ends, by false
position with the correction of the Illinois method (Dowell and Jarratt 1971, BIT 11). Guesses are made on
logarithmic scales, where what epsilon makes of steps and noise is nearly a straight line.
"""

from __future__ import annotations

import math
from collections.abc import Callable


def first_above(value: Callable[[int], float], bound: float, low: int, high: int) -> int:
    """Return the first n in low..high at which `value`, which rises, is above `bound`; else high + 1."""
    return _first(lambda n: _log_ratio(value(n), bound) or -math.ulp(0.0), low, high)


def first_within(value: Callable[[int], float], bound: float, low: int, high: int) -> int:
    """Return the first n in low..high at which `value`, which falls, is at most `bound`; else high + 1."""
    return _first(lambda n: -_log_ratio(value(n), bound) or math.ulp(0.0), low, high)


def _first(gap: Callable[[int], float], low: int, high: int) -> int:
    """Return the first n at which `gap`, which rises, is above 0."""
    above = gap(high)
    if above <= 0.0:
        return high + 1
    below = gap(low)
    if below > 0.0:
        return low
    kept = 0
    while high - low > 1:
        place = _guess(low, high, below, above)
        found = gap(place)
        if found > 0.0:
            high, above = place, found
            # An end that stays twice counts for half: else the other one would creep towards it.
            below, kept = (below / 2.0 if kept > 0 else below), 1
        else:
            low, below = place, found
            above, kept = (above / 2.0 if kept < 0 else above), -1
    return high


def _guess(low: int, high: int, below: float, above: float) -> int:
    """Return a place between two others, where a straight line through their gaps is 0."""
    share = below / (below - above) if math.isfinite(below - above) else 0.5
    place = round(math.exp(math.log(max(low, 1)) * (1.0 - share) + math.log(high) * share))
    return min(max(place, low + 1), high - 1)


def _log_ratio(value: float, bound: float) -> float:
    """Return log(value / bound), 0 where they are equal."""
    if value == bound:
        return 0.0
    if value <= 0.0 or bound == math.inf:
        return -math.inf
    return math.inf if bound <= 0.0 or value == math.inf else math.log(value / bound)
