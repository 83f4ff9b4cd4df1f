"""Batches by depth: every row once, like with like, in an order that can be worked out again."""

from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.runtime.batching.depth_batches import DepthSampler, by_depth, reach_groups
from gradwarden.runtime.errors import ExampleError, MaskError

ENGINES = ["fused", "split"]

weights = st.lists(
    st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=3, max_size=3), min_size=1, max_size=40
).map(lambda rows: np.array(rows, dtype=np.float64))
groups = st.lists(st.integers(0, 4), max_size=60).map(lambda numbers: np.array(numbers, dtype=np.int64))


# --- cutting one step ---------------------------------------------------------------------------------------


@given(weights, st.integers(1, 12))
def test_every_row_with_any_weight_is_in_exactly_one_micro_batch(rows, size):
    parts = by_depth(rows, size)
    assert all(1 <= len(part) <= size for part in parts)
    assert sorted(np.concatenate([*parts, []]).tolist()) == np.flatnonzero(rows.any(axis=1)).tolist()


@given(weights, st.integers(1, 12))
def test_a_micro_batch_is_mixed_only_where_one_kind_did_not_half_fill_it(rows, size):
    parts = by_depth(rows, size)
    reach = reach_groups(rows > 0)
    assert np.all(np.diff(reach[np.concatenate([*parts, np.zeros(0, int)])]) >= 0)
    for part in parts:
        kinds, counts = np.unique(reach[part], return_counts=True)
        assert all(2 * filled < size for filled in np.cumsum(counts)[: len(kinds) - 1])


def test_rows_that_reach_deeper_come_later_and_keep_their_order():
    rows = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0], [0.5, 0, 0], [1, 0, 1]], dtype=np.float64)
    assert reach_groups(rows > 0).tolist() == [4, 1, 0, 2, 1, 3]
    assert [part.tolist() for part in by_depth(rows, 2)] == [[1, 4], [3], [5], [0]]
    assert [part.tolist() for part in by_depth(rows, 8)] == [[1, 4, 3, 5], [0]]
    assert [part.tolist() for part in by_depth(rows, 9)] == [[1, 4, 3, 5, 0]]


def test_without_rows_that_shape_nothing_no_row_has_the_group_of_them():
    assert reach_groups(np.array([[True, False], [True, True]])).tolist() == [1, 2]


def test_nothing_to_learn_makes_no_micro_batch():
    assert by_depth(np.zeros((5, 2)), 4) == []


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_a_step_cut_by_depth_learns_what_the_whole_step_learns(lab, engine, size):
    examples = lab.batch("aAbacdbbDda")
    whole = lab.governor(name="whole", engine=engine)
    parts = lab.governor(name="parts", engine=engine)
    wanted = lab.step(whole, examples)
    inputs = lab.inputs(len(examples))
    seen = []
    with parts.step(examples) as proposal:
        for rows in proposal.depth_batches(size):
            proposal.backward(lab.losses(parts.model, inputs[rows]))
            seen += rows.tolist()
    assert proposal.committed
    assert sorted(seen) == np.flatnonzero(proposal.weights.any(axis=1)).tolist()
    assert proposal.mean_loss == pytest.approx(wanted.mean_loss)
    for one, other in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-9, atol=1e-12)
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


def test_losses_are_remembered_of_the_examples_that_they_belong_to(lab):
    examples = lab.batch("abab")
    policy = lab.policy.replace("model {", "signals { loss_ratio : number 0..10 default 1 }\nmodel {")
    governors = [lab.governor(policy, name=name) for name in ("whole", "parts")]
    inputs = lab.inputs(4)
    for governor, cut in zip(governors, (False, True), strict=True):
        for _ in range(2):
            with governor.step(examples) as proposal:
                for rows in proposal.depth_batches(2) if cut else [slice(None)]:
                    proposal.backward(lab.losses(governor.model, inputs[rows]))
    ratios = [governor.measures.references.signal(np.arange(4)) for governor in governors]
    assert len(set(ratios[0].tolist())) == 4
    assert ratios[1] == pytest.approx(ratios[0])


def test_a_part_that_was_left_out_refuses_the_step(lab):
    governor = lab.governor()
    with governor.step(lab.batch("aabb")) as proposal:
        for rows in islice(proposal.depth_batches(2), 1):
            proposal.backward(lab.losses(governor.model, lab.inputs(4)[rows]))
    assert proposal.refusal.reason == "no_backward"


