"""Modules that no layer's rule covers: differentiated as pieces, exactly, with their paths asserted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from gradwarden.policy.program import Band
from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.masks import make_engine

BATCH, TOKENS, WIDTH = 5, 4, 6


class Model(nn.Module):
    """A module between two linear maps: [B, T, W] -> [B, T or 1, 2]."""

    def __init__(
        self, inner: nn.Module, run: Callable[..., Tensor] | None = None, width: int = WIDTH
    ) -> None:
        super().__init__()
        self.enter, self.inner, self.leave = nn.Linear(WIDTH, WIDTH), inner, nn.Linear(width, 2)
        self.run = run or (lambda inner, h, mask: inner(h))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.leave(torch.tanh(self.run(self.inner, self.enter(x), mask)))


def batches(mask: bool = False) -> list[dict[str, Tensor]]:
    made = [{"x": torch.randn(BATCH, TOKENS, WIDTH)} for _ in range(3)]
    if mask:
        for batch in made:
            batch["mask"] = torch.arange(TOKENS) < torch.randint(1, TOKENS + 1, (BATCH, 1))
    return made


def three_bands(model: nn.Module) -> tuple[Band, ...]:
    """Return bands for what leaves, for the weights of the module in the middle, and for the rest."""
    names = [name for name, _ in model.named_parameters()]
    leave = tuple(n for n in names if n.startswith("leave"))
    weights = tuple(n for n in names if n.startswith("inner") and "bias" not in n)
    rest = tuple(n for n in names if n not in (*leave, *weights))
    return (Band("leave", (), leave), Band("weights", (), weights), Band("rest", (), rest))


def paths_within(engine: Any, name: str = "inner.") -> set[str]:
    return {path for parameter, path in engine.paths.items() if parameter.startswith(name)}


def attend(time_first: bool = False, weights: bool = False) -> Callable[..., Tensor]:
    def run(inner: nn.MultiheadAttention, h: Tensor, mask: Tensor | None) -> Tensor:
        h = h.transpose(0, 1) if time_first else h
        hidden = None if mask is None else ~mask
        out, seen = inner(h, h, h, key_padding_mask=hidden, need_weights=weights)
        out = out.transpose(0, 1) if time_first else out
        return out if seen is None else out + seen.mean(2, keepdim=True)

    return run


def cross(inner: nn.MultiheadAttention, h: Tensor, mask: Tensor | None) -> Tensor:
    return inner(query=h, key=torch.sin(h), value=h * h, need_weights=False)[0]


class OwnAttention(nn.Module):
    """A packed projection that is a plain parameter, heads, and scaled dot products."""

    def __init__(self) -> None:
        super().__init__()
        self.packed = nn.Parameter(torch.randn(WIDTH, 3 * WIDTH) / 2)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        query, key, value = (h @ self.packed).view(*h.shape[:2], 3, 2, WIDTH // 2).unbind(2)
        heads = functional.scaled_dot_product_attention(
            *(t.transpose(1, 2) for t in (query, key, value)), is_causal=True
        )
        return self.out(heads.transpose(1, 2).flatten(2))


class Scaled(nn.Module):
    """A layer whose output is scaled, shifted and gated by plain parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.gain, self.shift, self.gate = (
            nn.Parameter(torch.randn(*shape)) for shape in ((WIDTH,), (1, 1, WIDTH), (1,))
        )

    def forward(self, h: Tensor) -> Tensor:
        return h + torch.sigmoid(self.gate) * (self.layer(h) * self.gain + self.shift)


def recurrent(inner: nn.RNNBase, h: Tensor, mask: Tensor | None) -> Tensor:
    return inner(h)[0]


def recurrent_time_first(inner: nn.RNNBase, h: Tensor, mask: Tensor | None) -> Tensor:
    return inner(h.transpose(0, 1))[0].transpose(0, 1)


def last_state(inner: nn.LSTM, h: Tensor, mask: Tensor | None) -> Tensor:
    first = torch.zeros(2, h.shape[0], WIDTH)
    return inner(h, (first, first))[1][0].sum(0)[:, None]


