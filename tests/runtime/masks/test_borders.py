"""Blocks between whose borders gradients are scaled: they stay what they are, and layers weigh nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from gradwarden.policy.program import Band
from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.masks import make_engine
from gradwarden.runtime.masks.fused import FusedEngine
from gradwarden.runtime.masks.plan import LIMIT

WIDTH, PLACES = 6, 5


@pytest.fixture(autouse=True)
def wide() -> Iterator[None]:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


class Block(nn.Module):
    """x [B, T, W], and what came before it -> [B, T, W]. kind: what is unusual about it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        self.gain = nn.Parameter(torch.rand(WIDTH))
        self.kind = kind
        self.kept: Tensor | None = None

    def branch(self, x: Tensor) -> Tensor:
        return self.down(self.up(self.norm(x)).tanh()) * self.gain

    def forward(self, x: Tensor, first: Tensor) -> Any:
        if self.kind == "changes":
            x.mul_(1.5)
        branch = checkpoint(self.branch, x, use_reentrant=False) if self.kind == "inner" else self.branch(x)
        self.kept = branch
        y = x + branch
        if self.kind == "skip":
            y = y + 0.5 * first
        if self.kind == "same":
            return x, y
        return torch.relu(y) if self.kind == "saves" else y


class Model(nn.Module):
    """x [B, T, W] -> [B, T, 3], through three blocks."""

    def __init__(self, kind: str = "plain") -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.blocks = nn.ModuleList(Block(kind) for _ in range(3))
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        first = x = self.stem(x) if self.kind == "direct" else self.stem(x).relu()
        extra: Any = 0.0
        for block in self.blocks:
            if self.kind == "changes":
                x = x * 1.0
            outer = self.kind == "outer"
            x = checkpoint(block, x, first, use_reentrant=False) if outer else block(x, first)
            if self.kind == "same":
                x = x[0] + x[1]
            if self.kind == "adds":
                x += 0.25 * first
            if self.kind == "kept":
                extra = extra + block.kept
            if self.kind == "shares":
                extra = extra + 0.5 * x
        return self.head(x + extra)


KINDS = ["plain", "inner", "outer", "skip", "same", "adds", "kept", "changes", "shares", "direct"]


def bands_of(model: nn.Module, groups: tuple[str, ...] = ()) -> tuple[Band, ...]:
    """A band for the head, one for each block from the top, and one for the stem; or for other prefixes."""
    names = [name for name, _ in model.named_parameters()]
    groups = groups or ("head.", "blocks.2.", "blocks.1.", "blocks.0.", "stem.")
    return tuple(Band(group, (), tuple(n for n in names if n.startswith(group))) for group in groups)


def losses_of(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).pow(2).flatten(1).mean(1)


def wanted(model: nn.Module, bands: tuple[Band, ...], weights: Tensor, x: Tensor) -> dict[str, Tensor]:
    """Return the sum over examples of their own gradients, each weighed by band."""
    home = {name: k for k, band in enumerate(bands) for name in band.parameters}
    parameters = dict(model.named_parameters())
    sums = {name: torch.zeros_like(p) for name, p in parameters.items() if bool(weights[:, home[name]].any())}
    for row in range(len(x)):
        found = torch.autograd.grad(losses_of(model, x[row : row + 1])[0], list(parameters.values()))
        for name, gradient in zip(parameters, found, strict=True):
            if name in sums:
                sums[name] += weights[row, home[name]] * gradient
    return sums


