"""Where a rising or falling function crosses a bound: the place that a search one by one finds, and soon."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.runtime.privacy.crossing import first_above, first_within

VALUES = st.lists(st.sampled_from([0.0, 0.001, 0.5, 1.0, 2.0, 2.5, 80.0, math.inf]), min_size=1, max_size=40)


@given(VALUES, st.sampled_from([0.0, 0.4, 1.0, 2.0, 100.0, math.inf]))
def test_it_is_the_place_that_a_search_one_by_one_finds(values, bound):
    rising, falling = sorted(values), sorted(values, reverse=True)
    last = len(values) - 1
    above = next((n for n, value in enumerate(rising) if value > bound), last + 1)
    within = next((n for n, value in enumerate(falling) if value <= bound), last + 1)
    assert first_above(rising.__getitem__, bound, 0, last) == above
    assert first_within(falling.__getitem__, bound, 0, last) == within


@pytest.mark.parametrize("power", [0.4, 0.5, 1.0, 2.0])
def test_a_few_values_are_enough(power):
    asked = []

    def value(n):
        asked.append(n)
        return n**power

    assert first_above(value, 54_321.5**power, 1, 10**6) == 54_322
    assert len(asked) <= 7
