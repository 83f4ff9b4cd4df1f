"""Every layer, between two linear maps and as the first of its model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

from gradwarden.policy.program import Band
from gradwarden.runtime.masks import make_engine

BATCH = 5


class Between(nn.Module):
    """A layer whose input and output gradients both matter: [B, …] -> [B, 2]."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...], call: Callable[..., Tensor] | None) -> None:
        super().__init__()
        self.enter = nn.Linear(shape[-1], shape[-1])
        self.layer = layer
        self.call = call or (lambda layer, x: layer(x))
        with torch.no_grad():
            width = self.call(layer, torch.zeros(2, *shape)).flatten(1).shape[1]
        self.leave = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(torch.tanh(self.call(self.layer, self.enter(x))).flatten(1))


class First(nn.Module):
    """A layer whose inputs need no gradient, or are indices: [B, …] -> [B, 2]."""

    def __init__(self, layer: nn.Module, inputs: Tensor, call: Callable[..., Tensor] | None) -> None:
        super().__init__()
        self.layer = layer
        self.call = call or (lambda layer, x: layer(x))
        with torch.no_grad():
            width = self.call(layer, inputs[:2]).flatten(1).shape[1]
        self.leave = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(torch.tanh(self.call(self.layer, x)).flatten(1))


def time_first(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x.transpose(0, 1)).transpose(0, 1)


def flat(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x.flatten(0, 1)).view(*x.shape[:2], -1)


FAST = {
    "Linear": (lambda: nn.Linear(4, 3), (4,), None),
    "Linear without bias": (lambda: nn.Linear(4, 3, bias=False), (3, 4), None),
    "Linear, time first": (lambda: nn.Linear(4, 3), (3, 4), time_first),
    "Linear, flattened tokens": (lambda: nn.Linear(4, 3), (3, 4), flat),
    "LayerNorm": (lambda: nn.LayerNorm(4), (3, 4), None),
    "LayerNorm over two dimensions": (lambda: nn.LayerNorm((3, 4), bias=False), (3, 4), None),
    "RMSNorm": (lambda: nn.RMSNorm(4), (3, 4), None),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), (4, 3, 2), None),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1, groups=2), (4, 5), None),
    "Conv2d": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode="reflect"), (3, 5, 4), None),
    "Conv3d": (lambda: nn.Conv3d(2, 3, 2, dilation=(1, 2, 1)), (2, 3, 4, 3), None),
    "ConvTranspose1d": (
        lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1, groups=2),
        (4, 3),
        None,
    ),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(3, 2, 3, stride=(2, 1), padding=1), (3, 3, 2), None),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(2, 3, 2, dilation=2, bias=False), (2, 2, 1, 2), None),
}


def one_band_each(model: nn.Module) -> tuple[Band, ...]:
    """Return a band for what leaves the layer, one for its weights, one for its biases and what enters it."""
    names = [name for name, _ in model.named_parameters()]
    leave = [n for n in names if n.startswith("leave")]
    layer = [n for n in names if n.startswith("layer") and "bias" not in n]
    rest = [n for n in names if n not in (*leave, *layer)]
    return tuple(Band(f"band{k}", (), tuple(group)) for k, group in enumerate((leave, layer, rest)) if group)


@pytest.mark.parametrize("name", FAST)
def test_layers_weigh_their_own_rows(name: str, assert_exact: Any) -> None:
    make, shape, call = FAST[name]
    batches = [{"x": torch.randn(BATCH, *shape)} for _ in range(3)]
    for model in (Between(make(), shape, call), First(make(), batches[0]["x"], call)):
        engine = assert_exact(model, batches, bands=one_band_each(model))
        assert set(engine.paths.values()) == {"fast"}
        assert engine.notes == []


@pytest.mark.parametrize("name", FAST)
def test_weights_that_are_all_far_from_one(name: str) -> None:
    make, shape, call = FAST[name]
    model, x = Between(make(), shape, call), torch.randn(BATCH, *shape)
    weights = torch.rand(BATCH, 3) * torch.tensor([1.0, 1e-200, 1e9])
    weights[1, 1] = 0.0
    found = []
    for engine in ("split", "fused"):
        masks = make_engine(model, one_band_each(model), engine)
        model.zero_grad()
        masks.arm(weights[:, : len(one_band_each(model))])
        masks.backward(model(x).square().sum(1), 1.0)
        found.append([p.grad for p in model.parameters()])
        masks.close()
    for want, got in zip(*found, strict=True):
        assert want is not None
        assert got is not None
        assert float((got - want).abs().max() / want.abs().max()) < 1e-9


class Copies(TorchDispatchMode):
    """Counts the rows that are gathered."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.index_select.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 3), lambda: Conv1D(3, 4)], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("tokens", [64, 2])
def test_rows_of_long_examples_are_multiplied_where_they_lie(
    make: Callable[[], nn.Module], tokens: int
) -> None:
    x = torch.randn(BATCH, tokens, 4)
    model = First(make(), x, None)
    bands, weights = one_band_each(model), torch.ones(BATCH, 3)
    weights[torch.tensor([0, 3]), 1] = weights[1, 2] = 0.0
    gradients = [torch.autograd.grad(model(row[None]).square().sum(), list(model.parameters())) for row in x]
    engine = make_engine(model, bands, "fused")
    for _ in range(3):  # it looks more closely at the first two
        model.zero_grad()
        engine.arm(weights)
        losses = model(x).square().sum(1)
        with Copies() as copies:
            engine.backward(losses, 1.0)
    for number, (name, parameter) in enumerate(model.named_parameters()):
        band = next(k for k, band in enumerate(bands) if name in band.parameters)
        want = sum(w * each[number] for w, each in zip(weights[:, band], gradients, strict=True))
        torch.testing.assert_close(parameter.grad, want, rtol=1e-9, atol=1e-12)
    bias = 1  # its sum is over other examples than the weight's
    assert copies.count == (bias if tokens == 64 else bias + 2)


@pytest.mark.parametrize("padding", [None, 0])
def test_embeddings(padding: int | None, assert_exact: Any) -> None:
    batches = [{"x": torch.randint(0, 7, (BATCH, 3))} for _ in range(3)]
    model = First(nn.Embedding(7, 4, padding_idx=padding), batches[0]["x"], None)
    engine = assert_exact(model, batches, bands=one_band_each(model))
    assert set(engine.paths.values()) == {"fast"}


class Tied(nn.Module):
    """An embedding whose weight is the head's, by module or by function."""

    def __init__(self, by_module: bool) -> None:
        super().__init__()
        self.words, self.middle = nn.Embedding(7, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False) if by_module else None
        if self.head is not None:
            self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.middle(self.words(x)))
        return h @ self.words.weight.t() if self.head is None else self.head(h)


@pytest.mark.parametrize("by_module", [True, False])
def test_a_tied_weight_has_the_weights_of_its_one_band_in_both_uses(
    by_module: bool, assert_exact: Any
) -> None:
    model = Tied(by_module)
    middle = ("middle.weight", "middle.bias")
    bands = (Band("middle", (), middle), Band("words", (), ("words.weight",)))
    engine = assert_exact(model, [{"x": torch.randint(0, 7, (BATCH, 3))} for _ in range(3)], bands=bands)
    assert engine.paths["words.weight"] == ("fast" if by_module else "reference")
    assert ("words.weight" in "".join(engine.notes)) == (not by_module)
