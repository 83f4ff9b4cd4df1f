"""Blocks that run in parts: gradients stay what they are, and work that a mask forbids is not done."""

from __future__ import annotations

import copy
import gc
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import inf
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from gradwarden.policy.program import Band
from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.masks import differentiation, make_engine, planner
from gradwarden.runtime.masks.fused import FusedEngine
from gradwarden.runtime.masks.graph import Uses, uses
from gradwarden.runtime.masks.parts import beside_graph

WIDTH, TOKENS, WORDS = 8, 3, 7


@pytest.fixture(autouse=True)
def always_in_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a second call of a block cost nothing, so that small ones are run in parts as well."""
    monkeypatch.setitem(planner.CALL_COST, "cpu", 0.0)
    monkeypatch.setitem(planner.FREEZING_COST, "cpu", 0.0)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Gain(nn.Module):
    """A parameter that no supported layer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class Block(nn.Module):
    """Attention and an MLP. kind: what is unusual about it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        biased = kind != "unbiased"
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH, biased), nn.Linear(WIDTH, WIDTH, biased)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH, biased), nn.Linear(2 * WIDTH, WIDTH, biased)
        self.gain = Gain() if kind == "loose" else nn.Identity()
        self.kind = kind

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = self.qkv(self.norm(x)).chunk(3, dim=2)
        return self.proj(functional.scaled_dot_product_attention(query, key, value, mask))

    def feed(self, x: Tensor) -> Tensor:
        return self.down(functional.gelu(self.up(self.gain(x))))

    def forward(self, x: Tensor, *, mask: Tensor | None = None, extra: Any = None) -> Any:
        x = x + self.attend(x, mask)
        if self.kind == "inner checkpoint":
            x = x + checkpoint(self.feed, x, use_reentrant=False)
        elif self.kind == "in place":
            x = x.add_(self.feed(x.clone()))
        else:
            x = x + self.feed(x)
        if self.kind == "random":
            x = x + 0.0 * torch.rand_like(x) if self.training else x
        return (x, {"doubled": 2.0 * x.detach()}) if self.kind == "tuple" else x


KINDS = [
    "plain",
    "unbiased",
    "loose",
    "inner checkpoint",
    "outer checkpoint",
    "in place",
    "random",
    "tuple",
    "masked",
    "twice",
]


class Model(nn.Module):
    """Words [B, T] -> [B, T, WORDS], through three blocks."""

    def __init__(self, kind: str = "plain", blocks: int = 3) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(Block(kind) for _ in range(blocks))
        self.head = nn.Linear(WIDTH, WORDS)
        self.kind = kind
        self.extra: Any = None

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words)
        mask = None
        if self.kind == "masked":
            mask = (words[:, None, :] > 0) | torch.eye(words.shape[1], dtype=torch.bool)
        for block in [*self.blocks, *self.blocks] if self.kind == "twice" else self.blocks:
            if self.kind == "outer checkpoint":
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x, mask=mask, extra=self.extra)
            x = x[0] if isinstance(x, tuple) else x
        return self.head(x)


def bands_of(model: nn.Module) -> tuple[Band, ...]:
    """A band for the head, one for each block from the top, and one for the words."""
    names = [name for name, _ in model.named_parameters()]
    groups = ["head.", *(f"blocks.{i}." for i in reversed(range(len(model.blocks)))), "words."]
    return tuple(Band(g, (), tuple(n for n in names if n.startswith(g))) for g in groups)


def losses_of(model: nn.Module, words: Tensor) -> Tensor:
    return model(words).pow(2).flatten(1).mean(1)


def wanted(model: nn.Module, weights: Tensor, words: Tensor) -> dict[str, Tensor]:
    """Return the sum over examples of their own gradients, each weighed by band."""
    home = {name: k for k, band in enumerate(bands_of(model)) for name in band.parameters}
    parameters = dict(model.named_parameters())
    sums = {n: torch.zeros_like(p) for n, p in parameters.items() if bool(weights[:, home[n]].any())}
    for row in range(len(words)):
        found = torch.autograd.grad(losses_of(model, words[row : row + 1])[0], list(parameters.values()))
        for name, gradient in zip(parameters, found, strict=True):
            if name in sums:
                sums[name] += weights[row, home[name]] * gradient
    return sums


def step(engine: FusedEngine, model: nn.Module, weights: Tensor, words: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    engine.arm(weights)
    engine.backward(losses_of(model, words), 1.0)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    largest = max(float(gradient.abs().max()) for gradient in want.values())
    for name, gradient in want.items():
        assert float((got[name] - gradient).abs().max()) <= 1e-10 * largest, name


def staircase(depths: Sequence[int], bands: int = 5) -> Tensor:
    """Weights [B, bands]: example i reaches the `depths[i]` shallowest bands."""
    return torch.tensor([[1.0] * depth + [0.0] * (bands - depth) for depth in depths])


def ways(engine: FusedEngine) -> dict[str, str]:
    return {choice.name: choice.way for choice in engine.explain()}


# --- exactness ----------------------------------------------------------------------------------------------

weight = st.sampled_from([0.0, 1.0, 0.5, 2.0])
depth_rows = st.lists(st.integers(0, 5), min_size=2, max_size=6).filter(any)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12)
@given(st.data(), depth_rows, st.booleans())
def test_gradients_are_those_of_each_example_alone(
    kind: str, data: st.DataObject, depths: list[int], fractional: bool
) -> None:
    torch.manual_seed(len(depths))
    model = Model(kind)
    weights = staircase(depths)
    if fractional:
        weights *= torch.tensor(data.draw(st.lists(weight, min_size=5, max_size=5)))
    words = torch.randint(WORDS, (len(depths), TOKENS))
    engine = make_engine(model, bands_of(model), "fused")
    if weights.any():
        assert_equal(step(engine, model, weights, words), wanted(model, weights, words))


@pytest.mark.parametrize("kind", ["plain", "loose", "tuple", "twice"])
@settings(max_examples=4)
@given(st.lists(st.lists(weight, min_size=5, max_size=5), min_size=2, max_size=5))
def test_any_example_may_shape_any_block(kind: str, drawn: list[list[float]]) -> None:
    torch.manual_seed(len(drawn))
    model, weights = Model(kind), torch.tensor(drawn)
    words = torch.randint(WORDS, (len(drawn), TOKENS))
    engine = make_engine(model, bands_of(model), "fused")
    if weights.any():
        assert_equal(step(engine, model, weights, words), wanted(model, weights, words))


MIXED = torch.tensor([[1.0, 1, 0, 1, 1], [1, 0, 0.5, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0]])
"""Every block is open to some examples and passed through by others; what lies before it is closed to two."""


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_every_kind_are_passed_through_by_those_who_may_not_shape_them(kind: str) -> None:
    torch.manual_seed(0)
    model = Model(kind)
    words = torch.randint(WORDS, (4, TOKENS))
    engine = make_engine(model, bands_of(model), "fused")
    for _ in range(2):
        assert_equal(step(engine, model, MIXED, words), wanted(model, MIXED, words))
    found = [ways(engine)[f"blocks.{number}"] for number in range(3)]
    if kind == "inner checkpoint":  # what is recomputed later is not frozen then
        assert found == ["split", "slice", "slice"]
    else:
        assert found == ["freeze" if kind == "twice" else "split", "freeze", "freeze"]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_block_whose_bands_are_open_to_different_examples_is_not_frozen() -> None:
    torch.manual_seed(0)
    model = Model()
    names = [name for name, _ in model.named_parameters()]
    groups = ["head.", "blocks.2.up", "blocks.2.", "blocks.1.", "blocks.0.", "words."]
    home = {name: next(k for k, group in enumerate(groups) if name.startswith(group)) for name in names}
    bands = tuple(Band(g, (), tuple(n for n in names if home[n] == k)) for k, g in enumerate(groups))
    weights, words = torch.ones(4, 6), torch.randint(WORDS, (4, TOKENS))
    weights[:2, 1] = weights[1:3, 2] = 0.0
    engine = make_engine(model, bands, "fused")
    step(engine, model, weights, words)
    assert ways(engine)["blocks.2"] == "slice"
    weights[:, 1] = weights[:, 2]
    step(engine, model, weights, words)
    assert ways(engine)["blocks.2"] == "freeze"


def test_layers_that_are_recomputed_later_on_refuse_the_step_and_the_next_is_exact() -> None:
    torch.manual_seed(0)
    model, words = Model(), torch.randint(WORDS, (4, TOKENS))
    engine = make_engine(model, bands_of(model), "fused")
    step(engine, model, MIXED, words)
    model.blocks[1].kind = "inner checkpoint"
    with pytest.raises(MaskError, match=r"`blocks\.1` are recomputed"):
        step(engine, model, MIXED, words)
    assert_equal(step(engine, model, MIXED, words), wanted(model, MIXED, words))
    assert [ways(engine)[f"blocks.{number}"] for number in range(3)] == ["split", "slice", "freeze"]


def test_a_block_that_fails_is_left_trainable() -> None:
    torch.manual_seed(0)
    model, words = Model(), torch.randint(WORDS, (4, TOKENS))
    engine = make_engine(model, bands_of(model), "fused")
    step(engine, model, MIXED, words)
    trained = []

    def fail(module: nn.Module, args: tuple[Any, ...]) -> None:
        trained.append(module.weight.requires_grad)
        if not trained[-1]:
            raise ValueError("broken")

    model.blocks[1].up.register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="broken"):
        step(engine, model, MIXED, words)
    assert trained == [True, False]
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_every_kind_are_run_in_parts(kind: str) -> None:
    torch.manual_seed(0)
    model = Model(kind)
    words = torch.randint(WORDS, (4, TOKENS))
    engine = make_engine(model, bands_of(model), "fused")
    for _ in range(2):
        step(engine, model, staircase([5, 2, 1, 3]), words)
    if kind == "twice":
        # What is called again comes after all blocks, so whoever shapes one of them needs a graph in each.
        assert [c.rows for c in engine.explain()[:3]] == [3, 3, 3]
    else:
        assert ways(engine) == {
            "blocks.0": "split",
            "blocks.1": "split",
            "blocks.2": "split",
            "band head.": "weigh",
            "band words.": "slice",
        }


def test_a_band_that_nobody_reaches_has_no_graph_and_no_gradient() -> None:
    torch.manual_seed(0)
    model = Model()
    engine = make_engine(model, bands_of(model), "fused")
    got = step(engine, model, staircase([2, 2, 1]), torch.randint(WORDS, (3, TOKENS)))
    assert {name.split(".")[0] for name in got} == {"blocks", "head"}
    assert ways(engine)["blocks.0"] == ways(engine)["blocks.1"] == "stop"


def test_dropout_leaves_every_example_its_own_gradient() -> None:
    """With dropout after the last block only the same numbers are drawn, in parts or not."""
    torch.manual_seed(0)
    model = nn.Sequential(Model(), nn.Dropout(0.5))
    bands = tuple(Band(b.name, (), tuple(f"0.{p}" for p in b.parameters)) for b in bands_of(model[0]))
    words, weights = torch.randint(WORDS, (4, TOKENS)), staircase([5, 2, 1, 3])
    found = []
    for name in ("fused", "split"):
        engine = make_engine(model, bands, name)
        model.zero_grad()
        engine.arm(weights)
        torch.manual_seed(1)
        engine.backward(losses_of(model, words), 1.0)
        found.append([p.grad.clone() for p in model.parameters()])
        engine.close()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_backward_pass_may_be_repeated_and_narrowed_to_some_rows() -> None:
    torch.manual_seed(0)
    model = Model("loose")
    weights, words = staircase([5, 2, 1, 3]), torch.randint(WORDS, (4, TOKENS))
    engine = make_engine(model, bands_of(model), "fused")
    engine.arm(weights)
    losses = losses_of(model, words)
    rows = torch.tensor([True, False, True, True])
    engine.backward(losses, 1.0, rows=rows, retain_graph=True)
    engine.backward(losses, 1.0, rows=~rows)
    got = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_equal(got, wanted(model, weights, words))


def test_evaluation_between_steps_is_plain() -> None:
    torch.manual_seed(0)
    model = Model()
    words = torch.randint(WORDS, (4, TOKENS))
    with torch.no_grad():
        plain = model(words)
    engine = make_engine(model, bands_of(model), "fused")
    engine.arm(staircase([5, 2, 1, 3]))
    with torch.no_grad():
        assert torch.equal(model(words), plain)
    losses = losses_of(model, words)
    with torch.no_grad():
        assert torch.equal(model(words), plain)
    engine.backward(losses, 1.0)
    got = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_equal(got, wanted(model, staircase([5, 2, 1, 3]), words))


# --- work that is not done ----------------------------------------------------------------------------------


def flops(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("depths", "left"),
    [
        # Each of three equal blocks costs 1 forward and 2 backward; half of the rows skip 2 blocks' backward.
        ([5, 5, 2, 2], (9 - 2) / 9),
        ([5, 2, 5, 2], (9 - 2) / 9),
        ([2, 2, 2, 2], (9 - 4) / 9),
        ([5, 5, 5, 0], (9 - 6 / 4) / 9),
    ],
)
def test_only_the_arithmetic_that_the_mask_leaves_is_done(depths: list[int], left: float) -> None:
    torch.manual_seed(0)
    model = Model()
    words = torch.randint(WORDS, (4, 64))

    def plain() -> None:
        losses_of(model, words).sum().backward()

    engine = make_engine(model, bands_of(model), "fused")

    def governed() -> None:
        step(engine, model, staircase(depths), words)

    for _ in range(4):
        flops(governed)  # the engine looks at batches 1, 2 and 4 more closely
    share = flops(governed) / flops(plain)
    assert share == pytest.approx(left, abs=0.03)


@pytest.mark.parametrize(("depths", "rows"), [([5, 5, 2, 2], 2), ([5, 2, 2, 2], 3)])
def test_in_one_piece_no_layer_forms_products_of_rows_that_nobody_needs(
    monkeypatch: pytest.MonkeyPatch, depths: list[int], rows: int
) -> None:
    """rows: how many of four leave out the gradients of two blocks, parameters' and inputs'."""
    monkeypatch.setitem(planner.CALL_COST, "cpu", inf)
    torch.manual_seed(0)
    model, words = Model(), torch.randint(WORDS, (4, 4))
    engine = make_engine(model, bands_of(model), "fused")
    for _ in range(4):
        flops(lambda: step(engine, model, staircase(depths), words))
    assert ways(engine)["blocks.0"] == "slice"
    saved = flops(lambda: losses_of(model, words).sum().backward())
    saved -= flops(lambda: step(engine, model, staircase(depths), words))
    products = 8 * WIDTH**2 * 2 * words.shape[1]  # of an example in the layers of a block
    assert saved == rows * 2 * 2 * products


@pytest.mark.parametrize("kind", ["plain", "unbiased"])
def test_who_may_not_shape_a_block_costs_no_gradients_of_its_parameters(kind: str) -> None:
    torch.manual_seed(0)
    model, weights = Model(kind), torch.ones(4, 5)
    weights[torch.tensor([0, 2, 3]), torch.tensor([1, 2, 2])] = 0.0  # the third block once, the second twice
    words = torch.randint(WORDS, (4, 64))
    engine = make_engine(model, bands_of(model), "fused")

    def governed() -> None:
        step(engine, model, weights, words)

    for _ in range(4):
        flops(governed)
    share = flops(governed) / flops(lambda: losses_of(model, words).sum().backward())
    assert list(ways(engine).values())[:3] == ["scale", "freeze", "freeze"]
    products = 8 / (8 + 4 * 64 / WIDTH / 2)  # of a block's multiplications; the others are of attention
    assert share == pytest.approx(1 - products * 3 / 4 / 9, abs=0.03)


def test_frozen_layers_in_blocks_that_all_may_shape_cost_no_more_than_they_do_plainly() -> None:
    torch.manual_seed(0)
    model, words = Model("unbiased"), torch.randint(WORDS, (4, 64))
    for block in model.blocks:
        block.proj.requires_grad_(False)
    engine = make_engine(model, bands_of(model), "fused")
    weights = 0.25 + 0.5 * torch.rand(4, 5)
    for _ in range(5):
        spent = flops(lambda: step(engine, model, weights, words))
    assert list(ways(engine).values())[:3] == ["scale"] * 3
    assert spent == flops(lambda: losses_of(model, words).sum().backward())


def test_a_block_too_small_for_a_second_call_is_run_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    model = Model()
    engine = make_engine(model, bands_of(model), "fused")
    step(engine, model, staircase([5, 2]), torch.randint(WORDS, (2, TOKENS)))
    (choice,) = [c for c in engine.explain() if c.name == "blocks.0"]
    assert choice.way == "slice"
    assert "cost more than it saves" in choice.reason


# --- blocks that cannot be divided --------------------------------------------------------------------------


class Cache:
    """An argument whose rows nobody can tell apart."""


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda model: setattr(model, "extra", Cache()), "Cache"),
        (lambda model: setattr(model.blocks[0], "forward", model.blocks[0].forward), None),
    ],
)
def test_a_block_that_cannot_be_divided_is_run_in_one_piece(
    spoil: Callable[[Any], None], reason: str | None
) -> None:
    torch.manual_seed(0)
    model = Model()
    spoil(model)
    weights, words = staircase([5, 2, 1, 3]), torch.randint(WORDS, (4, TOKENS))
    engine = make_engine(model, bands_of(model), "fused")
    assert_equal(step(engine, model, weights, words), wanted(model, weights, words))
    choices = {choice.name: choice for choice in engine.explain()}
    if reason is None:
        assert "blocks.0" not in choices  # its forward is not that of its class
    else:
        assert choices["blocks.0"].way == "slice"
        assert reason in choices["blocks.0"].reason


def test_a_block_that_is_called_in_another_way_later_is_run_in_one_piece_then() -> None:
    torch.manual_seed(0)
    model = Model()
    weights, words = staircase([5, 2, 1, 3]), torch.randint(WORDS, (4, TOKENS))
    engine = make_engine(model, bands_of(model), "fused")
    step(engine, model, weights, words)
    assert ways(engine)["blocks.0"] == "split"
    model.extra = Cache()
    assert_equal(step(engine, model, weights, words), wanted(model, weights, words))
    assert ways(engine)["blocks.0"] == "slice"


class Shuffled(Model):
    """Moves the examples between its blocks, from a certain step on."""

    moves = False

    def forward(self, words: Tensor) -> Tensor:
        x = self.blocks[0](self.words(words))
        if self.moves:
            x = x.flip(0)
        return self.head(self.blocks[2](self.blocks[1](x)))


def test_examples_that_change_places_refuse_the_step_and_the_next_is_exact() -> None:
    torch.manual_seed(0)
    model = Shuffled()
    weights, words = staircase([5, 2, 1, 3]), torch.randint(WORDS, (4, TOKENS))
    engine = make_engine(model, bands_of(model), "auto")
    step(engine, model, weights, words)
    model.moves = True
    with pytest.raises(MaskError, match="are not where the probe has found them"):
        step(engine, model, weights, words)
    with pytest.warns(UserWarning, match="slower reference path"):
        got = step(engine, model, weights, words)
    assert ways(engine)["blocks.0"] == "slice"
    # Each example's loss is that of another's place: the definition, by hand.
    home = {name: k for k, band in enumerate(bands_of(model)) for name in band.parameters}
    engine.close()
    parameters = dict(model.named_parameters())
    losses = losses_of(model, words)
    for name, parameter in parameters.items():
        gradients = [torch.autograd.grad(loss, parameter, retain_graph=True)[0] for loss in losses]
        want = sum(w * g for w, g in zip(weights[:, home[name]], gradients, strict=True))
        torch.testing.assert_close(got[name], want, rtol=1e-9, atol=1e-12)


# --- living with other code ---------------------------------------------------------------------------------


def test_hooks_of_a_block_see_the_whole_batch_once() -> None:
    torch.manual_seed(0)
    model = Model()
    engine = make_engine(model, bands_of(model), "fused")
    words = torch.randint(WORDS, (4, TOKENS))
    step(engine, model, staircase([5, 2, 1, 3]), words)
    seen = []
    model.blocks[0].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    step(engine, model, staircase([5, 2, 1, 3]), words)
    assert seen == [(4, TOKENS, WIDTH)]


def test_copies_and_pickles_of_the_model_are_plain() -> None:
    torch.manual_seed(0)
    model = Model()
    engine = make_engine(model, bands_of(model), "fused")
    words = torch.randint(WORDS, (4, TOKENS))
    step(engine, model, staircase([5, 2, 1, 3]), words)
    engine.arm(staircase([5, 2, 1, 3]))
    file = io.BytesIO()
    torch.save(model, file)
    for part in (b"fused", b"forward", b"places"):
        assert b"gradwarden.runtime.masks." + part not in file.getvalue()
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        losses_of(other, words).sum().backward()
        assert all(p.grad is not None for p in other.parameters())
    engine.close()
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_weights_that_autocast_converted_without_a_graph_are_not_used_again() -> None:
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    model = Model("loose")
    # An ordinary use of a weight, which autocast converts and keeps.
    model.blocks[0].gain.forward = lambda x: x @ torch.diag(model.blocks[0].gain.gain)
    words = torch.randint(WORDS, (4, TOKENS))
    engine = make_engine(model, bands_of(model), "fused")
    with torch.autocast("cpu", torch.bfloat16):
        step(engine, model, staircase([1, 1, 1, 1]), words)
        got = step(engine, model, staircase([5, 5, 2, 1]), words)
    assert "blocks.0.gain.gain" in got


def test_weights_are_converted_once_for_both_parts_and_kept_with_a_graph_only() -> None:
    torch.set_default_dtype(torch.float32)
    weight, other = (torch.randn(WIDTH, WIDTH, requires_grad=True) for _ in range(2))
    x = torch.randn(2, WIDTH, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        functional.linear(x, weight)
        with Operations() as seen, beside_graph():
            assert not functional.linear(x, weight).requires_grad
        assert "aten._to_copy.default" not in seen.names
        with beside_graph():
            functional.linear(x, other)
        assert functional.linear(x, other).requires_grad


class Operations(TorchDispatchMode):
    """Takes down the names of the operations that are done inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


