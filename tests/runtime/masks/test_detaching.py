"""Detach semantics: gradients are those of a plain loop in which closed branches are detached by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from gradwarden.policy.program import Band
from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.masks import make_engine, planner

EXACT = 1e-12
"""The greatest relative error of a float64 gradient."""


@pytest.fixture(autouse=True)
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run in float64, with blocks run in parts wherever they can be."""
    monkeypatch.setitem(planner.CALL_COST, "cpu", 0.0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Severable(nn.Module):
    """A model whose layers can be detached by hand. closed: the names of the layers that are."""

    def __init__(self) -> None:
        super().__init__()
        self.closed: frozenset[str] = frozenset()

    def cut(self, layer: str, x: Tensor) -> Tensor:
        """Return what a layer is given."""
        return x.detach() if layer in self.closed else x


class Part(nn.Module):
    """A residual branch: norm, up, down. It is told what to cut by the model it is in."""

    def __init__(self, width: int, name: str, cut: Callable[[str, Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(width), nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self._name, self._cut = name, [cut]

    def forward(self, x: Tensor) -> Tensor:
        cut = self._cut[0]
        h = self.norm(cut(f"{self._name}.norm", x))
        h = torch.tanh(self.up(cut(f"{self._name}.up", h)))
        return x + self.down(cut(f"{self._name}.down", h))


class Residual(Severable):
    """enter, residual branches, leave. checkpointed: branches are recomputed in the backward pass."""

    def __init__(self, parts: int = 2, checkpointed: bool = False) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(3, 4), nn.Linear(4, 2)
        self.parts = nn.ModuleList(Part(4, f"parts.{i}", self.cut) for i in range(parts))
        self._checkpointed = checkpointed

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(self.cut("enter", x))
        for part in self.parts:
            h = checkpoint(part, h, use_reentrant=False) if self._checkpointed else part(h)
        return self.leave(self.cut("leave", h))

    def batch(self, size: int) -> Tensor:
        return torch.randn(size, 3)


class Stack(Severable):
    """Layers without skips; one of them is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(self.cut("first", x)))
        for _ in range(2):
            h = torch.tanh(self.second(self.cut("second", h)))
        return self.third(self.cut("third", h))

    def batch(self, size: int) -> Tensor:
        return torch.randn(size, 3)


class Attention(nn.Module):
    """A block of a GPT: pre-norm attention and an MLP over flattened tokens."""

    def __init__(self, width: int, name: str, cut: Callable[[str, Tensor], Tensor]) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.RMSNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self._name, self._cut = name, [cut]

    def forward(self, x: Tensor) -> Tensor:
        def run(layer: str, value: Tensor) -> Tensor:
            return self.get_submodule(layer)(self._cut[0](f"{self._name}.{layer}", value))

        query, key, value = run("qkv", run("norm_1", x)).chunk(3, dim=2)
        x = x + run("proj", functional.scaled_dot_product_attention(query, key, value, is_causal=True))
        flat = run("norm_2", x).flatten(0, 1)
        return x + run("down", functional.gelu(run("up", flat))).view(x.shape)


class GPT(Severable):
    """A language model; tied: its head shares the weight of the embedding, and so its band."""

    def __init__(self, blocks: int = 2, tied: bool = False, checkpointed: bool = False) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(7, 4), nn.Embedding(5, 4)
        self.blocks = nn.ModuleList(Attention(4, f"blocks.{i}", self.cut) for i in range(blocks))
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 7, bias=False)
        self._checkpointed = checkpointed
        if tied:
            self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x) + self.places(torch.arange(x.shape[1]))
        for block in self.blocks:
            h = checkpoint(block, h, use_reentrant=False) if self._checkpointed else block(h)
        return self.head(self.cut("head", self.norm(self.cut("norm", h))))

    def batch(self, size: int) -> Tensor:
        return torch.randint(7, (size, 4))


MODELS: dict[str, Callable[[], Any]] = {
    "residual": Residual,
    "recomputed residual": lambda: Residual(checkpointed=True),
    "stack": Stack,
    "gpt": GPT,
    "tied gpt": lambda: GPT(tied=True),
    "recomputed gpt": lambda: GPT(checkpointed=True),
}


def losses_of(model: nn.Module, x: Tensor) -> Tensor:
    """Return one loss per example, curved so that no gradient is constant."""
    return model(x).pow(2).flatten(1).mean(1)


def homes(bands: Sequence[Band]) -> dict[str, int]:
    return {name: number for number, band in enumerate(bands) for name in band.parameters}


def by_hand(model: Any, bands: Sequence[Band], weights: Tensor, x: Tensor) -> dict[str, Tensor]:
    """Return the definition's gradients: each example alone, its closed layers detached; normaliser 3."""
    home, parameters = homes(bands), dict(model.named_parameters())
    tied = {id(p): home[name] for name, p in parameters.items()}
    layers = {name: tied[id(m.weight)] for name, m in model.named_modules() if hasattr(m, "weight")}
    trainable = {name: p for name, p in parameters.items() if p.requires_grad}
    sums = {n: torch.zeros_like(p) for n, p in trainable.items() if bool(weights[:, home[n]].any())}
    for number, row in enumerate(weights.tolist()):
        model.closed = frozenset(name for name, band in layers.items() if not row[band])
        loss = losses_of(model, x[number : number + 1])[0]
        found = [None] * len(trainable)
        if loss.requires_grad:
            found = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True)
        for name, gradient in zip(trainable, found, strict=True):
            if name in sums and gradient is not None:
                sums[name] += row[home[name]] * gradient / 3
    model.closed = frozenset()
    return sums


def by_engine(
    model: Any, bands: Sequence[Band], weights: Tensor, x: Tensor, semantics: str = "detach"
) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    masks = make_engine(model, bands, "auto", semantics=semantics)
    try:
        masks.arm(weights)
        masks.backward(losses_of(model, x), 3.0)
    finally:
        masks.close()
    assert masks.name == "fused"
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_exact(model: Any, bands: Sequence[Band], weights: Tensor, x: Tensor) -> None:
    want, got = by_hand(model, bands, weights, x), by_engine(model, bands, weights, x)
    assert got.keys() <= want.keys()
    largest = max((float(gradient.norm()) for gradient in want.values()), default=0.0)
    for name, gradient in want.items():
        found = got.get(name, torch.zeros_like(gradient))
        error = float((found - gradient).norm())
        assert error <= EXACT * max(float(gradient.norm()), 1e-3 * largest), name


def divided(model: nn.Module, *prefixes: Sequence[str]) -> tuple[Band, ...]:
    """Return a band for each list of prefixes of parameters, and a last one for the rest."""
    names = [name for name, _ in model.named_parameters()]
    chosen = [tuple(n for n in names if n.startswith(tuple(listed))) for listed in prefixes]
    rest = tuple(n for n in names if not any(n in own for own in chosen))
    return tuple(Band(f"b{number}", (), own) for number, own in enumerate([*chosen, rest]))


# --- the definition -----------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.data(), st.integers(0, 2**31), st.sampled_from(sorted(MODELS)))
def test_gradients_are_those_of_branches_detached_by_hand(data, seed, kind):
    torch.manual_seed(seed)
    model = MODELS[kind]()
    names = [name for name, _ in model.named_parameters()]
    count = data.draw(st.integers(1, 3))
    drawn = data.draw(st.lists(st.integers(0, count - 1), min_size=len(names), max_size=len(names)))
    bands = [
        Band(f"b{k}", (), tuple(n for n, home in zip(names, drawn, strict=True) if home == k))
        for k in range(count)
    ]
    weight = st.sampled_from([0.0, 0.0, 1.0, 1.0, 0.5, 2.0])
    rows = data.draw(st.lists(st.lists(weight, min_size=count, max_size=count), min_size=2, max_size=6))
    x = model.batch(len(rows))
    assert_exact(model, bands, torch.tensor(rows, dtype=torch.float64), x)


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_a_closed_band_in_the_middle_for_half_the_batch(kind):
    torch.manual_seed(0)
    model = MODELS[kind]()
    bands = divided(model, ["parts.0", "blocks.0", "second"], ["enter", "first", "words", "places"])
    weights = torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]])
    assert_exact(model, bands, weights, model.batch(4))


