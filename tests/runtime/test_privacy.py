"""The private gradient sum: against a plain loop and Opacus, its sensitivity, and what cannot break it."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from scipy.stats import kstest
from torch import Tensor, nn

from gradwarden.runtime.errors import PrivacyError
from gradwarden.runtime.privacy.clipping import Unit
from gradwarden.runtime.privacy.noise import FastNoise, SecureNoise, add_noise, add_to_gradients
from gradwarden.runtime.privacy.units import private_sum

ROWS = 6


def small_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def bands_of(model: nn.Sequential) -> dict[int, list[Tensor]]:
    """Shallow is band 0, middle band 1, deep band 2."""
    return {number: list(model[layer].parameters()) for number, layer in enumerate((4, 2, 0))}


def losses_of(model: nn.Module, data: Tensor, scale: float = 1.0) -> Tensor:
    return scale * model(data).square().sum(dim=1)


def batch(seed: int = 1, rows: int = ROWS) -> Tensor:
    return torch.randn(rows, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_loop(model, data, units, weights, parameters) -> dict[Tensor, Tensor]:
    """The same sum by one backward pass for each row and band."""
    total = {p: torch.zeros_like(p) for band in parameters.values() for p in band}
    for unit in units:
        gradient = {p: torch.zeros_like(p) for p in total}
        for row in unit.rows:
            for band, members in parameters.items():
                model.zero_grad()
                losses_of(model, data[row : row + 1])[0].backward()
                for p in members:
                    gradient[p] += weights[row, band] * p.grad
        model.zero_grad()
        norm = torch.cat([part.flatten() for part in gradient.values()]).norm()
        for p, part in gradient.items():
            total[p] += part * min(1.0, unit.clip / float(norm)) if norm else 0.0
    return total


def flat(sums: dict[Tensor, Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in sums.values()])


@settings(max_examples=25)
@given(data=st.data())
def test_the_sum_equals_a_plain_loop_over_units_rows_and_bands(data):
    model = small_model()
    within = data.draw(st.sampled_from([[0], [0, 1], [0, 1, 2], [2]]))
    parameters = {band: bands_of(model)[band] for band in within}
    weight = st.sampled_from([0.0, 0.25, 1.0, 3.0])
    weights = torch.tensor(
        data.draw(st.lists(st.lists(weight, min_size=3, max_size=3), min_size=ROWS, max_size=ROWS)),
        dtype=torch.float64,
    )
    owner = data.draw(st.lists(st.integers(-1, 3), min_size=ROWS, max_size=ROWS))
    clip = st.sampled_from([0.01, 0.5, 100.0])
    units = [
        Unit(tuple(row for row in range(ROWS) if owner[row] == name), data.draw(clip))
        for name in sorted(set(owner) - {-1})
    ]
    rows = batch()
    found = private_sum(losses_of(model, rows), units, weights, parameters)
    wanted = by_loop(model, rows, units, weights, parameters)
    assert found.keys() == wanted.keys()
    for p, total in wanted.items():
        torch.testing.assert_close(found[p], total, rtol=1e-9, atol=1e-12)


def test_the_sum_equals_that_of_opacus():
    # Opacus divides by norm + 1e-6, gradwarden by the norm: gradients of about 1e5 make that no difference.
    scale, clip, rows = 1e6, 3e5, batch()
    model = small_model()
    other = GradSampleModule(copy.deepcopy(model), loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(other.parameters(), lr=0.1),
        noise_multiplier=0.0,
        max_grad_norm=clip,
        expected_batch_size=1,
        loss_reduction="sum",
    )
    losses_of(other, rows, scale).sum().backward()
    norms = torch.cat([g.flatten(1) for g in optimizer.grad_samples], dim=1).norm(dim=1)
    assert (norms > clip).any()
    assert (norms < clip).any()
    optimizer.clip_and_accumulate()

    units = [Unit((row,), clip) for row in range(ROWS)]
    parameters = bands_of(model)
    found = private_sum(losses_of(model, rows, scale), units, torch.ones(ROWS, 3), parameters)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found[p], q.summed_grad, rtol=1e-9, atol=1e-9 * clip)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([0.01, 1.0, 30.0]), st.sampled_from([1e-3, 1.0, 1e4, 1e9]))
def test_one_unit_more_moves_the_sum_by_at_most_its_clip(seed, clip, scale):
    model, rows = small_model().float(), batch(seed).float()
    losses, parameters = losses_of(model, rows, scale), bands_of(model)
    weights = torch.rand(ROWS, 3, generator=torch.Generator().manual_seed(seed))
    others = [Unit((0, 1), clip), Unit((2,), clip)]
    without = private_sum(losses, others, weights, parameters)
    alone = private_sum(losses, [Unit((3, 4, 5), clip)], weights, parameters)
    assert flat(alone).double().norm() <= clip
    both = private_sum(losses, [*others, Unit((3, 4, 5), clip)], weights, parameters)
    torch.testing.assert_close(flat(both), flat(without) + flat(alone), rtol=1e-5, atol=1e-6 * clip)


def test_public_rows_and_rows_of_weight_zero_have_no_part():
    model, rows = small_model(), batch()
    weights, factors = torch.ones(ROWS, 3), torch.full((ROWS,), 7.0)
    weights[1], factors[0] = 0.0, 1.0
    wanted = private_sum(losses_of(model, rows), [Unit((0,), 1.0)], weights, bands_of(model))
    found = private_sum(losses_of(model, rows) * factors, [Unit((0, 1), 1.0)], weights, bands_of(model))
    assert torch.equal(flat(found), flat(wanted))


def test_a_batch_without_private_rows_gives_zeros_for_every_band_within():
    model = small_model()
    parameters = {0: bands_of(model)[0]}
    sums = private_sum(losses_of(model, batch()), [], torch.ones(ROWS, 3), parameters)
    assert list(sums) == parameters[0]
    assert not flat(sums).any()


def test_a_frozen_parameter_is_left_out():
    model = small_model()
    model[4].bias.requires_grad_(False)
    sums = private_sum(losses_of(model, batch()), [Unit((0,), 1.0)], torch.ones(ROWS, 3), bands_of(model))
    assert model[4].bias not in sums
    assert model[4].weight in sums


def poisoned(places: list[int], value: float) -> Tensor:
    """Rows whose activations are not finite at some places: 0 times infinity then spoils a shared graph."""
    rows = batch()
    rows[places] = value
    return rows


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_units_that_are_not_finite_count_as_zero_and_refuse_nothing(value):
    model, rows = small_model(), poisoned([2], value)
    units = [Unit((0,), 1.0), Unit((2,), 1.0)]
    found = private_sum(losses_of(model, rows), units, torch.ones(ROWS, 3), bands_of(model))
    assert not flat(found).any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_isolation_keeps_a_poisoned_unit_from_silencing_the_others(value):
    model, rows = small_model(), poisoned([2], value)
    units = [Unit((0, 1), 1.0), Unit((2,), 1.0), Unit((3,), 1.0)]
    weights, parameters = torch.ones(ROWS, 3), bands_of(model)
    wanted = private_sum(losses_of(model, batch()), [units[0], units[2]], weights, parameters)
    found = private_sum(
        losses_of(model, rows),
        units,
        weights,
        parameters,
        isolate=lambda places: losses_of(model, rows[places]),
    )
    torch.testing.assert_close(flat(found), flat(wanted), rtol=1e-12, atol=0.0)


def test_a_poisoned_row_of_weight_zero_does_not_spoil_its_own_unit():
    model, rows, weights = small_model(), poisoned([1], torch.inf), torch.ones(ROWS, 3)
    weights[1] = 0.0
    found = private_sum(
        losses_of(model, rows),
        [Unit((0, 1), 1.0)],
        weights,
        bands_of(model),
        isolate=lambda places: losses_of(model, rows[places]),
    )
    wanted = private_sum(losses_of(model, batch()), [Unit((0,), 1.0)], weights, bands_of(model))
    torch.testing.assert_close(flat(found), flat(wanted), rtol=1e-12, atol=0.0)


def test_half_precision_sums_are_kept_in_float32():
    model = small_model().to(torch.bfloat16)
    rows = batch().to(torch.bfloat16)
    sums = private_sum(losses_of(model, rows), [Unit((0,), 0.1)], torch.ones(ROWS, 3), bands_of(model))
    assert {total.dtype for total in sums.values()} == {torch.float32}
    assert flat(sums).norm() == pytest.approx(0.1, rel=1e-5)
    add_to_gradients(sums, 4.0)
    assert model[4].weight.grad.dtype == torch.bfloat16


@pytest.mark.usefixtures("either_way")
def test_noise_has_the_given_deviation_on_every_band_even_for_an_empty_batch():
    model = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 100))
    parameters = {0: list(model[1].parameters()), 1: list(model[0].parameters())}
    sums = private_sum(torch.zeros(0), [], torch.ones(0, 2), parameters)
    add_noise(sums, 3.0, FastNoise(5))
    for layer in model:
        # 10,000 draws: the deviation is known to 1/sqrt(20,000) = 0.7 %; four times that.
        assert sums[layer.weight].std().item() == pytest.approx(3.0, rel=0.028)
        assert sums[layer.bias].all()
    assert not torch.equal(sums[model[0].weight], sums[model[1].weight])


@pytest.mark.usefixtures("either_way")
def test_noise_comes_from_the_given_generator_alone():
    model = small_model()
    first = private_sum(torch.zeros(0), [], torch.ones(0, 3), bands_of(model))
    second = private_sum(torch.zeros(0), [], torch.ones(0, 3), bands_of(model))
    state = torch.get_rng_state()
    add_noise(first, 1.0, FastNoise(5))
    add_noise(second, 1.0, FastNoise(5))
    assert torch.equal(flat(first), flat(second))
    assert torch.equal(state, torch.get_rng_state())


def test_sums_are_added_to_gradients_over_the_normaliser():
    model = small_model()
    parameters = bands_of(model)
    model[4].weight.grad = torch.ones_like(model[4].weight)
    add_to_gradients({p: torch.full_like(p, 6.0) for p in parameters[0]}, 3.0)
    assert torch.equal(model[4].weight.grad, torch.full_like(model[4].weight, 3.0))
    assert torch.equal(model[4].bias.grad, torch.full_like(model[4].bias, 2.0))
    assert model[0].weight.grad is None


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ([Unit((0, 1), 1.0), Unit((1,), 1.0)], "two privacy units"),
        ([Unit((ROWS,), 1.0)], "outside the batch"),
        ([Unit((0,), 0.0)], "above 0"),
    ],
)
def test_units_that_make_no_sense_are_refused(units, message):
    model = small_model()
    with pytest.raises(PrivacyError, match=message):
        private_sum(losses_of(model, batch()), units, torch.ones(ROWS, 3), bands_of(model))


def test_losses_without_a_graph_are_refused():
    model = small_model()
    with pytest.raises(PrivacyError, match="not attached"):
        private_sum(
            losses_of(model, batch()).detach(), [Unit((0,), 1.0)], torch.ones(ROWS, 3), bands_of(model)
        )


def test_noised_gradients_never_overflow_so_that_no_refusal_tells_of_them():
    parameter = torch.nn.Parameter(torch.zeros(3, dtype=torch.float16))
    parameter.grad = torch.tensor([60000.0, -60000.0, 1.0], dtype=torch.float16)
    add_to_gradients({parameter: torch.tensor([1e4, -1e9, 2.0])}, 1.0)
    assert parameter.grad.tolist() == [65504.0, -65504.0, 3.0]
    parameter.grad = None
    add_to_gradients({parameter: torch.tensor([1e9, -1e9, 2.0])}, 1.0)
    assert parameter.grad.tolist() == [65504.0, -65504.0, 2.0]


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noised_sums_are_divided_as_they_are_afterwards_and_never_overflow(dtype):
    greatest = torch.finfo(dtype).max
    for total in (torch.ones(300, 1000, dtype=dtype), torch.ones(1000, 300, dtype=dtype).t()):
        total[0, :2] = torch.tensor([torch.inf, -greatest])
        at_once = total.clone()
        add_noise({at_once: at_once}, 2.0, FastNoise(3), normaliser=0.3)
        add_noise({total: total}, 2.0, FastNoise(3))
        parameter = nn.Parameter(torch.zeros_like(total))
        add_to_gradients({parameter: total}, 0.3)
        assert torch.equal(parameter.grad, at_once)
        assert at_once[0, :2].tolist() == [greatest, -greatest]


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("source", [FastNoise, SecureNoise])
def test_noise_is_normal_and_never_the_same(source, dtype):
    count = 601_001
    drawn, other = torch.zeros(count, dtype=dtype), torch.zeros(count, dtype=dtype)
    add_noise({drawn: drawn}, 1.0, source())
    # With a right generator this fails once in a million runs.
    assert kstest(drawn.numpy(), "norm").pvalue > 1e-6
    # What is drawn from one pair of uniform numbers lies half a chunk, or half of the rest, apart.
    for distance in (1, 1 << 17, (count - (2 << 18) + 1) // 2):
        neighbours = float((drawn[:-distance] * drawn[distance:]).mean())
        assert abs(neighbours) < 5.0 / count**0.5
    assert drawn.abs().max() < 6.7
    add_noise({other: other}, 1.0, source())
    assert not torch.equal(drawn, other)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_the_same_on_however_many_threads_and_no_number_comes_twice(dtype):
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            source = FastNoise(11)
            steps = [torch.zeros(5, 100_001, dtype=dtype) for _ in range(2)]
            for total in steps:
                add_noise({total: total}, 2.0, source)
            found.append(torch.stack(steps).flatten())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
    # Single precision has so few numbers that some are alike; where a stretch came again, thousands were.
    assert len(found[0].unique()) > 0.97 * len(found[0])


@pytest.mark.usefixtures("either_way")
def test_noise_is_the_same_however_a_model_is_divided_into_parameters():
    whole = torch.zeros(300_000)
    parts = torch.zeros(300_000).split([3, 280_000, 19_996, 1])
    add_noise({whole: whole}, 2.0, FastNoise(7))
    add_noise({part: part for part in parts}, 2.0, FastNoise(7))
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.usefixtures("either_way")
def test_noise_of_sums_on_whatever_layout_is_the_same():
    rows, columns = torch.zeros(300, 500), torch.zeros(500, 300).t()
    for total in (rows, columns):
        add_noise({total: total}, 2.0, FastNoise(7))
    assert torch.equal(rows, columns)