LEFTOVERS = {
    "blocks scaled at their borders": torch.rand(4, 5, generator=torch.Generator().manual_seed(0)) + 0.1,
    "blocks in parts": MIXED,
    "blocks in parts, with fractions": MIXED * torch.tensor([1.0, 0.5, 2.0, 0.25])[:, None],
    "some rows stop early": staircase([1, 5, 2, 5]),
}


@pytest.mark.parametrize("freezing", [0.0, inf])
@pytest.mark.parametrize("weights", LEFTOVERS.values(), ids=LEFTOVERS)
def test_a_step_leaves_nothing_to_the_garbage_collector(
    monkeypatch: pytest.MonkeyPatch, weights: Tensor, freezing: float
) -> None:
    """A collection takes as long as many steps of a small model, and comes when it likes."""
    monkeypatch.setitem(planner.FREEZING_COST, "cpu", freezing)
    model = Model()
    engine = make_engine(model, bands_of(model), "fused")
    words = torch.randint(WORDS, (4, TOKENS))
    for _ in range(4):
        step(engine, model, weights.double(), words)
    with leftovers() as found:
        step(engine, model, weights.double(), words)
    assert found == []


@contextmanager
def leftovers() -> Iterator[list[object]]:
    """Give what is then left of the engine's own objects that only a collection frees."""
    found: list[object] = []
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found += [thing for thing in gc.garbage if type(thing).__module__.startswith("gradwarden.")]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_no_collection_of_garbage_comes_while_the_graph_is_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    walking, came = [False], [False]

    def walk(*args: Any) -> Uses:
        walking[0] = True
        try:
            return uses(*args)
        finally:
            walking[0] = False

    def look(phase: str, info: dict[str, int]) -> None:
        came[0] = came[0] or walking[0]

    monkeypatch.setattr(differentiation, "uses", walk)
    model = Model()
    engine = make_engine(model, bands_of(model), "fused")
    thresholds = gc.get_threshold()
    gc.callbacks.append(look)
    gc.set_threshold(1)
    try:
        step(engine, model, MIXED, torch.randint(WORDS, (4, TOKENS)))
        assert not came[0]
        assert gc.isenabled()
        gc.disable()
        step(engine, model, MIXED, torch.randint(WORDS, (4, TOKENS)))
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(look)