def step(engine: FusedEngine, model: nn.Module, weights: Tensor, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    engine.arm(weights)
    engine.backward(losses_of(model, x), 1.0)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(got: dict[str, Tensor], want: dict[str, Tensor], allowed: float = 1e-10) -> None:
    assert got.keys() == want.keys()
    for name, gradient in want.items():
        assert float((got[name] - gradient).abs().max()) <= allowed * float(gradient.abs().max()), name


def ways(engine: FusedEngine) -> list[str]:
    return [choice.way for choice in engine.explain() if choice.name.startswith("blocks.")]


def fractions(batch: int, bands: int = 5) -> Tensor:
    return 0.1 + torch.rand(batch, bands)


# --- exactness ----------------------------------------------------------------------------------------------

weight = st.sampled_from([0.0, 0.01, 0.5, 1.0, 4.0])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_each_example_alone(kind: str) -> None:
    model = Model(kind)
    x, weights = torch.randn(4, PLACES, WIDTH), fractions(4)
    engine = make_engine(model, bands_of(model), "fused")
    for _ in range(2):
        assert_equal(step(engine, model, weights, x), wanted(model, bands_of(model), weights, x))
    expected = "weigh" if kind in ("kept", "changes") else "scale"
    assert ways(engine) == [expected] * 3


@settings(max_examples=12)
@given(st.data(), st.integers(2, 4))
def test_any_weights_within_and_across_blocks(data: st.DataObject, batch: int) -> None:
    """Bands may divide a block: what has other weights than the rest of it is weighed inside."""
    torch.manual_seed(batch)
    model = Model()
    groups = ("head.", "blocks.2.", "blocks.1.up.", "blocks.1.norm", "blocks.1.down", "blocks.1.gain")
    bands = bands_of(model, (*groups, "blocks.0.", "stem."))
    drawn = data.draw(st.lists(st.lists(weight, min_size=8, max_size=8), min_size=batch, max_size=batch))
    weights, x = torch.tensor(drawn), torch.randn(batch, PLACES, WIDTH)
    engine = make_engine(model, bands, "fused")
    if weights.any():
        assert_equal(step(engine, model, weights, x), wanted(model, bands, weights, x), 1e-9)


@pytest.mark.parametrize("away", [0.5, 2.0])
def test_weights_that_would_leave_the_range_of_numbers_are_not_scaled_by(away: float) -> None:
    model = Model().float()
    x, weights = torch.randn(2, PLACES, WIDTH, dtype=torch.float32), torch.ones(2, 5)
    weights[0, 2] = 1 / (LIMIT * away)
    engine = make_engine(model, bands_of(model), "fused")
    assert_equal(step(engine, model, weights, x), wanted(model, bands_of(model), weights, x), 1e-4)
    assert ways(engine) == ["scale", "scale" if away < 1 else "weigh", "scale"]


def test_half_precision_has_no_room_for_scaling() -> None:
    model = Model().half()
    engine = make_engine(model, bands_of(model), "fused")
    step(engine, model, fractions(3), torch.randn(3, PLACES, WIDTH, dtype=torch.float16))
    assert ways(engine) == ["weigh"] * 3


def test_gradients_of_some_rows_and_without_weights_are_to_be_had_as_well() -> None:
    model = Model()
    x, weights, bands = torch.randn(4, PLACES, WIDTH), fractions(4), bands_of(model)
    engine = make_engine(model, bands, "fused")
    engine.arm(weights)
    losses = losses_of(model, x)
    assert ways(engine) == ["scale"] * 3
    parameters = list(model.parameters())
    with engine.unweighted():
        raw = torch.autograd.grad(losses[1], parameters, retain_graph=True)
    rows = torch.tensor([True, False, True, False])
    engine.backward(losses, 1.0, rows=rows, retain_graph=True)
    engine.backward(losses, 1.0, rows=~rows)
    got = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_equal(got, wanted(model, bands, weights, x))
    engine.disarm()
    for one, other in zip(raw, torch.autograd.grad(losses_of(model, x)[1], parameters), strict=True):
        torch.testing.assert_close(one, other)


# --- where borders are crossed ------------------------------------------------------------------------------


def test_a_tensor_that_leaves_a_block_by_a_side_door_is_noticed() -> None:
    """From one step to the next the losses read what a block keeps; gradients would come in unscaled."""
    model = Model()
    x, weights, bands = torch.randn(4, PLACES, WIDTH), fractions(4), bands_of(model)
    engine = make_engine(model, bands, "fused")
    step(engine, model, weights, x)
    assert ways(engine) == ["scale"] * 3
    model.kind = "kept"
    assert_equal(step(engine, model, weights, x), wanted(model, bands, weights, x))
    assert any("past its arguments and results" in note for note in engine.notes)


def test_a_result_that_others_come_to_use_as_well_is_noticed() -> None:
    """Where only the next block takes a result, the two have one border. Here the head comes to do so."""
    model = Model()
    x, weights, bands = torch.randn(4, PLACES, WIDTH), fractions(4), bands_of(model)
    engine = make_engine(model, bands, "fused")
    for number in range(4):
        model.kind = "shares" if number > 1 else "plain"
        assert_equal(step(engine, model, weights, x), wanted(model, bands, weights, x))
        assert ways(engine) == ["scale"] * 3
    assert not any("weighed layer by layer" in note for note in engine.notes)


def test_a_tensor_that_comes_into_a_block_by_a_side_door_is_noticed() -> None:
    class Behind(Block):
        source: Any = None

        def forward(self, x: Tensor, first: Tensor) -> Tensor:
            return super().forward(x, first) + self.source()  # type: ignore[no-any-return]

    model = Model()
    model.blocks[1] = block = Behind("plain")
    block.source = lambda: model.blocks[0].kept
    x, weights, bands = torch.randn(4, PLACES, WIDTH), fractions(4), bands_of(model)
    engine = make_engine(model, bands, "fused")
    assert_equal(step(engine, model, weights, x), wanted(model, bands, weights, x))


def test_an_argument_that_is_changed_in_place_later_refuses_the_step_and_the_next_is_exact() -> None:
    model = Model()
    x, weights, bands = torch.randn(4, PLACES, WIDTH), fractions(4), bands_of(model)
    engine = make_engine(model, bands, "fused")
    step(engine, model, weights, x)
    model.kind = model.blocks[1].kind = "changes"
    with pytest.raises(MaskError, match="has changed an argument in place"):
        step(engine, model, weights, x)
    assert_equal(step(engine, model, weights, x), wanted(model, bands, weights, x))
    assert ways(engine) == ["scale", "weigh", "scale"]


# --- work ---------------------------------------------------------------------------------------------------


def settled(model: nn.Module, weights: Tensor, x: Tensor) -> Any:
    """Return an engine that has seen four batches; it looks at 1, 2 and 4 more closely."""
    engine = make_engine(model, bands_of(model), "fused")
    for _ in range(4):
        step(engine, model, weights, x)
    return engine


class Multiplications(TorchDispatchMode):
    """Counts products of tensors of one shape; in_place: those that need no new memory."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.count, self.in_place = shape, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if tuple(getattr(result, "shape", ())) == self.shape:
            self.count += func in (torch.ops.aten.mul.Tensor, torch.ops.aten.mul_.Tensor)
            self.in_place += func is torch.ops.aten.mul_.Tensor
        return result


def kinds_of_nodes(losses: Tensor) -> set[str]:
    """Return the names of all operations in a graph."""
    pending, seen = [losses.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            pending += [following for following, _ in node.next_functions]
    return {type(node).__name__ for node in seen}


@pytest.mark.parametrize("open", [True, False])
def test_where_every_example_may_shape_everything_no_layer_weighs_rows(open: bool) -> None:
    model, weights = Model(), fractions(4)
    if not open:
        weights[0, 0] = 0.0
    engine = make_engine(model, bands_of(model), "fused")
    x = torch.randn(4, PLACES, WIDTH)
    for _ in range(2):
        assert_equal(step(engine, model, weights, x), wanted(model, bands_of(model), weights, x))
    engine.arm(weights)
    found = kinds_of_nodes(losses_of(model, x))
    assert "BorderRowsBackward" in found
    assert ("LinearRowsBackward" in found) is not open


def test_gradients_are_multiplied_once_between_two_blocks() -> None:
    """The plain step multiplies by the gain, forward and twice backward, in each of three blocks."""
    model, x, weights = Model(), torch.randn(4, PLACES, WIDTH), fractions(4)
    engine = settled(model, weights, x)
    with Multiplications((4, PLACES, WIDTH)) as plain:
        losses_of(model, x)
        engine.disarm()
        losses_of(model, x).sum().backward()
    with Multiplications((4, PLACES, WIDTH)) as governed:
        step(engine, model, weights, x)
    assert plain.count == 3 + 9
    blocks, stem = 4, 1  # after the last, between them, before the first; one of them may need none
    assert governed.count <= 9 + blocks + stem
    assert governed.in_place >= blocks - 1  # nobody else has these gradients


def sums_with_memory_of_their_own(run: Callable[[], object]) -> int:
    """Return how many sums of two tensors [4, PLACES, WIDTH] were put elsewhere than into one of the two."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        run()
    shape = [4, PLACES, WIDTH]
    return sum(e.name == "aten::add" and e.input_shapes[:2] == [shape, shape] for e in seen.events())


def test_gradients_are_added_up_in_place_as_in_the_plain_step() -> None:
    model, x, weights = Model(), torch.randn(4, PLACES, WIDTH), fractions(4)
    engine = settled(model, weights, x)
    engine.arm(weights)
    losses = losses_of(model, x)
    governed = sums_with_memory_of_their_own(lambda: engine.backward(losses, 1.0))
    engine.disarm()
    losses = losses_of(model, x)
    assert governed <= sums_with_memory_of_their_own(lambda: losses.sum().backward())


@pytest.mark.parametrize("where", ["argument", "inside"])
def test_a_gradient_that_somebody_keeps_stays_as_it_was_seen(where: str) -> None:
    model, kept = Model(), []

    def keep(gradient: Tensor) -> None:
        kept.append((gradient, gradient.clone()))

    def keep_in_block(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args[0].requires_grad:
            args[0].register_hook(keep)

    for block in model.blocks:
        if where == "argument":
            block.register_forward_pre_hook(keep_in_block)
        else:
            block.norm.register_forward_pre_hook(keep_in_block)
    engine = make_engine(model, bands_of(model), "fused")
    x = torch.randn(4, PLACES, WIDTH)
    for _ in range(3):
        step(engine, model, fractions(4), x)
    assert len(kept) > 6
    assert all(torch.equal(gradient, seen) for gradient, seen in kept)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("linear", [True, False])
def test_hooks_that_change_gradients_between_blocks_are_obeyed_or_found_out(when: str, linear: bool) -> None:
    """Reversed gradients stay weighted ones. Cut off at a bound, they go by the reference's rule."""

    def change(module: nn.Module, grads: Any, outputs: Any) -> Any:
        return tuple(g if g is None else -g if linear else g.clamp(-0.01, 0.01) for g in grads)

    x, weights, found = torch.randn(4, PLACES, WIDTH), 0.5 + 0.5 * torch.rand(4, 5), []
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), *(Adding() for _ in range(3)), nn.Linear(WIDTH, 3))
    names = [name for name, _ in model.named_parameters()]
    bands = [Band(k, (), tuple(n for n in names if n[0] == k)) for k in "01234"]

    def steps(engine: str) -> None:
        masks = make_engine(model, bands, engine)
        handle = model[2].register_full_backward_hook(change) if when == "before" else None
        step(masks, model, weights, x)
        handle = handle or model[2].register_full_backward_hook(change)
        found.append(step(masks, model, weights, x))
        handle.remove()
        masks.close()

    steps("split")
    with nullcontext() if linear else pytest.warns(UserWarning, match=r"rounding explains|rows of"):
        steps("auto")
    assert_equal(found[1], found[0])


