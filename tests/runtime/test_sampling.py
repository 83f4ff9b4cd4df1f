"""Poisson sampling: frequencies, independence, units that stay together, and resuming."""

from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden.runtime.errors import PrivacyError
from gradwarden.runtime.privacy.sampling import MixedSampler, PoissonSampler, group_rows


def singles(count: int) -> list[list[int]]:
    return [[row] for row in range(count)]


def presence(sampler: PoissonSampler, steps: int, rows: int) -> np.ndarray:
    """Return bool [steps, rows]: which rows each step drew."""
    seen = np.zeros((steps, rows), dtype=bool)
    for step in range(steps):
        seen[step, sampler.draw()] = True
    return seen


def test_every_unit_is_drawn_with_the_given_probability_independently():
    steps, count, rate = 20_000, 20, 0.1
    seen = presence(PoissonSampler(singles(count), rate, 7), steps, count)
    # Five standard deviations, at a fixed seed.
    assert np.abs(seen.mean(axis=0) - rate).max() < 5 * np.sqrt(rate * (1 - rate) / steps)
    correlation = np.corrcoef(seen.T) - np.eye(count)
    assert np.abs(correlation).max() < 5 / np.sqrt(steps)
    assert abs(np.corrcoef(seen[:-1, 0], seen[1:, 0])[0, 1]) < 5 / np.sqrt(steps)
    sizes = seen.sum(axis=1)
    # A batch of fixed size has variance 0; Poisson sampling has that of the binomial.
    assert sizes.var() == pytest.approx(count * rate * (1 - rate), rel=0.05)
    assert (sizes == 0).mean() == pytest.approx((1 - rate) ** count, rel=0.1)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 5), max_size=30), st.floats(0.0, 1.0), st.integers(0, 1000))
def test_the_rows_of_a_unit_come_together_or_not_at_all(owners, rate, seed):
    units = group_rows(owners)
    assert sorted(np.concatenate([*units, np.zeros(0, dtype=int)]).tolist()) == list(range(len(owners)))
    drawn = PoissonSampler(units, rate, seed).draw().tolist()
    for unit in units:
        assert set(unit.tolist()) <= set(drawn) or not set(unit.tolist()) & set(drawn)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 4), st.integers(0, 1000))
def test_processes_of_one_seed_deal_out_a_draw_in_whole_units(owners, size, seed):
    def sampler() -> MixedSampler:
        return MixedSampler(range(40, 47), group_rows(owners), batch_size=5, rate=0.5, seed=seed)

    whole = next(iter(sampler()))
    parts = []
    for rank in range(size):
        own = sampler()
        parts.append(own.part(next(iter(own)), rank, size))
    assert sorted(np.concatenate([part.private for part in parts]).tolist()) == sorted(whole.private.tolist())
    assert sorted(np.concatenate([part.public for part in parts]).tolist()) == sorted(whole.public.tolist())
    homes = [(owners[row], rank) for rank, part in enumerate(parts) for row in part.private.tolist()]
    assert len({owner for owner, _ in homes}) == len(set(homes))
    counts = [len({owners[row] for row in part.private.tolist()}) for part in parts]
    assert max(counts) - min(counts) <= 1


def test_a_rate_of_one_draws_all_and_of_zero_none():
    assert PoissonSampler(singles(5), 1.0, 0).draw().tolist() == [0, 1, 2, 3, 4]
    assert PoissonSampler(singles(5), 0.0, 0).draw().tolist() == []


def test_grouped_rows_keep_their_numbers():
    groups = group_rows(["ann", "bob", "ann"], np.array([10, 20, 30]))
    assert [group.tolist() for group in groups] == [[10, 30], [20]]


def test_a_sampler_goes_on_where_its_state_was_saved():
    whole = [draw.tolist() for draw in islice(PoissonSampler(singles(50), 0.2, 3), 20)]
    first = PoissonSampler(singles(50), 0.2, 3)
    start = [first.draw().tolist() for _ in range(8)]
    second = PoissonSampler(singles(50), 0.2, 999)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert start + [second.draw().tolist() for _ in range(12)] == whole


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_that_is_no_probability_is_refused(rate):
    with pytest.raises(PrivacyError, match="probability"):
        PoissonSampler(singles(3), rate, 0)


def test_a_row_in_two_units_is_refused():
    with pytest.raises(PrivacyError, match="two privacy units"):
        PoissonSampler([[0, 1], [1, 2]], 0.5, 0)


def mixed(seed: int = 5, private: int = 10, rate: float = 0.3) -> MixedSampler:
    units = [[100 + 2 * n, 101 + 2 * n] for n in range(private)]
    return MixedSampler(range(23), units, batch_size=5, rate=rate, seed=seed)


def listed(batches) -> list[tuple[list[int], list[int]]]:
    return [(batch.public.tolist(), batch.private.tolist()) for batch in batches]


def test_an_epoch_shows_every_public_row_once_in_a_new_order():
    sampler = mixed()
    epochs = [[row for public, _ in listed(sampler) for row in public] for _ in range(2)]
    assert len(sampler) == 5
    assert [sorted(epoch) for epoch in epochs] == [list(range(23))] * 2
    assert epochs[0] != epochs[1]
    assert sampler.epoch == 2


def test_the_public_order_does_not_depend_on_the_private_data():
    with_private, without = mixed(), mixed(private=0)
    assert [public for public, _ in listed(with_private)] == [public for public, _ in listed(without)]


def test_a_mixed_sampler_goes_on_in_the_middle_of_an_epoch():
    whole = mixed()
    wanted = listed(whole) + listed(whole)
    first = mixed()
    start = listed(islice(first, 3))
    second = mixed()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert start + listed(second) + listed(second) == wanted


def test_without_public_rows_an_epoch_is_one_expected_pass():
    sampler = MixedSampler([], singles(40), batch_size=8, rate=0.125, seed=0)
    assert len(listed(sampler)) == 8
    assert sampler.normaliser == 5.0


def test_the_normaliser_is_the_expected_size_whatever_was_drawn():
    sampler = mixed()
    assert sampler.normaliser == 5 + 0.3 * 20
    list(sampler)
    assert sampler.normaliser == 5 + 0.3 * 20


def test_nothing_to_sample_is_refused():
    with pytest.raises(PrivacyError, match="nothing to sample"):
        MixedSampler([], [], batch_size=4, rate=0.0, seed=0)


def test_a_renewed_sampler_does_not_repeat_draws_and_keeps_the_public_order():
    def sampler() -> MixedSampler:
        return MixedSampler(range(60), [[60 + i] for i in range(40)], batch_size=4, rate=0.5, seed=3)

    lost = sampler()
    before = list(lost)
    resumed = sampler()
    resumed.load_state_dict(sampler().state_dict())
    resumed.renew()
    after = list(resumed)
    assert [batch.public.tolist() for batch in after] == [batch.public.tolist() for batch in before]
    assert all(a.private.tolist() != b.private.tolist() for a, b in zip(after, before, strict=True))


def test_a_sampler_that_is_renewed_draws_from_another_stream_each_time():
    streams = []
    for _ in range(2):
        sampler = PoissonSampler(singles(60), 0.5, 3)
        sampler.renew()
        streams.append([sampler.draw().tolist() for _ in range(2)])
    assert streams[0] != streams[1]