MODULES: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor] | None, int]] = {
    "MultiheadAttention, batch first": (
        lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True),
        attend(),
        WIDTH,
    ),
    "MultiheadAttention, time first": (lambda: nn.MultiheadAttention(WIDTH, 2), attend(True), WIDTH),
    "MultiheadAttention with its weights": (
        lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True, add_bias_kv=True),
        attend(weights=True),
        WIDTH,
    ),
    "MultiheadAttention, other keys": (
        lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True, kdim=WIDTH, vdim=WIDTH, bias=False),
        cross,
        WIDTH,
    ),
    "attention of one's own": (OwnAttention, None, WIDTH),
    "plain parameters": (Scaled, None, WIDTH),
    "LSTM, batch first": (
        lambda: nn.LSTM(WIDTH, WIDTH, batch_first=True, bidirectional=True),
        recurrent,
        2 * WIDTH,
    ),
    "LSTM, time first": (lambda: nn.LSTM(WIDTH, WIDTH, num_layers=2), recurrent_time_first, WIDTH),
    "LSTM, last state": (lambda: nn.LSTM(WIDTH, WIDTH, num_layers=2, batch_first=True), last_state, WIDTH),
    "GRU": (lambda: nn.GRU(WIDTH, WIDTH, batch_first=True), recurrent, WIDTH),
    "RNN": (lambda: nn.RNN(WIDTH, WIDTH, batch_first=True), recurrent, WIDTH),
    "Bilinear": (
        lambda: nn.Bilinear(WIDTH, WIDTH, WIDTH),
        lambda inner, h, mask: inner(h, torch.sin(h)),
        WIDTH,
    ),
    "PReLU": (lambda: nn.PReLU(), None, WIDTH),
    "weight norm": (lambda: weight_norm(nn.Linear(WIDTH, WIDTH)), None, WIDTH),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_without_a_rule_take_the_general_path(name: str, assert_exact: Any) -> None:
    make, run, width = MODULES[name]
    model = Model(make(), run, width)
    engine = assert_exact(model, batches(mask="Multihead" in name), bands=three_bands(model))
    assert paths_within(engine) == {"general"}
    assert paths_within(engine, "enter.") == paths_within(engine, "leave.") == {"fast"}
    assert any(type(model.inner).__name__ in note for note in engine.notes)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_encoder_layers_take_the_same_way_in_training_and_evaluation_mode(
    training: bool, masked: bool, norm_first: bool, assert_exact: Any
) -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.0, batch_first=True, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)
    model = Model(
        encoder, lambda inner, h, mask: inner(h, src_key_padding_mask=None if mask is None else ~mask)
    )
    model.train(training)
    engine = assert_exact(model, batches(masked), bands=three_bands(model))
    general = {name for name, path in engine.paths.items() if path == "general"}
    assert general == {name for name, _ in model.named_parameters() if "self_attn" in name}
    assert "reference" not in engine.paths.values()


class Bag(nn.Module):
    """Indices [B, T] -> [B, 2], by rows or by offsets into all of them."""

    def __init__(self, by_offsets: bool, weighted: bool) -> None:
        super().__init__()
        self.bag, self.leave = nn.EmbeddingBag(9, WIDTH, mode="sum"), nn.Linear(WIDTH, 2)
        self.scores = nn.Embedding(9, 1)
        self.by_offsets, self.weighted = by_offsets, weighted

    def forward(self, x: Tensor) -> Tensor:
        scores = self.scores(x)[..., 0] if self.weighted else None
        if not self.by_offsets:
            return self.leave(self.bag(x, per_sample_weights=scores))
        offsets = torch.arange(len(x)) * x.shape[1]
        scores = None if scores is None else scores.flatten()
        return self.leave(self.bag(x.flatten(), offsets, per_sample_weights=scores))


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("by_offsets", [True, False])
def test_bags_of_embeddings(by_offsets: bool, weighted: bool, assert_exact: Any) -> None:
    model = Bag(by_offsets, weighted)
    names = [name for name, _ in model.named_parameters()]
    bands = (Band("head", (), tuple(n for n in names if "bag" not in n)), Band("bag", (), ("bag.weight",)))
    given = [{"x": torch.randint(0, 9, (BATCH, TOKENS))} for _ in range(3)]
    engine = assert_exact(model, given, bands=bands)
    assert engine.paths["bag.weight"] == "general"


