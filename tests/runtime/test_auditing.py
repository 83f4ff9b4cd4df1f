"""Lower bounds of epsilon: against closed forms, and against mechanisms whose epsilon is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from gradwarden.runtime.errors import PrivacyError
from gradwarden.runtime.privacy.auditing import (
    Guesses,
    area,
    epsilon_lower_bound,
    guess,
    likelihood_ratios,
    p_value,
    rate_at,
)


@pytest.mark.parametrize("made", [5, 40, 200])
def test_guesses_that_are_all_right_refute_what_a_closed_form_says(made):
    # All of r independent guesses are right with probability q^r.
    chance = 0.05 ** (1.0 / made)
    bound = epsilon_lower_bound(Guesses(made, made, made), delta=0.0)
    assert bound == pytest.approx(math.log(chance / (1.0 - chance)), abs=2e-4)


def test_guesses_no_better_than_chance_refute_nothing():
    assert epsilon_lower_bound(Guesses(1000, 200, 100), delta=1e-5) == 0.0


@given(st.integers(1, 60), st.data())
def test_a_bound_grows_with_right_guesses_and_shrinks_with_delta(made, data):
    right = data.draw(st.integers(0, made - 1))
    found = [epsilon_lower_bound(Guesses(100, made, right + more), 1e-6) for more in (0, 1)]
    assert found[0] <= found[1]
    assert epsilon_lower_bound(Guesses(100, made, right), 1e-3) <= found[0] + 1e-3
    assert 0.0 <= p_value(Guesses(100, made, right), 1.0, 1e-5) <= 1.0


def test_the_bound_of_randomised_response_is_right_as_often_as_it_says():
    epsilon, rounds, canaries = 1.0, 400, 300
    generator = np.random.default_rng(7)
    truth = generator.random((rounds, canaries)) < 0.5
    kept = generator.random((rounds, canaries)) < math.exp(epsilon) / (1.0 + math.exp(epsilon))
    bounds = [
        epsilon_lower_bound(Guesses(canaries, canaries, int(row.sum())), delta=0.0)
        for row in (truth == np.where(kept, truth, ~truth))
    ]
    # Exceeded in at most 5 % of runs; of 400, 35 is three deviations more than 20.
    assert sum(bound > epsilon for bound in bounds) <= 35
    assert np.median(bounds) > 0.5 * epsilon


def test_guesses_are_the_extremes_of_the_scores():
    scores = np.array([5.0, 1.0, 4.0, 2.0, 3.0])
    trained = np.array([True, False, False, True, True])
    assert guess(scores, trained, 2) == Guesses(5, 2, 2)
    assert guess(scores, trained, 4) == Guesses(5, 4, 2)


def test_likelihood_ratios_find_members_that_raw_scores_hide():
    generator = np.random.default_rng(3)
    hardness = 10.0 * generator.standard_normal(200)
    trained = [generator.random(200) < 0.5 for _ in range(17)]
    scores = [hardness + 2.0 * members + 0.5 * generator.standard_normal(200) for members in trained]
    ratios = likelihood_ratios(scores[0], scores[1:], trained[1:])
    assert area(ratios, trained[0]) > 0.97
    assert area(scores[0], trained[0]) < 0.7
    assert rate_at(ratios, trained[0], 0.01) > 0.5


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=40))
def test_the_area_is_that_of_a_known_library(rows):
    scores = np.array([float(score) for score, _ in rows])
    trained = np.array([member for _, member in rows])
    if trained.all() or not trained.any():
        return
    assert area(scores, trained) == pytest.approx(roc_auc_score(trained, scores))


def test_what_makes_no_sense_is_refused():
    with pytest.raises(PrivacyError, match="more right guesses"):
        epsilon_lower_bound(Guesses(10, 5, 6), 0.0)
    with pytest.raises(PrivacyError, match="half of each kind"):
        guess(np.zeros(3), np.zeros(3, dtype=bool), 4)
    with pytest.raises(PrivacyError, match="two shadow models"):
        likelihood_ratios(np.zeros(2), [np.zeros(2)] * 3, [np.array([True, False])] * 3)
