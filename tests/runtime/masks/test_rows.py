"""Choosing, weighing and placing the rows of a batch."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradwarden.runtime.masks.layout import Layout, candidates, confirmed
from gradwarden.runtime.masks.plan import Plan
from gradwarden.runtime.masks.rows import Rows, relative, row_factors

weight = st.sampled_from([0.0, 1.0]) | st.floats(1e-6, 4.0)


@st.composite
def batches(draw: st.DrawFn) -> Tensor:
    bands = draw(st.integers(1, 4))
    rows = draw(st.lists(st.lists(weight, min_size=bands, max_size=bands), min_size=1, max_size=6))
    return torch.tensor(rows, dtype=torch.float64)


layouts = st.sampled_from([Layout(0, 2), Layout(1, 3), Layout(0, 2, interleaved=True), Layout(1, 3, True)])


@given(batches(), layouts, st.integers(1, 3))
def test_picked_rows_are_those_with_weight_in_every_layout(
    weights: Tensor, layout: Layout, each: int
) -> None:
    rows, batch = Rows(weights[:, 0]), len(weights)
    shape = [2] * layout.rank
    shape[layout.dim] = batch * each
    tensor = torch.randn(shape, dtype=torch.float64)
    weighed = torch.zeros_like(tensor)
    if not rows.empty:
        picked = rows.weigh(rows.pick(tensor, layout), layout) * rows.factor
        rows.place(weighed, picked, layout)
    for number in range(batch):
        expected = layout.example(tensor, batch, number) * weights[number, 0]
        torch.testing.assert_close(layout.example(weighed, batch, number), expected, rtol=1e-12, atol=0)


@given(batches(), st.lists(st.floats(1, 100), min_size=4, max_size=4))
def test_factors_times_relative_weights_are_the_weights(weights: Tensor, costs: list[float]) -> None:
    factors = row_factors(weights, costs[: weights.shape[1]])
    assert bool(((factors > 0) == (weights > 0).any(dim=1)).all())
    again = relative(weights, factors) * factors[:, None]
    torch.testing.assert_close(again, weights, rtol=1e-12, atol=0)


def test_weights_that_differ_only_between_rows_need_no_weighing() -> None:
    plan = Plan.of(torch.tensor([[0.5, 0.5], [1.5, 1.5], [1.0, 0.0]], dtype=torch.float64), [1.0, 1.0])
    assert plan.bands[0].plain
    assert plan.bands[1].weights is None
    assert plan.bands[1].factor == 1.0


def test_the_most_expensive_band_is_the_one_that_is_not_weighed() -> None:
    weights = torch.tensor([[0.5, 0.2], [0.9, 0.7]], dtype=torch.float64)
    for costs, spared in (((10.0, 1.0), 0), ((1.0, 10.0), 1)):
        assert [rows.plain for rows in Plan.of(weights, costs).bands] == [spared == 0, spared == 1]


def test_reach_is_the_union_of_the_bands_of_a_mask() -> None:
    plan = Plan.of(torch.tensor([[1.0, 0.0], [0.0, 0.5], [0.0, 0.0]], dtype=torch.float64), [1.0, 1.0])
    assert plan.reach(0).empty
    assert plan.reach(0b01).chosen.tolist() == [0]
    assert plan.reach(0b10).chosen.tolist() == [1]
    assert plan.reach(0b11).chosen.tolist() == [0, 1]


def test_only_what_grows_with_the_batch_can_be_the_batch() -> None:
    assert candidates((2, 3, 5), (3, 3, 5), (2, 3)) == [Layout(0, 3)]
    assert candidates((3, 2, 5), (3, 3, 5), (2, 3)) == [Layout(1, 3)]
    assert candidates((8, 5), (12, 5), (2, 3)) == [Layout(0, 2), Layout(0, 2, interleaved=True)]
    assert candidates((3, 5), (3, 5), (2, 3)) == []
    assert candidates((2, 5), (3, 5, 1), (2, 3)) == []


def test_gradients_of_single_examples_tell_tokens_first_from_examples_first() -> None:
    both = candidates((8, 1), (12, 1), (2, 3))
    for layout in both:
        gradients = []
        for number in range(3):
            gradient = torch.zeros(12, 1)
            layout.example(gradient, 3, number)[1:3] = 1.0
            gradients.append(gradient)
        assert confirmed(both, gradients) == layout
    assert confirmed(both, [None, None, None]) is None
    assert confirmed(both, [torch.ones(12, 1)] * 3) is None


@given(
    weights=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=5),
    owners=st.lists(st.integers(-1, 4), max_size=12),
)
def test_spread_rows_are_those_of_their_examples(weights: list[float], owners: list[int]) -> None:
    owners = [owner if owner < len(weights) else -1 for owner in owners]
    rows = Rows(torch.tensor(weights, dtype=torch.float64)).spread(torch.tensor(owners, dtype=torch.int64))
    common = weights[0] if len(set(weights)) == 1 else 0.0
    want = [weights[owner] if owner >= 0 else common for owner in owners]
    have = torch.zeros(len(owners), dtype=torch.float64)
    have[rows.chosen] = rows.factor if rows.weights is None else rows.weights
    assert have.tolist() == want