def test_a_requested_output_size_and_named_arguments_take_the_general_path(assert_exact: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose1d(3, 2, 3, stride=2)
            self.line = nn.Linear(10, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.line(input=self.up(x, output_size=[10]))

    model = Net()
    bands = (Band("line", (), ("line.weight", "line.bias")), Band("up", (), ("up.weight", "up.bias")))
    engine = assert_exact(model, [{"x": torch.randn(BATCH, 3, 4)} for _ in range(3)], bands=bands)
    assert set(engine.paths.values()) == {"general"}


def test_parameters_of_the_model_itself_take_the_reference_path(assert_exact: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.gain = nn.Linear(WIDTH, 2), nn.Parameter(torch.randn(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * self.gain

    model = Net()
    bands = (Band("gain", (), ("gain",)), Band("layer", (), ("layer.weight", "layer.bias")))
    engine = assert_exact(model, batches(), bands=bands)
    assert engine.paths == {"gain": "reference", "layer.weight": "fast", "layer.bias": "fast"}
    (note,) = engine.notes
    assert "`gain`" in note


def test_pieces_are_recomputed_by_themselves_within_activation_checkpointing(assert_exact: Any) -> None:
    calls = []

    class Counting(Scaled):
        def forward(self, h: Tensor) -> Tensor:
            calls.append(1)
            return super().forward(h)

    model = Model(Counting(), lambda inner, h, mask: checkpoint(inner, torch.sin(h), use_reentrant=False))
    engine = assert_exact(model, batches(), bands=three_bands(model))
    assert paths_within(engine) == {"general"}
    masks = make_engine(model, three_bands(model), "fused")
    for armed in range(2):
        calls.clear()
        masks.arm(torch.rand(BATCH, 3))
        masks.backward(model(batches()[0]["x"]).pow(2).flatten(1).mean(1), 1.0)
        if armed:
            # Forward; recomputed around it; and by itself for its inputs, and for each of two bands.
            assert len(calls) <= 5


def test_dropout_inside_a_piece_is_that_of_plain_training() -> None:
    layer = nn.MultiheadAttention(WIDTH, 2, dropout=0.4, batch_first=True)
    model = Model(
        layer, lambda inner, h, mask: checkpoint(inner, h, h, h, need_weights=False, use_reentrant=False)[0]
    )
    x = batches()[0]["x"]
    torch.manual_seed(3)
    (model(x).pow(2).flatten(1).mean(1) * 0.5).sum().backward()
    want = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    masks = make_engine(model, three_bands(model), "fused")
    weights = torch.tensor([[0.5, 0.5, 0.5]] * (BATCH - 1) + [[0.5, 0.5, 0.5 + 1e-13]])
    masks.arm(weights)
    torch.manual_seed(3)
    masks.backward(model(x).pow(2).flatten(1).mean(1), 1.0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, want[name], rtol=1e-9, atol=1e-11, msg=name)


def test_hooks_of_a_parameter_see_its_gradient_once() -> None:
    model = Model(Scaled())
    masks = make_engine(model, three_bands(model), "fused")
    x, weights = batches()[0]["x"], torch.rand(BATCH, 3)
    found = []
    for hooked in (False, True):
        if hooked:
            for parameter in model.parameters():
                parameter.register_hook(lambda gradient: 2 * gradient)
        model.zero_grad(set_to_none=True)
        masks.arm(weights)
        masks.backward(model(x).pow(2).flatten(1).mean(1), 1.0)
        found.append([p.grad.clone() for p in model.parameters()])
    for plain, doubled in zip(*found, strict=True):
        torch.testing.assert_close(doubled, 2 * plain, rtol=1e-12, atol=1e-14)


def test_unweighted_gradients_of_single_examples_come_from_the_same_graph() -> None:
    model = Model(nn.LSTM(WIDTH, WIDTH, batch_first=True), recurrent)
    masks = make_engine(model, three_bands(model), "fused")
    x, parameters = batches()[0]["x"], list(model.parameters())
    alone = torch.autograd.grad(model(x[3:4]).pow(2).mean(), parameters)
    masks.arm(torch.rand(BATCH, 3) + 0.1)
    losses = model(x).pow(2).flatten(1).mean(1)
    with masks.unweighted():
        for _ in range(2):
            found = torch.autograd.grad(losses[3], parameters, retain_graph=True)
    for gradient, expected in zip(found, alone, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
    masks.backward(losses, 1.0, rows=torch.tensor([True, False, True, True, False]))


class Keeps(nn.Module):
    """Keeps a tensor from within its forward pass, on which a loss may then depend."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(WIDTH))
        self.kept: Tensor | None = None

    def forward(self, h: Tensor) -> Tensor:
        self.kept = torch.sin(h * self.gain)
        return self.kept + h


def test_a_loss_on_what_a_piece_keeps_is_never_silently_wrong() -> None:
    model = Model(Keeps())
    masks = make_engine(model, three_bands(model), "fused")
    x, weights = batches()[0]["x"], torch.rand(BATCH, 3)

    def losses(x: Tensor) -> Tensor:
        first = model(x).pow(2).flatten(1).mean(1)
        return first + model.inner.kept.flatten(1).mean(1)

    masks.arm(weights)
    with pytest.raises(MaskError, match="keeps a tensor from within") as caught:
        masks.backward(losses(x), 1.0)
    assert "repeat the step" in str(caught.value.help)
    assert all(p.grad is None for p in model.parameters())
    home = {name: k for k, band in enumerate(three_bands(model)) for name in band.parameters}
    masks.disarm()
    want = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row in range(BATCH):
        (loss,) = losses(x[row : row + 1])
        for name, gradient in zip(want, torch.autograd.grad(loss, list(model.parameters())), strict=True):
            want[name] += weights[row, home[name]] * gradient
    masks.arm(weights)
    masks.backward(losses(x), 1.0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, want[name], rtol=1e-9, atol=1e-12, msg=name)


def test_a_module_that_reaches_for_a_tensor_beside_its_arguments_is_no_piece(assert_exact: Any) -> None:
    class Reaches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.randn(WIDTH))
            self.context: list[Tensor] = []

        def forward(self, h: Tensor) -> Tensor:
            return h + self.gain * self.context[0]

    def run(inner: Reaches, h: Tensor, mask: Tensor | None) -> Tensor:
        inner.context = [torch.sin(h)]
        return inner(h)

    model = Model(Reaches(), run)
    engine = assert_exact(model, batches(), bands=three_bands(model))
    assert paths_within(engine) == {"reference"}


class InPlace(nn.Module):
    """Changes its argument, which cannot be cut off for it."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(WIDTH))

    def forward(self, h: Tensor) -> Tensor:
        return h.mul_(2.0) * self.gain


def test_a_module_that_changes_its_argument_takes_the_reference_path(assert_exact: Any) -> None:
    model = Model(InPlace(), lambda inner, h, mask: inner(torch.sin(h)))
    engine = assert_exact(model, batches(), bands=three_bands(model))
    assert paths_within(engine) == {"reference"}


def test_rows_that_move_within_a_piece_are_those_of_their_examples_outside_it(assert_exact: Any) -> None:
    class Sorts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.randn(WIDTH))

        def forward(self, h: Tensor) -> Tensor:
            order = h.sum((1, 2)).argsort()
            return (h[order] * self.gain)[order.argsort()]

    model = Model(Sorts())
    engine = assert_exact(model, batches(), bands=three_bands(model))
    assert paths_within(engine) == {"general"}


# A class with a rule of its user's.


class Gain(nn.Module):
    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(width))

    def forward(self, h: Tensor) -> Tensor:
        return h * self.gain


def gain_rule(layer: Gain, h: Tensor, grad: Tensor) -> dict[str, Tensor]:
    return {"gain": (grad * h).flatten(0, -2).sum(0)}


def with_gain(rule: Any, engine: str) -> tuple[Model, Any, dict[str, Tensor]]:
    model = Model(Gain())
    bands, weights, x = three_bands(model), torch.rand(BATCH, 3), batches()[0]["x"]
    home = {name: k for k, band in enumerate(bands) for name in band.parameters}
    want = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row in range(BATCH):
        loss = model(x[row : row + 1]).pow(2).mean()
        for name, gradient in zip(want, torch.autograd.grad(loss, list(model.parameters())), strict=True):
            want[name] += weights[row, home[name]] * gradient
    masks = make_engine(model, bands, engine, layers={} if rule is None else {Gain: rule})
    masks.arm(weights)
    masks.backward(model(x).pow(2).flatten(1).mean(1), 1.0)
    return model, masks, want


def assert_gradients(model: nn.Module, want: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, want[name], rtol=1e-9, atol=1e-12, msg=name)


def test_a_rule_makes_a_class_fast() -> None:
    model, masks, want = with_gain(gain_rule, "fused")
    assert_gradients(model, want)
    assert set(masks.paths.values()) == {"fast"}
    assert masks.notes == []


def test_a_rule_holds_for_subclasses_that_keep_the_forward_and_for_no_others() -> None:
    class Same(Gain):
        pass

    class Other(Gain):
        def forward(self, h: Tensor) -> Tensor:
            return h * self.gain * 2

    x = batches()[0]["x"]
    for kind, path in ((Same, "fast"), (Other, "general")):
        model = Model(kind())
        masks = make_engine(model, three_bands(model), "fused", layers={Gain: gain_rule})
        masks.arm(torch.rand(BATCH, 3))
        masks.backward(model(x).pow(2).flatten(1).mean(1), 1.0)
        masks.close()
        assert masks.paths["inner.gain"] == path


@pytest.mark.parametrize(
    "rule",
    [
        lambda layer, h, grad: {"gain": 2 * gain_rule(layer, h, grad)["gain"]},
        lambda layer, h, grad: {"gain": (grad.abs() * h).flatten(0, -2).sum(0)},
        lambda layer, h, grad: {},
    ],
)
def test_a_rule_that_is_wrong_is_found_by_the_probe(rule: Any) -> None:
    with pytest.raises(MaskError, match=r"the gradient of `inner\.gain` is .* from the exact one"):
        with_gain(rule, "fused")
    with pytest.warns(UserWarning, match=r"split.*inner\.gain"):
        _, masks, _ = with_gain(rule, "auto")
    assert masks.name == "split"
    assert "inner.gain" in masks.notes[0]
    assert set(masks.paths.values()) == {"reference"}


class Shuffled(nn.Module):
    """Layers of its own between two moves of rows by content: [B, T, W] -> [B, T, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        order = h.sum((1, 2)).argsort()
        return torch.tanh(self.middle(h[order]))[order.argsort()]


def test_a_class_may_be_asked_to_be_one_piece() -> None:
    """So that rows which move in later batches only need not be found out first."""
    model = Model(Shuffled())
    bands = three_bands(model)
    x, weights = batches()[0]["x"], torch.rand(BATCH, 3)
    with torch.no_grad():
        regular = x[model.enter(x).sum((1, 2)).argsort()]

    def step(masks: Any, x: Tensor) -> None:
        masks.arm(weights)
        masks.backward(model(x).pow(2).flatten(1).mean(1), 1.0)

    masks = make_engine(model, bands, "fused", layers={Shuffled: None})
    step(masks, regular)
    step(masks, regular.flip(0))
    masks.close()
    assert paths_within(masks) == {"general"}
    masks = make_engine(model, bands, "fused")
    step(masks, regular)
    with pytest.raises(MaskError, match="moves rows by content"):
        step(masks, regular.flip(0))