# --- what it stops, and what not ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["residual", "gpt"])
def test_below_a_closed_branch_detach_is_not_mask(kind):
    torch.manual_seed(1)
    model = MODELS[kind]()
    bands = divided(model, ["parts.1", "blocks.1"])
    weights = torch.tensor([[0.0, 1.0]] * 3)
    x = model.batch(3)
    detached, masked = (by_engine(model, bands, weights, x, s) for s in ("detach", "mask"))
    assert detached.keys() == masked.keys() == set(bands[1].parameters)
    above = {name for name in bands[1].parameters if name.startswith(("leave", "head", "norm"))}
    for name in detached:
        assert torch.equal(detached[name], masked[name]) == (name in above), name
        assert detached[name].any()


def test_in_a_stack_without_skips_nothing_below_learns():
    torch.manual_seed(2)
    model = Stack()
    bands = divided(model, ["second"])
    x = model.batch(3)
    detached = by_engine(model, bands, torch.tensor([[0.0, 1.0]] * 3), x)
    assert set(detached) == {"third.weight", "third.bias"}
    mixed = by_engine(model, bands, torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 1.0]]), x)
    alone = by_engine(model, bands, torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]), x)
    for name in ("first.weight", "first.bias", "second.weight"):
        assert torch.allclose(mixed[name], alone[name], rtol=EXACT, atol=1e-15)


