"""Training as it is really done, held to the definition: each example alone, weighted, summed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradwarden.policy.program import Band
from gradwarden.runtime.masks import make_engine, planner

EXACT = 1e-9
"""The greatest relative error of a float64 gradient."""


@pytest.fixture(autouse=True)
def reproducible(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Seed everything, and run blocks in parts wherever they can be, however small they are."""
    monkeypatch.setitem(planner.CALL_COST, "cpu", 0.0)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def double() -> None:
    """Let everything that a test makes be in float64."""
    torch.set_default_dtype(torch.float64)


def thirds(model: nn.Module) -> tuple[Band, ...]:
    """Three bands of about as many parameters each, in the order of the model, the last ones first."""
    names = [name for name, _ in model.named_parameters()]
    cuts = [0, len(names) // 3, 2 * len(names) // 3, len(names)]
    parts = [tuple(names[low:high]) for low, high in pairwise(cuts)]
    return tuple(Band(f"band{k}", (), part) for k, part in enumerate(reversed(parts)))


def weights_of(examples: int, bands: int, seed: int = 0, closed: int | None = None) -> Tensor:
    """Weights [examples, bands] with zeros, fractions and ones; none where a band is closed."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor([0.0, 0.25, 0.7, 1.0, 1.0, 1.6])
    weights = values[torch.randint(len(values), (examples, bands), generator=generator)]
    if closed is not None:
        weights[:, closed] = 0.0
    return weights


def definition(
    model: nn.Module, bands: Sequence[Band], weights: Tensor, alone: Callable[[int], Tensor]
) -> dict[str, Tensor]:
    """The weighted sum of the gradients of examples run one by one; without bands that none may shape.

    alone: the loss of one example, run by itself.
    """
    home = {name: k for k, band in enumerate(bands) for name in band.parameters}
    open_ = {n: p for n, p in model.named_parameters() if p.requires_grad and bool(weights[:, home[n]].any())}
    total = {name: torch.zeros_like(p) for name, p in open_.items()}
    for row in range(len(weights)):
        found = torch.autograd.grad(alone(row), list(open_.values()), allow_unused=True)
        for name, gradient in zip(open_, found, strict=True):
            if gradient is not None:
                total[name] += float(weights[row, home[name]]) * gradient.to_dense()
    return total


def worst(model: nn.Module, want: dict[str, Tensor]) -> float:
    """The greatest error of a gradient, relative to the largest entry of its tensor.

    A tensor whose gradient is below a millionth of the largest of the model is held to that.
    """
    overall = max((float(g.abs().max()) for g in want.values()), default=0.0)
    errors = [0.0]
    for name, parameter in model.named_parameters():
        if name in want:
            have = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.to_dense()
            scale = max(float(want[name].abs().max()), 1e-6 * overall) or 1.0
            errors.append(float((have - want[name]).abs().max()) / scale)
        else:
            assert parameter.grad is None, f"{name} has a gradient, though no example may reach it"
    return max(errors)


def check(
    model: nn.Module,
    losses: Callable[[int], Tensor],
    alone: Callable[[int, int], Tensor],
    sizes: Sequence[int],
    engine: str,
    *,
    within: float = EXACT,
    arm: Callable[[Any, int, Tensor], None] | None = None,
) -> Any:
    """Run batches of these sizes under various weights by an engine, and return it.

    losses(batch) are those of the whole batch, alone(batch, row) that of one example by itself. arm(engine,
    batch, weights): how the engine is armed, where otherwise than by weights alone.
    """
    bands = thirds(model)
    masks = make_engine(model, bands, engine)
    try:
        for number, size in enumerate(sizes):
            weights = weights_of(size, len(bands), number, closed=2 if number % 3 == 2 else None)
            masks.disarm()
            want = definition(model, bands, weights, lambda row, number=number: alone(number, row))
            model.zero_grad(set_to_none=True)
            if arm is None:
                masks.arm(weights)
            else:
                arm(masks, number, weights)
            if bool(weights.any()):
                masks.backward(losses(number), 1.0)
            error = worst(model, want)
            assert error <= within, f"batch {number} of {size} is off by {error:.1e}"
    finally:
        masks.close()
    return masks


@pytest.fixture
def assert_exact() -> Callable[..., Any]:
    return check


@pytest.fixture
def bands_of() -> Callable[[nn.Module], tuple[Band, ...]]:
    return thirds


@pytest.fixture
def some_weights() -> Callable[..., Tensor]:
    return weights_of


@pytest.fixture
def by_definition() -> Callable[..., dict[str, Tensor]]:
    return definition


@pytest.fixture
def worst_error() -> Callable[[nn.Module, dict[str, Tensor]], float]:
    return worst