def test_an_impossible_size_is_an_error(lab):
    governor = lab.governor()
    with (
        pytest.raises(MaskError, match="at least one example, not 0"),
        governor.step(lab.batch("aa")) as step,
    ):
        next(step.depth_batches(0))


# --- forming the steps --------------------------------------------------------------------------------------


@given(groups, st.integers(1, 7), st.integers(0, 3))
def test_an_epoch_has_every_row_that_may_learn_once(numbers, size, epoch):
    sampler = DepthSampler(numbers, batch_size=size, seed=1)
    batches = sampler.order(epoch)
    assert sorted(np.concatenate([*batches, []]).tolist()) == np.flatnonzero(numbers).tolist()
    assert len(batches) == len(sampler)
    assert all(1 <= len(batch) <= size for batch in batches)


@given(groups, st.integers(1, 7))
def test_all_but_the_rest_of_each_group_comes_unmixed(numbers, size):
    batches = DepthSampler(numbers, batch_size=size, seed=1).order(0)
    pure = sum(len(set(numbers[batch].tolist())) == 1 and len(batch) == size for batch in batches)
    assert pure >= sum(count // size for count in np.bincount(numbers)[1:])


def test_rows_that_may_shape_nothing_come_when_asked_for():
    sampler = DepthSampler([0, 1, 0, 2], batch_size=2, seed=0, all_rows=True)
    assert sorted(np.concatenate(sampler.order(0)).tolist()) == [0, 1, 2, 3]


def test_the_order_is_a_function_of_seed_epoch_and_groups():
    numbers = np.arange(90) % 3 + 1

    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = DepthSampler(numbers, batch_size=4, seed=seed)
        return [batch.tolist() for batch in sampler.order(epoch)]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_within_a_group_every_place_is_equally_likely():
    """A chi-squared test of the mean place: 600 epochs of 8 rows in 4 places, 99.99 % bound."""
    counts = np.zeros((8, 4))
    sampler = DepthSampler(np.ones(8, np.int64), batch_size=2, seed=3)
    for epoch in range(600):
        for place, batch in enumerate(sampler.order(epoch)):
            counts[batch, place] += 1
    assert ((counts - 150) ** 2 / 150).sum() < 55.0  # 21 degrees of freedom


def test_a_saved_sampler_goes_on_with_the_rest_of_its_epoch():
    numbers = np.arange(50) % 4
    sampler = DepthSampler(numbers, batch_size=3, seed=5)
    list(sampler)
    taken = [batch.tolist() for batch in islice(iter(sampler), 4)]
    state = json.loads(json.dumps(sampler.state_dict()))
    other = DepthSampler(numbers, batch_size=3, seed=5)
    other.load_state_dict(state)
    assert taken + [batch.tolist() for batch in other] == [batch.tolist() for batch in sampler.order(1)]
    assert other.epoch == 2


def test_a_batch_of_nothing_is_an_error():
    with pytest.raises(MaskError, match="at least one example, not 0"):
        DepthSampler([1], batch_size=0, seed=0)


# --- how deep examples may reach ----------------------------------------------------------------------------


def test_reach_is_what_the_next_step_would_decide(lab):
    examples = lab.batch("aAbcd")
    governor = lab.governor()
    before = governor.next_step
    reach = governor.reach(examples)
    assert reach.tolist() == [[True, True], [False, False], [True, False], [False, False], [False, True]]
    assert governor.next_step == before
    proposal = lab.step(governor, examples)
    assert (proposal.weights > 0).tolist() == reach.tolist()


def test_reach_knows_the_exposures_so_far(lab):
    governor = lab.governor(lab.policy + "retain few { when kind == a  at most 1 exposures }")
    examples = lab.batch("ab")
    assert governor.reach(examples)[0].all()
    lab.step(governor, examples)
    assert not governor.reach(examples)[0].any()


def test_reach_of_an_unknown_id_is_an_error(lab):
    with pytest.raises(ExampleError, match="`e9` is not known"):
        lab.governor().reach(["e9"])


def test_looking_ahead_leaves_a_ledger_that_verifies(lab):
    governor = lab.governor()
    governor.reach(lab.batch("abcd", "f"))
    lab.step(governor, lab.batch("ab"))
    governor.close()
    assert lab.verify().ok