@pytest.mark.parametrize("kind", ["residual", "stack", "gpt"])
def test_weights_between_zero_and_one_do_not_scale_the_flow(kind):
    torch.manual_seed(3)
    model = MODELS[kind]()
    bands = divided(model, ["parts.1", "second", "blocks.1"])
    weights = torch.tensor([[0.5, 1.0], [1.0, 0.25], [0.125, 1.0]])
    x = model.batch(3)
    detached, masked = (by_engine(model, bands, weights, x, s) for s in ("detach", "mask"))
    assert detached.keys() == masked.keys()
    assert all(torch.equal(detached[name], masked[name]) for name in masked)


def test_a_frozen_layer_of_a_closed_band_stops_the_flow_too():
    torch.manual_seed(4)
    model = Stack()
    for parameter in model.second.parameters():
        parameter.requires_grad_(False)
    bands = divided(model, ["second"])
    weights = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    assert_exact(model, bands, weights, model.batch(3))


def test_gradients_of_single_examples_that_are_clipped_apart_are_detached_as_well():
    torch.manual_seed(5)
    model = Residual()
    bands = divided(model, ["parts.1"])
    weights = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    x = model.batch(3)
    model.closed = frozenset(["parts.1.norm", "parts.1.up", "parts.1.down"])
    want = torch.autograd.grad(losses_of(model, x)[0], model.enter.weight)[0]
    model.closed = frozenset()
    masks = make_engine(model, bands, "fused", semantics="detach")
    masks.arm(weights)
    losses = losses_of(model, x)
    with masks.unweighted():
        found = torch.autograd.grad(losses[0], model.enter.weight, retain_graph=True)[0]
        open_one = torch.autograd.grad(losses[1], model.enter.weight, retain_graph=True)[0]
    masks.backward(losses, 3.0)
    masks.close()
    assert (found - want).norm() <= EXACT * want.norm()
    plain = torch.autograd.grad(losses_of(model, x)[1], model.enter.weight)[0]
    assert (open_one - plain).norm() <= EXACT * plain.norm()


def test_an_engine_detaches_batch_after_batch():
    torch.manual_seed(6)
    model = GPT()
    bands = divided(model, ["blocks.0"], ["blocks.1"])
    masks = make_engine(model, bands, "fused", semantics="detach")
    for seed in range(6):
        weights = torch.randint(2, (4, 3), generator=torch.Generator().manual_seed(seed)).double()
        x = model.batch(4)
        model.zero_grad(set_to_none=True)
        masks.arm(weights)
        losses = losses_of(model, x)
        masks.backward(losses, 3.0)
        got = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        masks.disarm()
        for name, gradient in by_hand(model, bands, weights, x).items():
            found = got.get(name, torch.zeros_like(gradient))
            assert (found - gradient).norm() <= EXACT * max(gradient.norm(), 1e-3), name
    masks.close()


# --- what cannot be detached --------------------------------------------------------------------------------


def refused(model: nn.Module, x: Tensor, engine: str = "auto") -> str:
    """Return why an engine cannot detach a model, from making it to a first backward pass."""
    bands = [Band("a", (), tuple(n for n, _ in model.named_parameters()))]

    def step() -> None:
        masks = make_engine(model, bands, engine, semantics="detach")
        try:
            masks.arm(torch.tensor([[0.0], [1.0], [1.0]]))
            masks.backward(losses_of(model, x), 3.0)
        finally:
            masks.close()

    with pytest.raises(MaskError) as caught:
        step()
    return caught.value.message


