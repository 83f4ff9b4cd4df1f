"""Clipped sums of privacy units from the one backward pass of the fast engine, against plain autograd."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.nn import functional

from gradwarden.policy.program import Band
from gradwarden.runtime.errors import PrivacyError
from gradwarden.runtime.masks import few, planner, unitwise
from gradwarden.runtime.masks.engine import Engine, make_engine
from gradwarden.runtime.masks.full_precision import full_precision
from gradwarden.runtime.masks.layers import layer_norm, linear, place_norms, row_convolution
from gradwarden.runtime.privacy import units as units_module
from gradwarden.runtime.privacy.clipping import Clipping, Group, Unit, clip_groups
from gradwarden.runtime.privacy.units import UnitSums, add_units

ROWS = 6
NORMALISER = 3.0


class Tokens(nn.Module):
    """Embeddings (one looked up once for all rows) and norms; where tied, a tied head and reused layers."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(7, 4, padding_idx=0), nn.Embedding(5, 4)
        self.first, self.norm = nn.LayerNorm(4), nn.RMSNorm(4)
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4, bias=False)
        self.head = nn.Linear(4, 7, bias=False)
        if tied:
            self.head.weight = self.words.weight
        self.tied = tied

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x) + self.places(torch.arange(x.shape[1]))
        h = h + self.down(torch.tanh(self.up(self.first(h))))
        if self.tied:
            h = h + self.down(torch.tanh(self.up(h)))
        return self.head(self.norm(h)).log_softmax(-1).square().mean((1, 2))


class Pictures(nn.Module):
    """Convolutions of every kind, with and without bias, and group norms."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, channels, 3, padding=1, stride=2, bias=False)
        self.norm = nn.GroupNorm(2, channels)
        self.grouped = nn.Conv2d(channels, channels, 3, padding=2, dilation=2, groups=2)
        self.open = nn.ConvTranspose2d(channels, 3, 2, stride=2)
        self.line = nn.Conv1d(3, 2, 3, padding="same")
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.grouped(torch.tanh(self.norm(self.stem(x))))
        h = self.line(torch.tanh(self.open(h)).flatten(2))
        return functional.softplus(self.head(torch.tanh(h).mean(2))).square().sum(1)


class Wide(nn.Module):
    """Channels so many that gradients are taken from patches."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 70, 3, stride=(2, 1), padding=(1, 0), dilation=(1, 2))
        self.second = nn.Conv2d(70, 3, (1, 2), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x))).square().mean((1, 2, 3))


def tokens() -> Tensor:
    return torch.randint(7, (ROWS, 5), generator=torch.Generator().manual_seed(3))


