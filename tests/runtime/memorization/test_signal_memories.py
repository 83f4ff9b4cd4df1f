"""What signals are made of: losses over time, outliers, copies, token scores. Each against a plain rule."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden.policy.evaluation.chosen_steps import is_chosen
from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.memorization.copies import CopyCounter
from gradwarden.runtime.memorization.outliers import LEAST, WINDOW, NormOutliers
from gradwarden.runtime.memorization.token_scores import token_scores
from gradwarden.runtime.memorization.trajectories import WIDTH, LossTrajectory


def rows(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


LOSS = st.sampled_from([0.0, 0.5, 1.0, 3.25, 8.0, math.nan, math.inf])


@given(st.lists(st.lists(st.tuples(st.integers(0, 5), LOSS), max_size=6), max_size=12))
def test_the_fall_is_the_slope_over_the_last_losses(steps):
    trajectory, kept = LossTrajectory(), {}
    for step in steps:
        trajectory.observe(rows(*(row for row, _ in step)), np.array([loss for _, loss in step]))
        for row, loss in step:
            if math.isfinite(loss):
                kept[row] = [*kept.get(row, []), loss][-WIDTH:]
    wanted = [
        (kept[row][0] - kept[row][-1]) / (len(kept[row]) - 1) if len(kept.get(row, [])) > 1 else math.nan
        for row in range(6)
    ]
    assert trajectory.signal(np.arange(6)).tolist() == pytest.approx(wanted, nan_ok=True)
    ids = [f"i{row}" for row in range(6)] + ["unused"] * 20
    assert trajectory.state_dict(ids) == {f"i{row}": kept[row] for row in sorted(kept)}


@settings(max_examples=25)
@given(st.lists(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40), min_size=1, max_size=8))
def test_a_norm_is_scored_against_those_of_earlier_batches(batches):
    outliers, before = NormOutliers(), []
    for batch in batches:
        outliers.observe(np.arange(len(batch)), np.array(batch))
        if len(before) >= LEAST:
            middle = statistics.median(before)
            spread = max(1.4826 * statistics.median(abs(b - middle) for b in before), 0.01)
            wanted = [(math.log(norm) - middle) / spread for norm in batch]
            assert outliers.signal(np.arange(len(batch))).tolist() == pytest.approx(wanted)
        else:
            assert np.isnan(outliers.signal(np.arange(len(batch)))).all()
        before = [*before, *(math.log(norm) for norm in batch)][-WINDOW:]


def test_norms_that_say_nothing_are_left_out():
    outliers = NormOutliers()
    outliers.observe(np.arange(LEAST), np.ones(LEAST))
    outliers.observe(rows(0, 1, 2, 3), np.array([0.0, math.nan, math.inf, math.e]))
    assert np.isnan(outliers.signal(rows(0, 1, 2))).all()
    assert outliers.signal(rows(3)).tolist() == pytest.approx([100.0])  # the spread is at least 0.01


@given(st.lists(st.lists(st.integers(0, 4), max_size=6), max_size=8))
def test_copies_are_the_exposures_of_the_whole_cluster(steps):
    clusters = {"a": "x", "b": "x", "c": "y"}
    names = ["a", "b", "c", "d", "x"]  # an id may be spelled like a cluster
    counter, homes = CopyCounter(clusters), ["X", "X", "Y", "d", "x"]
    counter.join(names)
    seen: list[str] = []
    for step in steps:
        wanted = [
            (seen + [homes[r] for r in step[:place]]).count(homes[row]) for place, row in enumerate(step)
        ]
        assert counter.counts(rows(*step)).tolist() == wanted
        counter.commit(rows(*step))
        seen += [homes[row] for row in step]


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(2, 12))
def test_the_token_score_is_the_mean_of_the_least_fifth_of_the_standardised_log_probabilities(
    seed, length, size
):
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(3, length, size, generator=generator)
    targets = torch.randint(0, size, (3, length), generator=generator)
    targets[torch.rand(3, length, generator=generator) < 0.3] = -100
    for found, row, tokens in zip(token_scores(logits, targets).tolist(), logits, targets, strict=True):
        scores = []
        for values, token in zip(row.double(), tokens.tolist(), strict=True):
            if token >= 0:
                logs = [float(v) - math.log(sum(math.exp(float(w)) for w in values)) for v in values]
                mean = sum(math.exp(x) * x for x in logs)
                spread = math.sqrt(sum(math.exp(x) * (x - mean) ** 2 for x in logs))
                scores.append((logs[token] - mean) / max(spread, 1e-6))
        least = sorted(scores)[: math.ceil(len(scores) / 5)]
        wanted = sum(least) / len(least) if least else math.nan
        assert found == pytest.approx(wanted, rel=1e-3, abs=1e-3, nan_ok=True)


def test_tokens_that_are_ruled_out_spoil_no_score():
    logits = torch.tensor([[[0.0, 0.0, -math.inf]]])
    assert token_scores(logits, torch.tensor([[0]])).tolist() == pytest.approx([0.0])


def test_scores_need_logits_by_position():
    with pytest.raises(MaskError, match=r"logits \[B, T, V\]"):
        token_scores(torch.zeros(2, 5), torch.zeros(2, dtype=torch.long))


@given(st.integers(1, 64), st.integers(1, 64), st.integers(0, 1_000))
def test_one_step_in_so_many_is_measured_whatever_the_length_of_an_epoch(every, epoch, start):
    visits = [is_chosen(start % epoch + epoch * lap, every) for lap in range(40 * every)]
    assert 20 <= sum(visits) <= 80