class Scaled(nn.Module):
    """A layer and a parameter of its own; functional: the layer's weight is used by function instead."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(3, 3), nn.Linear(3, 3)
        self._way = way
        if way == "parameter":
            self.scale = nn.Parameter(torch.ones(3))
        if way == "frozen":
            self.layer.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        if self._way == "parameter":
            return self.last(self.layer(x) * self.scale)
        if self._way == "keyword":
            return self.last(input=self.layer(x))
        return self.last(functional.linear(self.last(x), self.layer.weight, self.layer.bias))


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("parameter", "`scale` is used outside of supported layers"),
        ("function", "`layer.bias`, `layer.weight` are used outside of supported layers"),
        ("frozen", "`layer.bias`, `layer.weight` are used outside of supported layers"),
        ("keyword", "it is not known whose rows the inputs of `last` are"),
    ],
)
def test_what_has_no_rows_that_could_be_told_apart_is_refused(way, words):
    assert words in refused(Scaled(way), torch.randn(3, 3))


def test_the_reference_engine_cannot_detach():
    assert "the engine `split` cannot detach" in refused(Stack(), torch.randn(3, 3), "split")


def test_modules_that_are_differentiated_whole_are_refused():
    model = Stack()
    bands = divided(model, ["first"])
    with pytest.raises(MaskError, match="`Linear` would be differentiated whole"):
        make_engine(model, bands, "fused", layers={nn.Linear: None}, semantics="detach")
    assert "forward" not in vars(model.first)


def test_unknown_semantics_are_refused():
    with pytest.raises(MaskError, match="unknown mask semantics `detached`"):
        make_engine(Stack(), (), semantics="detached")


def test_layers_of_other_kinds_are_refused():
    model = nn.Sequential(nn.LSTM(3, 3, batch_first=True))
    assert "outside of supported layers" in refused(model, torch.randn(3, 4, 3))


def test_a_batch_that_does_not_show_whose_rows_are_whose_is_refused():
    same = torch.randn(1, 3).expand(3, 3)
    assert "it is not known whose rows" in refused(Stack(), same)


class Shuffled(nn.Module):
    """Runs its first layer on rows in an order that depends on what they hold."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].argsort()
        return self.last(torch.tanh(self.first(x[order]))[order.argsort()])


@pytest.mark.parametrize("open_rows", [[0, 1, 2, 3], [0]], ids=["all", "the one in its place"])
def test_rows_that_move_are_refused_before_any_gradient_is_used(open_rows):
    """Also where nothing flows to the rows that moved: the next batch may be another one."""
    torch.manual_seed(7)
    model = Shuffled()
    bands = [Band("a", (), ("first.weight", "first.bias")), Band("b", (), ("last.weight", "last.bias"))]
    masks = make_engine(model, bands, "auto", semantics="detach")
    x = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 1.0], [2.0, 1.0, 1.0], [3.0, 1.0, 0.0]])
    masks.arm(torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]))
    masks.backward(losses_of(model, x), 3.0)
    model.zero_grad(set_to_none=True)
    weights = torch.tensor([[1.0, 0.0], [0.5, 0.0], [1.0, 0.0], [0.0, 0.0]])
    weights[open_rows, 1] = 1.0
    masks.arm(weights)
    losses = losses_of(model, x[[0, 3, 1, 2]])
    with pytest.raises(MaskError, match="the rows of `first` are not where the probe has found them"):
        masks.backward(losses, 3.0)
    assert all(parameter.grad is None for parameter in model.parameters())
    masks.close()


class Turning(nn.Module):
    """Uses a weight by function once it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)
        self.turned = False

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return functional.linear(h, self.last.weight) if self.turned else self.last(h)


def test_a_use_that_the_probe_has_not_seen_is_refused_as_well():
    torch.manual_seed(8)
    model = Turning()
    masks = make_engine(model, divided(model, ["first"]), "auto", semantics="detach")
    weights, x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), torch.randn(3, 3)
    masks.arm(weights)
    masks.backward(losses_of(model, x), 3.0)
    model.turned = True
    model.zero_grad(set_to_none=True)
    masks.arm(weights)
    losses = losses_of(model, x)
    with pytest.raises(MaskError, match=r"`last\.weight` is used outside of supported layers"):
        masks.backward(losses, 3.0)
    assert all(parameter.grad is None for parameter in model.parameters())
    masks.close()


def test_where_every_way_to_an_open_band_is_closed_there_is_no_gradient():
    torch.manual_seed(9)
    model = Stack()
    masks = make_engine(model, divided(model, ["third"]), "auto", semantics="detach")
    masks.arm(torch.tensor([[0.0, 1.0]] * 3))
    masks.backward(losses_of(model, model.batch(3)), 3.0)
    masks.close()
    assert all(parameter.grad is None for parameter in model.parameters())