def pictures() -> Tensor:
    return torch.randn(ROWS, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


class Opaque(nn.Module):
    """Layers that Opacus has rules for as well."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.inner, self.last = nn.Linear(4, 5), nn.LayerNorm(5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.norm(self.stem(x))).flatten(2).transpose(1, 2)
        return self.head(self.last(torch.tanh(self.inner(h)))).square().mean((1, 2)) * x[:, 0, 0, 0].abs()


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "tokens": (Tokens, tokens),
    "tied": (lambda: Tokens(tied=True), tokens),
    "pictures": (Pictures, pictures),
    "wide": (Wide, pictures),
    "opacus": (Opaque, pictures),
}


def bands_of(model: nn.Module, members: Sequence[Sequence[Tensor]]) -> list[Band]:
    """Bands of these parameters."""
    names = {id(p): name for name, p in model.named_parameters()}
    return [Band(f"band_{b}", (), tuple(names[id(p)] for p in own)) for b, own in enumerate(members)]


def take(engine: Engine, weights: Tensor, sink: UnitSums, losses: Callable[[], Tensor]) -> None:
    """Take the gradients of a step, those of units into a sink."""
    members = sink.members()
    engine.arm(weights, units=members)
    engine.backward(losses(), NORMALISER, rows=members < 0, sink=sink)
    sink.check()


class Bench:
    """A model in two bands of every other parameter, or of layers, with an engine."""

    def __init__(self, name: str, engine: str = "fused", mixed: bool = False) -> None:
        torch.manual_seed(0)
        build, draw = MODELS[name]
        self.model, self.x = build().double(), draw()
        named = list(self.model.named_parameters())
        layers = list(dict.fromkeys(key.split(".")[0] for key, _ in named))
        owner = [
            number if mixed else layers.index(key.split(".")[0]) for number, (key, _) in enumerate(named)
        ]
        self.members = [[p for (_, p), own in zip(named, owner, strict=True) if own % 2 == b] for b in (0, 1)]
        self.engine: Engine = make_engine(self.model, bands_of(self.model, self.members), engine)

    def sums(
        self, units: Sequence[Unit], weights: Tensor, within: Sequence[int], clipping: Clipping
    ) -> tuple[UnitSums, list[Tensor | None]]:
        """Train for one step; return the units' sums and what was added to the gradients."""
        columns = {band: self.members[band] for band in within}
        sink = UnitSums(units, weights, columns, clip_groups(self.model, columns, clipping))
        take(self.engine, weights, sink, lambda: self.model(self.x))
        grads = [p.grad for p in self.model.parameters()]
        self.model.zero_grad()
        return sink, grads


@cache
def bench_of(name: str, mixed: bool) -> Bench:
    return Bench(name, mixed=mixed)


def plain(bench: Bench, units: Sequence[Unit], weights: Tensor, columns, groups: Sequence[Group]):
    """The same sums by plain autograd, without an engine's part."""
    bench.engine.disarm()
    sums = {p: torch.zeros_like(p) for group in groups for p in group.parameters}
    add_units(sums, bench.model(bench.x), units, weights, columns, groups)
    return sums


def refuse(self: UnitSums, losses: Tensor) -> None:
    raise AssertionError("the engine did not hand over what its layers have")


units_of_rows = st.lists(st.integers(-1, 3), min_size=ROWS, max_size=ROWS)


@pytest.mark.parametrize("clipping", ["flat", "band", "layer"])
@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=10)
@given(data=st.data())
def test_sums_of_the_one_pass_equal_those_of_plain_autograd(name, clipping, data):
    bench = bench_of(name, data.draw(st.booleans()))
    owner = data.draw(st.one_of(units_of_rows, st.just(list(range(ROWS))), st.just([-1, 0, 1, -1, 2, 3])))
    clip = st.sampled_from([1e-3, 0.05, 100.0])
    numbers = sorted(set(owner) - {-1})
    units = [Unit(tuple(r for r in range(ROWS) if owner[r] == u), data.draw(clip)) for u in numbers]
    within = data.draw(st.sampled_from([[0], [0, 1], [1]]))
    weight = st.sampled_from([0.0, 0.5, 1.0, 2.0])
    weights = torch.tensor(
        data.draw(st.lists(st.lists(weight, min_size=2, max_size=2), min_size=ROWS, max_size=ROWS)),
        dtype=torch.float64,
    )
    for unit in units:
        for row in unit.rows:
            weights[row, [band for band in (0, 1) if band not in within]] = 0.0
    if not bool(weights.any()):
        return
    columns = {band: bench.members[band] for band in within}
    wanted = plain(bench, units, weights, columns, clip_groups(bench.model, columns, clipping))
    one_by_one = 0 if data.draw(st.booleans()) else 1 << 10
    at_once = data.draw(st.sampled_from([1, 100, 1 << 12]))
    kept = 0 if data.draw(st.booleans()) else 1 << 18
    with (
        patch.object(unitwise, "_KEPT", kept),
        patch.object(few, "_SMALL", one_by_one),
        patch.object(few, "_AT_ONCE", at_once),
        patch.object(layer_norm, "_LARGE", one_by_one),
        patch.object(units_module, "unfilled", lambda parameter: torch.full_like(parameter, torch.nan)),
    ):
        sink, grads = bench.sums(units, weights, within, clipping)
    for p, total in wanted.items():
        torch.testing.assert_close(sink.sums[p], total, rtol=1e-9, atol=1e-13)
    public = weights * torch.tensor(owner).lt(0)[:, None]
    expected = by_loop(bench, public)
    for p, found in zip(bench.model.parameters(), grads, strict=True):
        torch.testing.assert_close(
            torch.zeros_like(p) if found is None else found, expected[id(p)], rtol=1e-9, atol=1e-13
        )


