"""At half precision a sum that nearly cancels is told from one that is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gradwarden.policy.program import Band
from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.masks import make_engine
from gradwarden.runtime.masks.borders import Border
from gradwarden.runtime.masks.call import scaled
from gradwarden.runtime.masks.layers.convolution import _Parameters
from gradwarden.runtime.masks.rows import Rows

CANCELLING = (8, 37, 52, 76, 106)
"""Of the seeds below 120, those of models in which the rounding of a sum's terms exceeds 6% of the sum."""


def model_of(seed: int) -> nn.Module:
    """Convolutions of one channel over two places: a bias is one number, the sum of a few."""
    torch.manual_seed(seed)
    layers = nn.Conv1d(3, 1, 3, padding=1), nn.Tanh(), nn.Conv1d(1, 1, 3, padding=1), nn.Tanh(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(2, 4))


def refusal(model: nn.Module, semantics: str = "mask") -> str:
    """Run a model at half precision; return why the engine will not, empty where it does."""
    names = [name for name, _ in model.named_parameters()]
    bands = tuple(Band(f, (), tuple(n for n in names if n.startswith(f))) for f in ("5.", "2.", "0."))
    engine: Any = make_engine(model, bands, "fused", semantics=semantics)
    engine.arm(torch.ones(4, 3))
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(torch.randn(4, 3, 2))
    except MaskError as error:
        return error.message
    return ""


@pytest.mark.parametrize("semantics", ["mask", "detach"])
def test_sums_that_nearly_cancel_are_not_refused_for_the_rounding_of_their_terms(semantics: str) -> None:
    assert {refusal(model_of(seed), semantics) for seed in CANCELLING} == {""}


def test_a_bias_whose_rows_get_the_weights_of_others_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    summed = _Parameters.summed

    def astray(self: _Parameters, rows: Rows | None, bias_rows: Rows | None) -> Any:
        weight, bias = summed(self, rows, bias_rows)
        if bias_rows is not None:
            layout = self.call.layout
            weighed = bias_rows.weigh(bias_rows.pick(self.grad, layout).flip(0), layout)
            bias = scaled(weighed.transpose(0, 1).flatten(1).sum(1), bias_rows).float()
        return weight, bias

    monkeypatch.setattr(_Parameters, "summed", astray)
    assert all("bias` is" in refusal(model_of(seed)) for seed in (*range(16), *CANCELLING))


class Kinked(nn.Module):
    """x + second(relu(first(x))), as if kernels rounded by the size of the batch: [B, 8] -> [B, 8].

    An eighth of what comes to the ReLU is zero but for rounding. dropout: whether the block drops numbers.
    """

    def __init__(self, dropout: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 32), nn.Linear(32, 8)
        self.close = torch.arange(32) % 8 == 0
        self.dropout = nn.Dropout(0.1) if dropout else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.first(x)
        inner = torch.where(self.close, 0.01 * (inner - inner.detach()), inner) + 1e-8 * (-1) ** len(x)
        return x + self.dropout(self.second(torch.relu(inner)))


def ways_of_kinked(before: nn.Module, *, dropout: bool = False) -> tuple[set[str], str]:
    """Run four kinked blocks with fractional weights; return in which ways they were, and why."""
    torch.manual_seed(0)
    blocks = nn.Sequential(*(Kinked(dropout) for _ in range(4)))
    model = nn.Sequential(before, blocks, nn.Linear(8, 3))
    names = [name for name, _ in model.named_parameters()]
    firsts = ("2.", "1.3.", "1.2.", "1.1.", "1.0.")
    bands = tuple(Band(f, (), tuple(n for n in names if n.startswith(f))) for f in firsts)
    engine = make_engine(model, bands, "fused")
    engine.arm(0.25 + 0.5 * torch.rand(6, 5))
    model(torch.randn(6, 8))
    choices = [choice for choice in engine.explain() if choice.name.startswith("1.")]
    return {choice.way for choice in choices}, choices[0].reason


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("before", [nn.Identity(), nn.Dropout(0.1)])
def test_blocks_are_not_given_up_for_kinks_that_rounding_puts_them_on_either_side_of(
    before: nn.Module, dropout: bool
) -> None:
    assert ways_of_kinked(before, dropout=dropout)[0] == {"scale"}


def test_blocks_with_kinks_are_given_up_where_gradients_are_wrong_and_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turned = Border.turned
    monkeypatch.setattr(Border, "turned", lambda self, grad: 1.2 * turned(self, grad))
    ways, reason = ways_of_kinked(nn.Identity())
    assert ways == {"weigh"}
    assert "would not be exact" in reason
