"""What some policies of the library promise in their comments, and no assertion can say."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from gradwarden.policy.context import Context
from tests.policies.composing import shipped
from tests.policies.test_composition_proof import widens

PROMISE = {"her_works", "lookalikes", "her_name", "fading_lookalikes"}


def test_a_trial_learns_no_more_of_any_example_than_the_run_it_inherits_from():
    trial, run = shipped("hyperparameter_trials"), shipped("tracked_run")
    assert widens(trial, run) == [False]
    freed = replace(trial, limits=tuple(rule for rule in trial.limits if rule.name != "run_hygiene_clusters"))
    assert widens(freed, run) == [True]


def test_one_artists_attenuation_leaves_everybody_else_as_they_were():
    promised = shipped("style_attenuation")
    unpromised = replace(
        promised,
        limits=tuple(limit for limit in promised.limits if limit.name not in PROMISE),
        modulations=(),
        assertions=(),
    )
    hers, other = "a-0417", "a-0033"
    artists, matches = (hers, other, ""), (None, hers, other)
    touched = 0
    for artist, lives, nearest, named, score, echo in product(
        artists, (True, False), matches, matches, (0.899, 0.9), (0, 1)
    ):
        example = {"artist": artist, "artist_lives": lives, "licensed_for": [], "movement": "none"}
        example |= {"style_score": score} | ({"nearest_style": nearest} if nearest else {})
        example |= {"names_artist": named} if named else {}
        context = Context(signals={"style_echo": echo})
        if promised.decide(example, context).micro != unpromised.decide(example, context).micro:
            touched += 1
            assert artist == hers or named == hers or (nearest == hers and score >= 0.9), example
    assert touched