class Adding(nn.Module):
    """A small residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.down(self.up(x).tanh())


def test_scaling_from_block_to_block_adds_up_to_no_bias_in_bfloat16() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), *(Adding() for _ in range(24)), nn.Linear(WIDTH, 3))
    names = [name for name, _ in model.named_parameters()]
    bands = [Band(f"b{k}", (), tuple(n for n in names if int(n.split(".")[0]) % 2 == k)) for k in (0, 1)]
    x, weights = torch.randn(8, PLACES, WIDTH).bfloat16(), torch.tensor([[0.7, 0.3]]).repeat(8, 1)
    weights[0] = 1.0
    found = []
    for kind, engine in ((torch.bfloat16, "fused"), (torch.float64, "split")):
        model.to(kind).zero_grad()
        masks = make_engine(model, bands, engine)
        masks.arm(weights)
        masks.backward(model(x.to(kind)).double().square().flatten(1).mean(1), 8.0)
        found.append(
            torch.cat([p.grad.double().flatten() for p in model[0].parameters() if p.grad is not None])
        )
        assert engine == "split" or {c.way for c in masks.explain() if c.name.isdigit()} == {"scale"}
        masks.close()
    got, want = found
    assert abs(float(got @ want / want.square().sum()) - 1.0) < 2**-7


class Halving(nn.Module):
    """A block that computes in half precision by an autocast of its own."""

    def __init__(self, half: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.half = half

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16, enabled=self.half):
            h = self.down(self.up(x).tanh())
        return x + h.float()


def test_blocks_that_compute_in_half_precision_by_themselves_are_not_scaled() -> None:
    """Between borders their gradients may be multiplied out of its range."""
    for half in (False, True):
        model = nn.Sequential(
            nn.Linear(16, 16), *(Halving(half) for _ in range(3)), nn.Linear(16, 16), nn.Linear(16, 3)
        ).float()
        bands = [
            Band(f"b{layer}", (), tuple(n for n, _ in model.named_parameters() if n[0] == layer))
            for layer in "012345"
        ]
        masks = make_engine(model, bands, "fused")
        weights = torch.ones(8, 6)
        weights[:4, 2] = 2.0**-10
        masks.arm(weights)
        masks.backward(model(torch.randn(8, 5, 16, dtype=torch.float32)).square().flatten(1).mean(1), 8.0)
        ways = {choice.way for choice in masks.explain() if choice.name in "123"}
        assert ("scale" in ways) == (not half)
        masks.close()
