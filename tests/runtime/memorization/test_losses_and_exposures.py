"""Exposure counts and the loss ratio: what they remember, and what they ignore."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.runtime.memorization.exposures import ExposureCounter
from gradwarden.runtime.memorization.losses import LossReference


def rows(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


@given(st.lists(st.lists(st.integers(0, 300), max_size=8), max_size=20))
def test_exposures_are_the_number_of_times_a_row_was_committed(steps):
    counter = ExposureCounter()
    for step in steps:
        counter.commit(rows(*step))
    everything = [row for step in steps for row in step]
    assert counter.counts(np.arange(301)).tolist() == [everything.count(row) for row in range(301)]


def test_asking_counts_nothing():
    counter = ExposureCounter()
    assert counter.counts(rows(5, 5, 0)).tolist() == [0, 0, 0]
    assert counter.counts(rows(5)).tolist() == [0]


def test_exposures_follow_their_ids_to_other_rows():
    counter = ExposureCounter()
    counter.commit(rows(0, 2, 2))
    state = counter.state_dict(["ann", "bob", "cyd"])
    assert state == {"ann": 1, "cyd": 2}
    other = ExposureCounter()
    other.commit(rows(1))
    other.load_state_dict(state, {"cyd": 0, "bob": 1, "ann": 9})
    assert other.counts(np.arange(10)).tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 0, 1]


def test_the_signal_is_the_last_loss_over_the_first():
    reference = LossReference()
    reference.observe(rows(0, 3), np.array([4.0, 2.0]))
    assert reference.signal(rows(0, 3)).tolist() == [1.0, 1.0]
    reference.observe(rows(3), np.array([0.5]))
    assert reference.signal(rows(3, 0, 1)).tolist() == [0.25, 1.0, 1.0]


def test_an_example_that_was_exposed_before_it_was_measured_never_gets_a_reference():
    reference = LossReference(default=0.75)
    reference.observe(rows(0, 1), np.array([4.0, 4.0]), exposures=rows(2, 0))
    reference.observe(rows(0, 1), np.array([1.0, 1.0]), exposures=rows(3, 1))
    assert reference.signal(rows(0, 1)).tolist() == [0.75, 0.25]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_is_not_remembered(bad):
    reference = LossReference()
    reference.observe(rows(0, 1), np.array([bad, 2.0]))
    reference.observe(rows(0, 1), np.array([3.0, bad]))
    reference.observe(rows(0), np.array([1.5]))
    assert reference.signal(rows(0, 1)).tolist() == [0.5, 1.0]


@pytest.mark.parametrize("first", [0.0, -1.0])
def test_a_reference_that_is_not_above_zero_gives_the_default(first):
    reference = LossReference()
    reference.observe(rows(0), np.array([first]))
    reference.observe(rows(0), np.array([5.0]))
    assert reference.signal(rows(0)).tolist() == [1.0]


def test_of_a_row_listed_twice_the_first_loss_is_the_reference():
    reference = LossReference()
    reference.observe(rows(0, 0), np.array([4.0, 2.0]))
    assert reference.signal(rows(0)).tolist() == [0.5]


def test_losses_follow_their_ids_to_other_rows():
    reference = LossReference()
    reference.observe(rows(0, 1), np.array([4.0, 8.0]))
    reference.observe(rows(1), np.array([2.0]))
    reference.observe(rows(2), np.array([3.0]), exposures=rows(1))
    state = reference.state_dict(["ann", "bob", "cyd"])
    assert state == {"reference": {"ann": 4.0, "bob": 8.0}, "last": {"ann": 4.0, "bob": 2.0, "cyd": 3.0}}
    other = LossReference()
    other.observe(rows(5), np.array([9.0]))
    other.load_state_dict(state, {"ann": 2, "bob": 0, "cyd": 1})
    assert other.signal(rows(0, 1, 2)).tolist() == [0.25, 1.0, 1.0]
    assert other.state_dict(["bob", "cyd", "ann"]) == state
