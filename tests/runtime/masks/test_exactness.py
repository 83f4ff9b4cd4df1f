"""Both engines give the gradients of the definition: each example back-propagated alone, weighted, summed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from gradwarden.policy.program import Band
from gradwarden.runtime.masks import make_engine, planner

EXACT = 1e-9
"""The greatest relative error of a float64 gradient."""


DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(autouse=True, params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run each test in float64, on the processor and, where there is one, on the accelerator.

    Blocks are run in parts wherever they can be, however small they are.
    """
    for kind in DEVICES:
        monkeypatch.setitem(planner.CALL_COST, kind, 0.0)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device(request.param)
    yield request.param
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


class Perceptron(nn.Module):
    """A stack with a layer called twice, plain parameters added and multiplied, and both row norms."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(width))
        self.shift = nn.Parameter(torch.randn(width))
        self.first = nn.Linear(3, width, bias=bias)
        self.again = nn.Linear(width, width)
        self.layer_norm = nn.LayerNorm(width, bias=bias)
        self.rms_norm = nn.RMSNorm(width)
        self.last = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer_norm(self.first(x)) * self.scale
        h = h + torch.tanh(self.again(h))
        h = self.rms_norm(self.again(h)) + self.shift
        return self.last(h)


class Convolutional(nn.Module):
    """Strided, dilated, grouped and padded convolutions with group norms: [B, 4, 9, 8] -> [B, 3]."""

    def __init__(self, padding_mode: str, padding: Any, groups: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(4, 6, 3, padding=padding, padding_mode=padding_mode, groups=groups)
        self.norm = nn.GroupNorm(3, 6)
        self.two = nn.Conv2d(6, 4, (3, 2), stride=2, dilation=(1, 2), bias=False)
        self.line = nn.Conv1d(4, 2, 2, padding="valid")
        self.last = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.norm(self.one(x)), inplace=True)
        h = self.line(self.two(h).flatten(2))
        return self.last(h.mean(2))


class Block(nn.Module):
    """Pre-norm attention and an MLP over flattened tokens."""

    def __init__(self, width: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = norm(width), norm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        query, key, value = self.qkv(self.norm_1(x)).chunk(3, dim=2)
        x = x + self.proj(functional.scaled_dot_product_attention(query, key, value, is_causal=True))
        flat = self.norm_2(x).reshape(batch * tokens, width)
        return x + self.down(functional.gelu(self.up(flat))).view(batch, tokens, width)


class GPT(nn.Module):
    """A language model; `tie` shares the embedding with the head, by module or by function."""

    def __init__(self, tokens: int, blocks: int, norm: Callable[[int], nn.Module], tie: str, lead: bool):
        super().__init__()
        width, words = 4, 7
        self.words, self.places = nn.Embedding(words, width, padding_idx=0), nn.Embedding(tokens, width)
        self.blocks = nn.ModuleList(Block(width, norm) for _ in range(blocks))
        self.norm = norm(width)
        self.head = nn.Linear(width, words, bias=False)
        self._tie, self._lead = tie, lead
        if tie == "module":
            self.head.weight = self.words.weight
        elif tie == "function":
            del self.head

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])
        h = self.words(x) + self.places(places[None] if self._lead else places)
        for block in self.blocks:
            h = block(h)
        h = self.norm(h)
        return functional.linear(h, self.words.weight) if self._tie == "function" else self.head(h)


class Recurrent(nn.Module):
    """Time-first layers and an LSTM: [B, T, 3] -> [B, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(3, 4)
        self.lstm = nn.LSTM(4, 4)
        self.norm = nn.LayerNorm(4)
        self.flat = nn.Linear(4, 4)
        self.leave = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.lstm(self.enter(x.transpose(0, 1)))
        h = self.flat(self.norm(h).flatten(0, 1)).view(h.shape)
        return self.leave(h.sum(0))


class Encoder(nn.Module):
    """PyTorch's own encoder layer, whose attention uses its weights without calling their modules."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(3, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.enter(x))


@st.composite
def governed(draw: st.DrawFn, model: nn.Module, most: int = 6) -> tuple[tuple[Band, ...], Tensor]:
    """Draw a band for every parameter, whatever its place, and weights for a batch."""
    names = [name for name, _ in model.named_parameters()]
    count = draw(st.integers(1, 3))
    homes = draw(st.lists(st.integers(0, count - 1), min_size=len(names), max_size=len(names)))
    bands = tuple(
        Band(f"b{k}", (), tuple(n for n, home in zip(names, homes, strict=True) if home == k))
        for k in range(count)
    )
    weight = st.sampled_from([0.0, 0.0, 1.0, 1.0, 0.5]) | st.floats(0.01, 4.0)
    row = st.lists(weight, min_size=count, max_size=count)
    rows = draw(st.lists(row, min_size=1, max_size=most))
    return bands, torch.tensor(rows, dtype=torch.float64)


def per_example(model: nn.Module, bands: tuple[Band, ...], weights: Tensor, x: Tensor) -> dict[str, Tensor]:
    """Return the definition's gradients, by looping over the examples; normaliser 3."""
    home = {name: k for k, band in enumerate(bands) for name in band.parameters}
    parameters = dict(model.named_parameters())
    sums = {n: torch.zeros_like(p) for n, p in parameters.items() if bool(weights[:, home[n]].any())}
    for number in range(len(x)):
        gradients = torch.autograd.grad(loss_of(model, x[number : number + 1])[0], list(parameters.values()))
        for (name, _), gradient in zip(parameters.items(), gradients, strict=True):
            if name in sums:
                sums[name] += weights[number, home[name]] * gradient / 3
    return sums


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    """Return one loss per example, curved so that no gradient is constant."""
    return model(x).pow(2).flatten(1).mean(1) + model_free_term(x)


def model_free_term(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1) * 0.0


def engine_gradients(
    model: nn.Module, bands: tuple[Band, ...], weights: Tensor, x: Tensor, engine: str
) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    masks = make_engine(model, bands, engine)
    masks.arm(weights)
    masks.backward(loss_of(model, x), 3.0)
    masks.close()
    assert masks.name == engine
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_exact(model: nn.Module, bands: tuple[Band, ...], weights: Tensor, x: Tensor) -> None:
    want = per_example(model, bands, weights, x)
    for engine in ("split", "fused"):
        got = engine_gradients(model, bands, weights, x, engine)
        assert got.keys() == want.keys(), engine
        overall = max((float(g.abs().max()) for g in want.values()), default=0.0)
        for name, gradient in want.items():
            scale = max(float(gradient.abs().max()), 1e-6 * overall)
            error = float((got[name] - gradient).abs().max())
            assert error <= EXACT * scale, f"{engine}: {name} is off by {error / scale:.1e}"


seeds = st.integers(0, 2**31)
few = settings(max_examples=20)


@few
@given(st.data(), seeds, st.booleans())
def test_perceptrons_with_reused_layers_and_plain_parameters(
    data: st.DataObject, seed: int, bias: bool
) -> None:
    torch.manual_seed(seed)
    model = Perceptron(data.draw(st.integers(2, 5)), bias)
    bands, weights = data.draw(governed(model))
    shape = data.draw(st.sampled_from([(), (2,), (len(weights),)]))
    assert_exact(model, bands, weights, torch.randn(len(weights), *shape, 3))


@few
@given(
    st.data(),
    seeds,
    st.sampled_from([("zeros", 1), ("zeros", "same"), ("reflect", 1), ("circular", (2, 1)), ("zeros", 0)]),
    st.sampled_from([1, 2]),
)
def test_convolutions_and_group_norms(
    data: st.DataObject, seed: int, padding: tuple[str, Any], groups: int
) -> None:
    torch.manual_seed(seed)
    model = Convolutional(*padding, groups)
    bands, weights = data.draw(governed(model))
    assert_exact(model, bands, weights, torch.randn(len(weights), 4, 9, 8))


@few
@given(
    st.data(),
    seeds,
    st.sampled_from([nn.LayerNorm, nn.RMSNorm]),
    st.sampled_from(["no", "module", "function"]),
    st.booleans(),
)
def test_language_models_with_tied_heads_and_positions(
    data: st.DataObject, seed: int, norm: Callable[[int], nn.Module], tie: str, lead: bool
) -> None:
    torch.manual_seed(seed)
    tokens = data.draw(st.integers(2, 5))
    model = GPT(tokens, data.draw(st.integers(1, 2)), norm, tie, lead)
    bands, weights = data.draw(governed(model))
    assert_exact(model, bands, weights, torch.randint(7, (len(weights), tokens)))


@few
@given(st.data(), seeds, st.sampled_from([Recurrent, Encoder]))
def test_models_whose_layers_are_not_all_supported(
    data: st.DataObject, seed: int, architecture: Callable[[], nn.Module]
) -> None:
    torch.manual_seed(seed)
    model = architecture()
    bands, weights = data.draw(governed(model))
    assert_exact(model, bands, weights, torch.randn(len(weights), 3, 3))


@pytest.mark.parametrize("engine", ["fused", "split"])
def test_all_ones_is_plain_training(engine: str) -> None:
    torch.manual_seed(1)
    model = GPT(4, 2, nn.LayerNorm, "module", False)
    bands = (Band("all", (), tuple(name for name, _ in model.named_parameters())),)
    x = torch.randint(7, (5, 4))
    got = engine_gradients(model, bands, torch.ones(5, 1), x, engine)
    (loss_of(model, x).sum() / 3).backward() if not model.zero_grad() else None
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("sequence", [3, 6])
def test_a_sequence_as_long_as_the_batch_is_wide_is_not_taken_for_it(sequence: int) -> None:
    torch.manual_seed(2)
    model = Recurrent()
    names = [name for name, _ in model.named_parameters()]
    bands = (Band("a", (), tuple(names[::2])), Band("b", (), tuple(names[1::2])))
    weights = torch.tensor([[1.0, 0.0], [0.5, 1.0], [0.0, 0.3]])
    assert_exact(model, bands, weights, torch.randn(3, sequence, 3))


def test_gradients_accumulate_over_batches_and_a_band_nobody_reaches_stays_as_it_was() -> None:
    torch.manual_seed(3)
    model = Perceptron(3, True)
    names = [name for name, _ in model.named_parameters()]
    bands = (Band("a", (), tuple(names[:4])), Band("b", (), tuple(names[4:])))
    batches = [torch.randn(4, 3), torch.randn(2, 3)]
    weights = [torch.tensor([[1.0, 0.0]] * 4), torch.tensor([[0.5, 0.0], [0.0, 0.0]])]
    want = [per_example(model, bands, w, x) for w, x in zip(weights, batches, strict=True)]
    masks = make_engine(model, bands, "fused")
    for w, x in zip(weights, batches, strict=True):
        masks.arm(w)
        masks.backward(loss_of(model, x), 3.0)
    masks.close()
    for name, parameter in model.named_parameters():
        if name in names[4:]:
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, want[0][name] + want[1][name], rtol=1e-9, atol=1e-12)


def test_half_precision_autocast_is_exact_to_its_own_precision(device: str) -> None:
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(4)
    model = GPT(4, 2, nn.LayerNorm, "no", False)
    names = [name for name, _ in model.named_parameters()]
    bands = (Band("a", (), tuple(names[::2])), Band("b", (), tuple(names[1::2])))
    weights, x = torch.tensor([[1.0, 0.0], [0.3, 1.0], [0.0, 0.0], [1.0, 1.0]]), torch.randint(7, (4, 4))
    with torch.autocast(device, torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("error")
        fused = engine_gradients(model, bands, weights, x, "fused")
        split = engine_gradients(model, bands, weights, x, "split")
    for name, gradient in split.items():
        error = float((fused[name] - gradient).norm() / gradient.norm())
        assert error < 0.03, name
