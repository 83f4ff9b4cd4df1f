"""Held to the definition: real models, each example back-propagated alone in float64, weighted and summed."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradwarden.policy.model_map import bind
from gradwarden.policy.program import Band, Selector
from gradwarden.runtime import ModelMap
from gradwarden.runtime.masks import make_engine

EXACT = 1e-9
"""The greatest relative error of a float64 gradient."""

Inputs = Mapping[str, Tensor]
Losses = Callable[[nn.Module, Inputs], Tensor]

WEIGHTS = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.25, 0.7, 1.6, 3.0], dtype=torch.float64)


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def double_throughout(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets a library's models run those of their parts in float64 that they would run in float32.

    Their rounding would hide errors that matter. Takes the modules in which the models are defined.
    """

    class Wide(ModuleType):
        float32 = torch.float64

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    def widen(*names: str) -> None:
        monkeypatch.setattr(Tensor, "float", Tensor.double)
        for name in names:
            monkeypatch.setattr(sys.modules[name], "torch", Wide("torch"))

    return widen


def first_output(model: nn.Module, inputs: Inputs) -> Tensor:
    """One loss per example from the first output, curved so that no gradient is constant."""
    result = model(**inputs)
    output = result if isinstance(result, Tensor) else next(iter(result.values()))
    return output.pow(2).flatten(1).mean(1)


def next_tokens(model: nn.Module, inputs: Inputs) -> Tensor:
    """Cross entropy of every example's next tokens, its mean over what is not padding."""
    logits = model(**inputs).logits[:, :-1]
    losses = functional.cross_entropy(logits.transpose(1, 2), inputs["input_ids"][:, 1:], reduction="none")
    mask = inputs.get("attention_mask")
    kept = torch.ones_like(losses) if mask is None else mask[:, 1:].to(losses.dtype)
    return (losses * kept).sum(1) / kept.sum(1)


def banded(model: nn.Module, *selectors: Selector) -> tuple[Band, ...]:
    """Bind bands to the model's derived map: by thirds of the depth, unless told how."""
    chosen = selectors or (Selector("top", 330_000), Selector("next", 340_000), Selector("rest"))
    bands = tuple(Band(f"band{number}", (selector,)) for number, selector in enumerate(chosen))
    return bind(bands, ModelMap.from_module(model))


def definition(
    model: nn.Module, bands: tuple[Band, ...], weights: Tensor, inputs: Inputs, losses: Losses
) -> dict[str, Tensor]:
    """Each example alone, its gradient times its weight per band, summed; normaliser 3."""
    home = {name: k for k, band in enumerate(bands) for name in band.parameters}
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {n: torch.zeros_like(p) for n, p in parameters.items() if bool(weights[:, home[n]].any())}
    for row in range(len(weights)):
        alone = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
        (loss,) = losses(model, alone)
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if name in total and gradient is not None:
                total[name] += weights[row, home[name]] * gradient / 3
    return total


def worst(model: nn.Module, want: dict[str, Tensor]) -> tuple[float, str]:
    """The greatest error of a gradient, relative to the largest entry of its tensor, and where it is.

    A tensor whose gradient is below a millionth of the largest of the model is held to that.
    """
    overall = max((float(g.abs().max()) for g in want.values()), default=0.0)
    found = [(0.0, "")]
    for name, parameter in model.named_parameters():
        if name in want:
            have = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            scale = max(float(want[name].abs().max()), 1e-6 * overall) or 1.0
            found.append((float((have - want[name]).abs().max()) / scale, name))
        else:
            assert parameter.grad is None, f"{name} has a gradient, though no example may reach it"
    return max(found)


def check(
    model: nn.Module,
    batches: list[Inputs],
    losses: Losses = first_output,
    *,
    bands: tuple[Band, ...] | None = None,
    engine: str = "fused",
    within: float = EXACT,
) -> Any:
    """Run batches under random weights, and under weights that leave a band out, by an engine and by `split`.

    Returns the engine. A warning is an error.
    """
    bands = banded(model) if bands is None else bands
    attached = None
    for name in ("split", engine):
        generator = torch.Generator().manual_seed(1)
        masks = make_engine(model, bands, name)
        for number, inputs in enumerate(batches):
            batch = len(next(iter(inputs.values())))
            weights = WEIGHTS[torch.randint(len(WEIGHTS), (batch, len(bands)), generator=generator)]
            weights[0] = 1.0
            weights[:, -1] *= number % 2 == 0
            model.zero_grad(set_to_none=True)
            masks.disarm()
            want = definition(model, bands, weights, inputs, losses)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                masks.arm(weights)
                masks.backward(losses(model, inputs), 3.0)
            error, where = worst(model, want)
            assert error <= within, f"{name}: batch {number}: {where} is off by {error:.1e}"
        masks.close()
        attached = masks
    assert attached is not None
    assert attached.name == engine
    return attached


@pytest.fixture
def assert_exact() -> Callable[..., Any]:
    return check


@pytest.fixture
def bands_of() -> Callable[..., tuple[Band, ...]]:
    return banded


@pytest.fixture
def language_loss() -> Losses:
    return next_tokens


@pytest.fixture
def token_batches() -> list[Inputs]:
    """Three batches of different length, padded to the right, with their attention masks."""
    batches = []
    for length, ends in ((6, (6, 5, 3, 6, 4)), (6, (2, 6, 6, 3, 6)), (5, (5, 5, 3))):
        ids = torch.randint(1, 30, (len(ends), length))
        mask = (torch.arange(length) < torch.tensor(ends)[:, None]).long()
        batches.append({"input_ids": ids * mask, "attention_mask": mask})
    return batches
