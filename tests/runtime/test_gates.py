"""The gradient gate: what it finds, what it measures, and what its caps do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gradwarden.runtime.steps.gates import apply_caps, band_norms, check_gradients, check_losses


def parameter(*values: float, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    made = nn.Parameter(torch.zeros(len(values), dtype=dtype))
    made.grad = torch.tensor(values, dtype=dtype)
    return made


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_is_found_where_its_row_is_active(bad):
    losses = torch.tensor([1.0, bad, 2.0, bad])
    assert check_losses(losses, [0, 2]) is None
    assert check_losses(losses, []) is None
    one, two = check_losses(losses, [0, 1]), check_losses(losses, [0, 1, 3])
    assert one is not None
    assert (one.gate, one.reason, one.band) == ("gradient", "loss_not_finite", None)
    assert one.detail == "the loss of row 1 of the batch is not finite"
    assert two is not None
    assert two.detail == "the loss of 2 rows of the batch, the first of them row 1, is not finite"


def test_norms_are_taken_over_all_parameters_of_a_band():
    silent = nn.Parameter(torch.zeros(2))
    norms = band_norms({"shallow": [parameter(3.0), parameter(0.0, 4.0), silent], "deep": [silent]})
    assert norms == {"shallow": 5.0, "deep": None}


def test_a_finite_gradient_never_has_an_infinite_norm():
    bands = {"shallow": [parameter(3e38, 3e38)]}
    assert band_norms(bands)["shallow"] == pytest.approx(2**0.5 * 3e38)
    assert check_gradients(bands) == ()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_every_band_with_a_gradient_that_is_not_finite_is_found(bad):
    bands = {
        "shallow": [parameter(1.0), parameter(2.0, bad)],
        "middle": [parameter(1.0)],
        "deep": [parameter(bad)],
    }
    findings = check_gradients(bands)
    assert [(f.gate, f.reason, f.band) for f in findings] == [
        ("gradient", "gradient_not_finite", "shallow"),
        ("gradient", "gradient_not_finite", "deep"),
    ]
    assert check_gradients(bands, band_norms(bands)) == findings


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=6), st.floats(0.01, 1e4))
def test_a_cap_bounds_the_norm_and_keeps_the_direction(values, cap):
    band = {"shallow": [parameter(*values, dtype=torch.float64)]}
    before = band["shallow"][0].grad.clone()
    norm = band_norms(band)["shallow"]
    factors = apply_caps(band, {"shallow": norm}, {"shallow": cap})
    after = band["shallow"][0].grad
    if norm <= cap:
        assert factors == {}
        assert torch.equal(after, before)
    else:
        assert factors == {"shallow": cap / norm}
        assert after.norm().item() == pytest.approx(cap, rel=1e-12)
        torch.testing.assert_close(after * norm, before * cap)


def test_caps_leave_silent_uncapped_and_broken_bands_alone():
    bands = {"a": [nn.Parameter(torch.zeros(1))], "b": [parameter(9.0)], "c": [parameter(float("inf"))]}
    assert apply_caps(bands, band_norms(bands), {"a": 1.0, "c": 1.0, "unknown": 1.0}) == {}
    assert bands["a"][0].grad is None
    assert bands["b"][0].grad.item() == 9.0


def test_a_sparse_gradient_is_measured_and_capped_as_the_dense_one_is():
    table = nn.Embedding(4, 1, sparse=True)
    table(torch.tensor([1, 1, 2])).sum().backward()
    bands = {"deep": [table.weight]}
    norms = band_norms(bands)
    assert norms["deep"] == pytest.approx(5**0.5)
    apply_caps(bands, norms, {"deep": 1.0})
    expected = torch.tensor([[0.0], [2.0], [1.0], [0.0]]) / 5**0.5
    torch.testing.assert_close(table.weight.grad.to_dense(), expected)
