"""Weights of any size in models of which a part computes in float16, whose range is narrow."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradwarden.policy.program import Band
from gradwarden.runtime.masks import make_engine
from gradwarden.runtime.masks.engine import Engine

WIDTH, PLACES, ROWS = 8, 3, 6
PARTS = ("stem", "blocks.0", "blocks.1", "blocks.2", "head")
ALLOWED = 2.0**-7
"""The error of an entry, relative to the largest of its parameter: some roundings of float16, of 2^-11."""

engines = pytest.mark.parametrize("engine", ["fused", "split"])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def halved(half: bool) -> AbstractContextManager[object]:
    return torch.autocast("cpu", dtype=torch.float16) if half else nullcontext()


class Gain(nn.Module):
    """A module that only the general path covers. x [..., W] -> [..., W]."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.matrix).tanh()


class Layer(nn.Linear):
    """A linear layer that may compute in float16, whatever is around it."""

    half = False

    def forward(self, x: Tensor) -> Tensor:
        with halved(self.half):
            return super().forward(x).float()


class Block(nn.Module):
    """x [B, T, W] -> [B, T, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.down, self.gain = nn.Linear(2 * WIDTH, WIDTH), Gain()
        self.half = False

    def forward(self, x: Tensor) -> Tensor:
        with halved(self.half):
            branch = self.gain(self.down(self.up(self.norm(x)).tanh()))
        return x + branch.float()


class Model(nn.Module):
    """x [B, T, W] -> [B, T, 3]. halves: the parts that compute in float16."""

    def __init__(self, halves: frozenset[str]) -> None:
        super().__init__()
        self.stem, self.head = Layer(WIDTH, WIDTH), Layer(WIDTH, 3)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.halve(halves)

    def halve(self, halves: frozenset[str]) -> None:
        for name in PARTS:
            self.get_submodule(name).half = name in halves  # type: ignore[assignment]
        self.whole = "all" in halves

    def forward(self, x: Tensor) -> Tensor:
        with halved(self.whole):
            x = self.stem(x)
            for block in self.blocks:
                x = block(x)
            return self.head(x).float()


def bands_of(model: nn.Module) -> list[Band]:
    names = [name for name, _ in model.named_parameters()]
    return [Band(part, (), tuple(n for n in names if n.startswith(part + "."))) for part in PARTS]


def by_row(y: Tensor) -> Tensor:
    return y.flatten(1).sum(1)


def by_owner(owners: Tensor) -> Callable[[Tensor], Tensor]:
    def losses(y: Tensor) -> Tensor:
        return y.new_zeros(ROWS).index_add(0, owners.flatten(), y.sum(2).flatten())

    return losses


def assert_exact(
    model: Model, weights: Tensor, x: Tensor, losses_of: Callable[[Tensor], Tensor] = by_row
) -> None:
    """Compare the gradients with those of single examples in float32, weighted and added up in float64."""
    halves = frozenset(part for part in PARTS if model.get_submodule(part).half)  # type: ignore[misc]
    whole = model.whole
    model.halve(frozenset())
    losses = losses_of(model(x))
    names, parameters = zip(*model.named_parameters(), strict=True)
    each = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
    model.halve(halves | ({"all"} if whole else set()))
    for place, (name, parameter) in enumerate(zip(names, parameters, strict=True)):
        column = weights[:, [name.startswith(part + ".") for part in PARTS].index(True)]
        want = sum(weight * one[place].double() for weight, one in zip(column, each, strict=True))
        if not column.any():
            assert parameter.grad is None, name
            continue
        assert isinstance(want, Tensor)
        assert parameter.grad is not None, name
        error = float((parameter.grad.double() - want).abs().max() / want.abs().max())
        assert error <= ALLOWED, f"{name}: {error:.3f}"


def step(masks: Engine, model: Model, weights: Tensor, x: Tensor, scale: float = 1.0) -> None:
    """Leave a batch's gradients in `.grad`. scale: of the losses in the backward pass."""
    model.zero_grad()
    masks.arm(weights)
    masks.backward(by_row(model(x)) * scale, 1.0)
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= scale


weight = st.one_of(st.just(0.0), st.just(1.0), st.floats(0.0, 24.0).map(lambda power: 2.0**-power))
tables = st.lists(
    st.lists(weight, min_size=len(PARTS), max_size=len(PARTS)), min_size=ROWS, max_size=ROWS
).map(lambda rows: torch.tensor(rows, dtype=torch.float64))
open_tables = st.lists(
    st.lists(st.floats(0.0, 24.0), min_size=len(PARTS), max_size=len(PARTS)), min_size=ROWS, max_size=ROWS
).map(lambda rows: 2.0 ** -torch.tensor(rows, dtype=torch.float64))


@engines
@pytest.mark.parametrize(
    "halves",
    [("all",), ("blocks.0",), ("blocks.1",), ("blocks.1", "blocks.2"), ("head",), ("stem", "head")],
    ids=" ".join,
)
def test_gradients_are_exact_wherever_a_part_computes_in_float16(
    engine: str, halves: tuple[str, ...]
) -> None:
    model = Model(frozenset(halves))
    masks = make_engine(model, bands_of(model), engine)
    x = torch.randn(ROWS, PLACES, WIDTH)

    @settings(max_examples=4, deadline=None)
    @given(tables | open_tables)
    def check(weights: Tensor) -> None:
        step(masks, model, weights, x)
        assert_exact(model, weights, x)

    check()
    assert engine == masks.name


@engines
def test_packed_sequences_in_a_model_with_a_part_in_float16(engine: str) -> None:
    model = Model(frozenset({"blocks.1"}))
    masks = make_engine(model, bands_of(model), engine)
    x, owners = torch.randn(4, PLACES, WIDTH), torch.arange(4 * PLACES).view(4, PLACES) % ROWS

    @settings(max_examples=4, deadline=None)
    @given(open_tables)
    def check(weights: Tensor) -> None:
        model.zero_grad()
        masks.arm(weights, owners)
        masks.backward(by_owner(owners)(model(x)), 1.0)
        assert_exact(model, weights, x, by_owner(owners))

    check()


@pytest.mark.parametrize("alike", [False, True], ids=["by band", "for all bands"])
def test_a_part_that_turns_to_float16_later_is_exact_from_the_first_batch_on(alike: bool) -> None:
    model = Model(frozenset())
    masks = make_engine(model, bands_of(model), "fused")
    x, weights = torch.randn(ROWS, PLACES, WIDTH), torch.ones(ROWS, len(PARTS), dtype=torch.float64)
    weights[:, slice(None) if alike else slice(1, 4)] = 2.0 ** -torch.arange(10, 16)[:, None].double()
    for halves in ((), ("blocks.1",), ("blocks.1",), ()):
        model.halve(frozenset(halves))
        step(masks, model, weights, x, 2.0**-6)
        assert_exact(model, weights, x)


@pytest.mark.parametrize("scale", [2.0**-6, 1.0, 2.0**9])
def test_gradients_leave_the_range_no_sooner_than_those_of_the_plain_step(scale: float) -> None:
    model = Model(frozenset({"all"}))
    masks = make_engine(model, bands_of(model), "fused")
    x = torch.randn(ROWS, PLACES, WIDTH)
    weights = 2.0 ** torch.randint(-20, 3, (ROWS, len(PARTS))).double()
    step(masks, model, weights, x, scale)
    assert_exact(model, weights, x)