def by_loop(bench: Bench, weights: Tensor) -> dict[int, Tensor]:
    """The weighted sum of examples' gradients over the normaliser, one example at a time."""
    bench.engine.disarm()
    totals = {id(p): torch.zeros_like(p) for p in bench.model.parameters()}
    for row in range(ROWS):
        losses = bench.model(bench.x)
        for band, members in enumerate(bench.members):
            found = torch.autograd.grad(losses[row], members, retain_graph=True)
            for p, gradient in zip(members, found, strict=True):
                totals[id(p)] += weights[row, band] * gradient / NORMALISER
    return totals


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.blocks = nn.ModuleList(Residual() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = block(h)
        return self.head(h).square().mean((1, 2))


@pytest.mark.parametrize("clipping", ["band", "layer"])
@pytest.mark.parametrize("weighing", [1.0, 0.7])
@pytest.mark.parametrize("freezing", [False, True])
@pytest.mark.parametrize(
    ("within", "sliced"), [([3, 4], {"2"}), ([0], {"0", "1", "2"}), ([2], {"1", "2"}), ([4], set())]
)
def test_blocks_that_no_unit_shapes_are_run_as_they_are(
    within, sliced, freezing, weighing, clipping, monkeypatch
):
    monkeypatch.setitem(planner.CALL_COST, "cpu", 0.0)
    if freezing:
        monkeypatch.setitem(planner.FREEZING_COST, "cpu", 0.0)
    torch.manual_seed(3)
    model, x, private = Blocks().double(), torch.randn(ROWS, 2, 3, dtype=torch.float64), [1, 4]
    parts = [model.stem, *model.blocks, model.head]
    members = [list(part.parameters()) for part in parts]
    weights = 1.0 - (1.0 - weighing) * torch.rand(ROWS, len(parts), dtype=torch.float64)
    weights[private] = 0.0
    weights[private[0], within], weights[private[1], within] = 1.0, 0.5
    columns = {band: members[band] for band in within}
    units = [Unit((row,), 1e-3) for row in private]
    groups = clip_groups(model, columns, clipping)
    engine, ran = make_engine(model, bands_of(model, members), "fused"), []
    run = linear.Linear.run
    monkeypatch.setattr(
        linear.Linear, "run", staticmethod(lambda module, *given: ran.append(module) or run(module, *given))
    )
    for _ in range(2):  # the first step is looked at closely
        ran.clear()
        model.zero_grad()
        sink = UnitSums(units, weights, columns, groups)
        take(engine, weights, sink, lambda: model(x))
    engine.close()
    shaped = {str(band - 1) for band in within if 1 <= band <= 3}
    weighing_layers = shaped if freezing else sliced
    assert {key for key, block in model.blocks.named_children() if block.up in ran} == weighing_layers
    wanted = {p: torch.zeros_like(p) for group in groups for p in group.parameters}
    add_units(wanted, model(x), units, weights, columns, groups)
    for parameter, total in wanted.items():
        torch.testing.assert_close(sink.sums[parameter], total, rtol=1e-9, atol=1e-13)
    public = weights * torch.tensor([row not in private for row in range(ROWS)])[:, None]
    for band, own in enumerate(members):
        expected = torch.autograd.grad((model(x) * public[:, band]).sum() / NORMALISER, own)
        for parameter, gradient in zip(own, expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("name", MODELS)
def test_no_pass_is_made_for_single_units(name, monkeypatch):
    monkeypatch.setattr(UnitSums, "differentiate", refuse)
    units = [Unit((row,), 1.0) for row in range(1, ROWS)]
    sink, _ = Bench(name).sums(units, torch.ones(ROWS, 2, dtype=torch.float64), [0, 1], "flat")
    assert any(bool(total.any()) for total in sink.sums.values())


def test_what_is_small_is_formed_once_and_what_layers_gave_makes_room_for_the_sums(monkeypatch):
    bench, units = Bench("tokens"), [Unit((row,), 0.05) for row in range(ROWS)]
    bench.sums(units, torch.ones(ROWS, 2, dtype=torch.float64), [0, 1], "flat")
    summed, weighed = linear._Parameters.summed, units_module._Use.weighed
    given: list[weakref.ref[Tensor]] = []
    left: list[int] = []

    def without_bias(parameters, rows, bias_rows):
        assert bias_rows is None
        return summed(parameters, rows, bias_rows)

    def counting(use, rows_of):
        left.append(sum(known() is not None for known in given))
        if isinstance(use.parameters, linear._Parameters):
            given.append(weakref.ref(use.parameters.grad))
        return weighed(use, rows_of)

    monkeypatch.setattr(linear._Parameters, "summed", without_bias)
    monkeypatch.setattr(units_module._Use, "weighed", counting)
    monkeypatch.setattr(few, "_SMALL", 0)
    bench.sums(units, torch.ones(ROWS, 2, dtype=torch.float64), [0, 1], "flat")
    assert len(left) == 7
    assert not any(left)


@pytest.mark.parametrize("clipping", ["flat", "layer"])
@pytest.mark.parametrize("most", [1, 1 << 12])
def test_gradients_of_convolutions_too_large_to_keep_are_clipped_a_few_at_a_time(clipping, most, monkeypatch):
    monkeypatch.setattr(few, "_AT_ONCE", most)
    bench, weights = bench_of("wide", mixed=False), torch.ones(ROWS, 2, dtype=torch.float64)
    columns = dict(enumerate(bench.members))
    units = [Unit((0,), 0.01), Unit((1, 4), 0.01), Unit((2,), 100.0)]
    wanted = plain(bench, units, weights, columns, clip_groups(bench.model, columns, clipping))
    sink, _ = bench.sums(units, weights, [0, 1], clipping)
    for p, total in wanted.items():
        torch.testing.assert_close(sink.sums[p], total, rtol=1e-9, atol=1e-13)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("clipping", ["flat", "band", "layer"])
@pytest.mark.parametrize(("scale", "small"), [(1e-3, 0), (1.0, 1 << 10), (1e6, 0)])
def test_a_unit_moves_the_sum_by_its_clip_at_most_in_single_precision(clipping, scale, small, monkeypatch):
    monkeypatch.setattr(few, "_SMALL", small)
    bench = Bench("tokens")
    bench.model.float()
    bench.model.head.weight.data *= scale
    units = [Unit((0, 2), 0.5)]
    sink, _ = bench.sums(units, torch.ones(ROWS, 2, dtype=torch.float64), [0, 1], clipping)
    square = sum(float(total.double().square().sum()) for total in sink.sums.values())
    assert math.sqrt(square) <= 0.5


class Half(nn.Module):
    """Layers that are wide enough for rounding to show; where tied, one of them is used twice."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.up, self.norm = nn.Linear(48, 96), nn.LayerNorm(96)
        self.down, self.tied = nn.Linear(96, 48, bias=False), tied

    def forward(self, x: Tensor) -> Tensor:
        h = self.down(torch.tanh(self.norm(self.up(x))))
        return self.up(h) if self.tied else h


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("clipping", ["flat", "layer"])
@pytest.mark.parametrize(("autocast", "tied"), [(True, False), (False, False), (True, True)])
@pytest.mark.parametrize("places", [4, 200])  # norms from products between places, and from gradients
def test_a_unit_of_half_precision_layers_is_clipped_to_its_bound_and_no_further(
    clipping, autocast, tied, places
):
    torch.manual_seed(0)
    model, x = Half(tied), torch.randn(3, places, 48)
    if not autocast:
        model, x = model.bfloat16(), x.bfloat16()
    columns = {0: list(model.parameters())}
    groups = clip_groups(model, columns, clipping)
    sink = UnitSums([Unit((1,), 0.01)], torch.ones(3, 1, dtype=torch.float64), columns, groups)
    engine = make_engine(model, [Band("all", (), tuple(n for n, _ in model.named_parameters()))], "fused")
    engine.arm(torch.ones(3, 1, dtype=torch.float64), units=sink.members())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = 100.0 * model(x).float().square().mean((1, 2))
    engine.backward(losses, 1.0, rows=sink.members() < 0, sink=sink)
    sink.check()
    for group in groups:
        square = sum(float(sink.sums[p].double().square().sum()) for p in group.parameters)
        assert 0.999 * 0.01 * group.share <= math.sqrt(square) <= 0.01 * group.share


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("clipping", ["flat", "layer"])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("stride", [1, 2])  # norms from products between places, and from gradients
def test_a_unit_of_half_precision_convolutions_is_clipped_to_its_bound_and_no_further(
    clipping, autocast, stride
):
    for seed in range(3):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(2, 2, 1, bias=False), nn.Tanh(), nn.Conv2d(2, 16, 1, stride=stride, bias=False)
        )
        x = torch.randn(2, 2, 5, 6)
        if not autocast:
            model, x = model.bfloat16(), x.bfloat16()
        columns = {0: list(model.parameters())}
        groups = clip_groups(model, columns, clipping)
        sink = UnitSums([Unit((0, 1), 0.01)], torch.ones(2, 1, dtype=torch.float64), columns, groups)
        engine = make_engine(model, [Band("all", (), tuple(n for n, _ in model.named_parameters()))], "fused")
        engine.arm(torch.ones(2, 1, dtype=torch.float64), units=sink.members())
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses = 100.0 * model(x).float().square().mean((1, 2, 3))
        engine.backward(losses, 1.0, rows=sink.members() < 0, sink=sink)
        for group in groups:
            square = sum(float(sink.sums[p].double().square().sum()) for p in group.parameters)
            assert 0.999 * 0.01 * group.share <= math.sqrt(square) <= 0.01 * group.share


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("small", [0, 1 << 14])
@pytest.mark.parametrize("cancels", [False, True])
def test_a_unit_is_clipped_to_its_bound_where_products_may_be_rounded_more_than_sums(
    tied, small, cancels, monkeypatch
):
    """On processors that multiply bfloat16; on others the setting changes nothing."""
    monkeypatch.setattr(few, "_SMALL", small)
    torch.manual_seed(0)
    model, x, signs = Half(tied), torch.randn(4, 4, 48), torch.ones(4)
    if cancels:
        x[:, 1::2] = x[:, ::2] * (1.0 + 1e-3 * torch.randn(4, 2, 1))
        signs[1::2] = -1.0
    columns, weights = {0: list(model.parameters())}, torch.ones(4, 1, dtype=torch.float64)
    engine = make_engine(model, [Band("all", (), tuple(n for n, _ in model.named_parameters()))], "fused")
    groups = clip_groups(model, columns, "flat")
    torch.set_float32_matmul_precision("medium")
    try:
        for unit in range(4):
            sink = UnitSums([Unit((unit,), 0.01)], weights, columns, groups)
            engine.arm(weights, units=sink.members())
            losses = 100.0 * (model(x).mean(2) * signs).sum(1)
            engine.backward(losses, 1.0, rows=sink.members() < 0, sink=sink)
            sink.check()
            square = sum(float(total.double().square().sum()) for total in sink.sums.values())
            assert math.sqrt(square) <= 0.01
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("transposed", [False, True])
def test_units_of_a_convolution_over_one_place_are_clipped(transposed):
    torch.manual_seed(0)
    layer = (nn.ConvTranspose1d if transposed else nn.Conv1d)(2, 3, 3, padding=1).double()
    columns, weights = {0: list(layer.parameters())}, torch.ones(ROWS, 1, dtype=torch.float64)
    units, groups = [Unit((row,), 0.5) for row in range(ROWS)], clip_groups(layer, columns, "flat")
    sink = UnitSums(units, weights, columns, groups)
    engine = make_engine(layer, [Band("all", (), ("weight", "bias"))], "fused")
    x = torch.randn(ROWS, 1, 2, dtype=torch.float64).transpose(1, 2)
    engine.arm(weights, units=sink.members())
    engine.backward(layer(x).square().sum((1, 2)), 1.0, rows=sink.members() < 0, sink=sink)
    engine.disarm()
    wanted = {p: torch.zeros_like(p) for p in layer.parameters()}
    add_units(wanted, layer(x).square().sum((1, 2)), units, weights, columns, groups)
    for p, total in wanted.items():
        torch.testing.assert_close(sink.sums[p], total, rtol=1e-9, atol=1e-13)


def test_full_precision_lasts_until_the_last_thread_has_left():
    matmul = torch.backends.cuda.matmul

    def precision() -> str:
        return getattr(matmul, "fp32_precision", None) or torch.get_float32_matmul_precision()

    torch.set_float32_matmul_precision("high")
    try:
        lowered = precision()
        first, second = ExitStack(), ExitStack()
        first.enter_context(full_precision())
        second.enter_context(full_precision())
        first.close()
        assert precision() != lowered
        second.close()
        assert precision() == lowered
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("features", [64, 384, 4096])
@pytest.mark.parametrize("places", [1, 2, 4, 32])
def test_norms_from_products_between_places_are_never_understated(features, places):
    """Features of one sign and size, whose sums are rounded to one side, at places that all but cancel."""
    generator = torch.Generator().manual_seed(0)
    for off in (1e-1, 1e-3, 1e-5):
        sign = torch.ones(places)
        sign[1::2] = -1.0
        size = (1.0 + torch.rand(12, 1, 1, generator=generator)) * sign[:, None]
        left = 0.1 * (size * (1.0 + off * torch.randn(12, places, 1, generator=generator)))
        left = left.expand(12, places, features).contiguous()
        right = 0.3 * (1.0 + torch.rand(12, 1, 1, generator=generator)).expand(12, places, features)
        right = right.contiguous()
        owners = unitwise.Owners(torch.arange(12), torch.ones(12, dtype=torch.float64), 12)
        # All features of a place are alike, and so are all places of `right`.
        exact = (left.double()[:, :, 0].sum(1) * right.double()[:, 0, 0] * features).square()
        found = few.Products(left, right, owners)._from_places()
        least = exact.numpy() * (1.0 - 64 * 2.0**-23) ** 2
        assert (found >= least).all()


@pytest.mark.parametrize("clipping", ["flat", "layer"])
@pytest.mark.parametrize(("value", "small"), [(math.nan, 0), (math.inf, 1 << 10)])
def test_a_unit_that_is_not_finite_counts_as_zero_and_spoils_no_other(clipping, value, small, monkeypatch):
    monkeypatch.setattr(few, "_SMALL", small)
    weights = torch.ones(ROWS, 2, dtype=torch.float64)
    others = [Unit((row,), 0.05) for row in (0, 2, 3)]
    wanted, public = Bench("pictures").sums(
        others, weights * torch.tensor([1, 0, 1, 1, 1, 1])[:, None], [0, 1], clipping
    )
    bench = Bench("pictures")
    bench.sums(others, weights, [0, 1], clipping)  # the probe has been made when values go astray
    bench.x[1] = value
    found, grads = bench.sums([*others, Unit((1,), 0.05)], weights, [0, 1], clipping)
    for own, total in zip(found.sums.values(), wanted.sums.values(), strict=True):
        torch.testing.assert_close(own, total, rtol=1e-9, atol=1e-13)
    for one, other in zip(grads, public, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-13)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_short_layers_are_clipped_together_as_by_themselves(dtype):
    torch.manual_seed(0)
    norms = [nn.LayerNorm(width) for width in (5, 5, 3)]
    model = nn.Sequential(norms[0], nn.Tanh(), norms[1], nn.Linear(5, 3), norms[2]).to(dtype)
    columns = {0: list(model[:3].parameters()), 1: list(model[3:].parameters())}
    shares = (0.1, 0.5, 0.2, 0.8)
    groups = [
        Group(tuple(layer.parameters()), share)
        for layer, share in zip((*norms, model[3]), shares, strict=True)
    ]
    units = [Unit((row,), 1e-3 * (row + 1)) for row in (0, 2, 3)]
    weights = torch.tensor([[1.0, 2.0], [1.0, 1.0], [0.5, 0.0], [1.0, 1.0]], dtype=torch.float64)
    x = torch.randn(4, 2, 5, dtype=dtype)
    engine = make_engine(model, bands_of(model, list(columns.values())), "fused")
    sink = UnitSums(units, weights, columns, groups)
    take(engine, weights, sink, lambda: model(x).square().mean((1, 2)))
    engine.close()
    wanted = {p: torch.zeros_like(p) for group in groups for p in group.parameters}
    add_units(wanted, model(x).square().mean((1, 2)), units, weights, columns, groups)
    for parameter, total in wanted.items():
        torch.testing.assert_close(sink.sums[parameter], total)
        own = sink.sums[parameter]
        assert own.untyped_storage().nbytes() == own.nbytes  # not part of what all layers share


def test_shares_of_all_groups_together_keep_the_whole_within_its_bound():
    bench = Bench("tokens")
    columns = dict(enumerate(bench.members))
    for clipping in ("flat", "band", "layer"):
        groups = clip_groups(bench.model, columns, clipping)
        assert sum(group.share**2 for group in groups) == pytest.approx(1.0)
        assert sum(len(group.parameters) for group in groups) == len(list(bench.model.parameters()))
    assert len(clip_groups(bench.model, columns, "layer")) == 7


@pytest.mark.parametrize("kernel", [(3, 3), (1, 2), (3, 1)])
@pytest.mark.parametrize("padding", [(1, 1), (0, 2)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1), (1, 2)])
def test_norms_from_products_between_places_are_those_of_the_gradients(kernel, padding, dilation):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 5, kernel, padding=padding, dilation=dilation, bias=False).double()
    x = torch.randn(4, 3, 6, 5, dtype=torch.float64)
    y = layer(x)
    weighed, options = torch.randn_like(y), {"stride": (1, 1), "transposed": False, "groups": 1}
    options |= {"padding": padding, "dilation": dilation}
    found = place_norms.norms(weighed, x, layer.weight, options)
    for row in range(4):
        (gradient,) = torch.autograd.grad((y * weighed)[row].sum(), layer.weight, retain_graph=True)
        assert found[row] == pytest.approx(float(gradient.norm()), rel=1e-12)
        assert found[row] >= float(gradient.norm())


@pytest.mark.parametrize("clipping", ["flat", "layer"])
def test_convolutions_measured_by_places_are_clipped_as_if_formed(clipping, monkeypatch):
    monkeypatch.setattr(row_convolution, "_CLIPPING", 1e9)
    monkeypatch.setattr(place_norms, "_ADDITION", 0.0)
    bench, weights = bench_of("opacus", mixed=False), torch.full((ROWS, 2), 0.5, dtype=torch.float64)
    columns = dict(enumerate(bench.members))
    units = [Unit((row,), clip) for row, clip in ((4, 0.01), (0, 100.0), (2, 0.02))]
    wanted = plain(bench, units, weights, columns, clip_groups(bench.model, columns, clipping))
    sink, _ = bench.sums(units, weights, [0, 1], clipping)
    for p, total in wanted.items():
        torch.testing.assert_close(sink.sums[p], total, rtol=1e-9, atol=1e-13)


def test_an_unknown_way_of_clipping_is_refused():
    with pytest.raises(PrivacyError, match="unknown clipping `lair`"):
        clip_groups(nn.Linear(1, 1), {}, "lair")


def test_a_call_that_was_announced_and_did_not_come_is_an_error():
    bench = Bench("pictures")
    columns = dict(enumerate(bench.members))
    weights = torch.ones(ROWS, 2, dtype=torch.float64)
    sink = UnitSums([Unit((0,), 1.0)], weights, columns, clip_groups(bench.model, columns, "layer"))
    bench.engine.arm(weights, units=sink.members())
    losses = bench.model(bench.x)
    missing = iter([True])
    take = sink.take
    sink.take = lambda call, parameters: None if next(missing, False) else take(call, parameters)
    bench.engine.backward(losses, NORMALISER, rows=sink.members() < 0, sink=sink)
    with pytest.raises(PrivacyError, match="did not reach each layer once"):
        sink.check()


def test_the_sum_from_the_one_pass_equals_that_of_opacus():
    # Opacus divides by norm + 1e-6, gradwarden by the norm: gradients of about 1e6 make that no difference.
    scale, clip = 1e6, 1e6
    bench = Bench("opacus")
    other = GradSampleModule(copy.deepcopy(bench.model), loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(other.parameters(), lr=0.1),
        noise_multiplier=0.0,
        max_grad_norm=clip,
        expected_batch_size=1,
        loss_reduction="sum",
    )
    (scale * other(bench.x)).sum().backward()
    norms = torch.cat([g.flatten(1) for g in optimizer.grad_samples], dim=1).norm(dim=1)
    assert (norms > clip).any()
    assert (norms < clip).any()
    optimizer.clip_and_accumulate()

    units = [Unit((row,), clip) for row in range(ROWS)]
    weights = torch.full((ROWS, 2), scale, dtype=torch.float64)
    sink, _ = bench.sums(units, weights, [0, 1], "flat")
    for p, q in zip(bench.model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(sink.sums[p], q.summed_grad, rtol=1e-9, atol=1e-9 * clip)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("shape", [(3, 50257), (40, 10), (7,)])
def test_a_clipped_gradient_stays_within_its_bound_however_long_its_lines_are(shape):
    gradient = torch.full(shape, 0.1, dtype=torch.float32)
    for bound in (0.5 * float(gradient.double().norm()), float(gradient.double().norm()) * (1.0 - 1e-7)):
        square = unitwise.squared_norm(gradient)
        factor = unitwise.clip_factor(square, bound, torch.finfo(torch.float32).eps)
        assert float((gradient * factor).double().norm()) <= bound
