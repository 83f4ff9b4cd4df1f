"""The mistakes that are easy to make with gradient masks, one test each: it fails where the mistake is made.

Most tests also make the mistake on purpose, so as to show that they would see it. The traps of training in
several processes, of privacy and of the cost model are tested elsewhere; `docs/masks.md` lists them all.
"""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from gradwarden.policy.program import Band
from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.masks import make_engine

EXACT = 1e-9
BATCH, TOKENS, WIDTH, WORDS = 6, 5, 8, 11

engines = pytest.mark.parametrize("engine", ["fused", "split"])


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Block(nn.Module):
    """Attention and an MLP; the MLP's hidden activations, or the block's output, may be cut for some rows."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.cut: tuple[str, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm_1(x)).chunk(3, dim=2)
        x = x + self.proj(functional.scaled_dot_product_attention(query, key, value, is_causal=True))
        hidden = functional.gelu(self.up(self.norm_2(x)))
        x = x + self.down(self.detached("hidden", hidden))
        return self.detached("output", x)

    def detached(self, place: str, h: Tensor) -> Tensor:
        """Cut the rows at this place, as the detach method of gradient routing does."""
        if self.cut is None or self.cut[0] != place:
            return h
        return torch.where(self.cut[1][:, None, None], h.detach(), h)


class GPT(nn.Module):
    """Four blocks over tokens [B, T]; returns one loss per example."""

    def __init__(self, recompute: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS)
        self.dropout = nn.Dropout(dropout)
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        h = self.dropout(self.words(x) + self.places(torch.arange(TOKENS)))
        for block in self.blocks:
            h = checkpoint(block, h, use_reentrant=False) if self.recompute else block(h)
        logits = self.head(self.norm(self.dropout(h)))[:, :-1]
        return functional.cross_entropy(logits.transpose(1, 2), x[:, 1:], reduction="none").mean(1)


def depth_bands(model: nn.Module) -> tuple[Band, ...]:
    """Return a band for each block, with what follows and what precedes them, from the output down."""
    names = [name for name, _ in model.named_parameters()]
    groups = [("blocks.3.", "norm", "head"), ("blocks.2.",), ("blocks.1.",), ("blocks.0.", "words", "places")]
    return tuple(Band(f"b{k}", (), tuple(n for n in names if n.startswith(g))) for k, g in enumerate(groups))


def tokens(batch: int = BATCH, seed: int = 1) -> Tensor:
    return torch.randint(0, WORDS, (batch, TOKENS), generator=torch.Generator().manual_seed(seed))


def alone(
    model: nn.Module, bands: tuple[Band, ...], weights: Tensor, x: Tensor, losses: Callable[..., Tensor]
) -> dict[str, Tensor]:
    """Each example back-propagated alone, its gradient times its weight per band, summed; normaliser 1."""
    home = {name: k for k, band in enumerate(bands) for name in band.parameters}
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for row in range(len(x)):
        (loss,) = losses(model, x[row : row + 1])
        for name, gradient in zip(
            parameters, torch.autograd.grad(loss, list(parameters.values()), allow_unused=True), strict=True
        ):
            if gradient is not None:
                total[name] += float(weights[row, home[name]]) * gradient
    return total


def governed(
    model: nn.Module,
    bands: tuple[Band, ...],
    weights: Tensor,
    x: Tensor,
    engine: str,
    losses: Callable[..., Tensor] = lambda model, x: model(x),
    normaliser: float = 1.0,
) -> dict[str, Tensor | None]:
    """The gradients of one batch by an engine."""
    model.zero_grad(set_to_none=True)
    masks = make_engine(model, bands, engine)
    masks.arm(weights)
    masks.backward(losses(model, x), normaliser)
    masks.close()
    assert masks.name == engine
    return {name: p.grad for name, p in model.named_parameters()}


def distance(have: dict[str, Tensor | None], want: dict[str, Tensor], part: str = "") -> float:
    """The greatest relative error of a gradient, among the parameters whose names begin with `part`."""
    return max(
        float((torch.zeros_like(g) if have[n] is None else have[n] - g).norm() / (g.norm() + 1e-300))
        for n, g in want.items()
        if n.startswith(part) and bool(g.any())
    )


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "nesterov and decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9),
    "adamw, foreach": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
}


@engines
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_trap_1_history_and_decay_do_not_move_a_masked_band(engine: str, optimizer: str) -> None:
    """R27, R28: blocked parameters and their optimizer state keep every bit, clipping included."""
    model = GPT()
    bands = depth_bands(model)
    deep = {name for band in bands[2:] for name in band.parameters}
    moving = OPTIMIZERS[optimizer](model.parameters())
    masks = make_engine(model, bands, engine)
    kept: dict[str, Tensor] = {}
    state: dict[str, Any] = {}
    for step in range(6):
        weights = torch.ones(BATCH, 4)
        if step >= 2:
            weights[:, 2:] = 0.0
        moving.zero_grad()
        masks.arm(weights)
        masks.backward(model(tokens(seed=step)), float(BATCH))
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        moving.step()
        parameters = dict(model.named_parameters())
        if step == 1:
            kept = {name: parameters[name].detach().clone() for name in deep}
            state = {name: copy.deepcopy(moving.state[parameters[name]]) for name in deep}
    for name, parameter in model.named_parameters():
        if name not in deep:
            continue
        assert torch.equal(parameter, kept[name]), name
        for key, value in state[name].items():
            assert torch.equal(torch.as_tensor(moving.state[parameter][key]), torch.as_tensor(value)), key
    # The mistake: gradients of zero instead of none.
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    moving.step()
    assert not all(torch.equal(dict(model.named_parameters())[name], kept[name]) for name in deep)


@engines
def test_trap_2_a_mask_is_not_a_detached_activation(engine: str) -> None:
    """R30: a weight at one block changes that block's gradient, and neither what is above nor below it."""
    model = GPT()
    bands = depth_bands(model)
    weights = torch.ones(BATCH, 4)
    weights[:3, 2] = 0.0  # block 1 is closed to half of the examples
    x = tokens()
    want = alone(model, bands, weights, x, lambda model, x: model(x))
    assert distance(governed(model, bands, weights, x, engine), want) < EXACT
    for place, part, least in (("hidden", "blocks.1.qkv", 0.1), ("output", "blocks.0.", 0.1)):
        model.blocks[1].cut = (place, weights[:, 2] == 0)
        gradients = torch.autograd.grad(model(x).sum(), list(model.parameters()))
        model.blocks[1].cut = None
        detached = dict(zip(dict(model.named_parameters()), gradients, strict=True))
        assert distance(detached, want, part) > least


@engines
@pytest.mark.parametrize("private", [1, 3, 5])
def test_trap_3_public_bands_are_bitwise_the_same_whatever_private_rows_hold(
    engine: str, private: int
) -> None:
    model = GPT()
    bands = depth_bands(model)
    public_only = {name for band in bands[1:] for name in band.parameters}
    weights = torch.ones(4 + private, 4)
    weights[4:, 1:] = 0.0
    first, second = (torch.cat([tokens(4), tokens(private, seed)]) for seed in (7, 8))
    one, other = (governed(model, bands, weights, x, engine, normaliser=8.0) for x in (first, second))
    for name in public_only:
        assert torch.equal(one[name], other[name]), name  # type: ignore[arg-type]
    fewer = governed(model, bands, weights[:4], first[:4], engine, normaliser=8.0)
    assert distance(one, {n: fewer[n] for n in public_only}) < 1e-12  # type: ignore[misc]
    # The mistake: the mean over a batch whose size depends on how many private rows came.
    losses = model(first)
    by_mean = torch.autograd.grad((losses * weights[:, 1]).mean(), model.words.weight)[0]
    alone_mean = torch.autograd.grad(model(first[:4]).mean(), model.words.weight)[0]
    assert float((by_mean - alone_mean).norm() / alone_mean.norm()) > 0.1


@engines
def test_trap_3_batch_norm_would_let_private_rows_into_public_bands_and_is_refused(engine: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    x = torch.randn(6, 4)
    spoilt = torch.cat([x[:3], x[3:] + 1])
    one, other = (torch.autograd.grad(model(v)[:3].sum(), model[0].weight)[0] for v in (x, spoilt))
    assert float((one - other).norm() / one.norm()) > 0.1
    bands = (Band("all", (), tuple(name for name, _ in model.named_parameters())),)
    with pytest.raises(MaskError, match="BatchNorm1d in training mode"):
        make_engine(model, bands, engine)


class Reused(nn.Module):
    """One layer called three times, and an embedding that serves as the head, by module or by function."""

    def __init__(self, by_module: bool) -> None:
        super().__init__()
        self.words, self.again, self.norm = (
            nn.Embedding(WORDS, WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.LayerNorm(WIDTH),
        )
        self.head = nn.Linear(WIDTH, WORDS, bias=False) if by_module else None
        if self.head is not None:
            self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x)
        for _ in range(3):
            h = h + torch.tanh(self.again(self.norm(h)))
        logits = self.head(h) if self.head is not None else functional.linear(h, self.words.weight)
        return functional.cross_entropy(logits[:, :-1].transpose(1, 2), x[:, 1:], reduction="none").mean(1)


@engines
@pytest.mark.parametrize("by_module", [True, False])
def test_trap_4_tied_and_reused_modules_sum_all_their_uses(engine: str, by_module: bool) -> None:
    model = Reused(by_module)
    bands = (
        Band("a", (), ("again.weight", "norm.bias")),
        Band("b", (), ("words.weight", "again.bias", "norm.weight")),
    )
    weights = torch.tensor([[1.0, 0.0], [0.5, 2.0], [0.0, 0.0], [0.0, 1.0], [1.5, 0.3], [1.0, 1.0]])
    want = alone(model, bands, weights, tokens(), lambda model, x: model(x))
    assert distance(governed(model, bands, weights, tokens(), engine), want) < EXACT


@engines
def test_trap_5_recomputed_layers_use_the_plan_of_their_own_forward_pass(engine: str) -> None:
    model = GPT(recompute=True)
    bands = depth_bands(model)
    masks = make_engine(model, bands, engine)
    generator = torch.Generator().manual_seed(3)
    plans = [
        torch.rand(BATCH, 4, generator=generator) * (torch.rand(BATCH, 4, generator=generator) > 0.3)
        for _ in range(4)
    ]
    plans[1][:, 1] = 0.0  # what layers keep for their backward pass differs as well
    masks.arm(plans[0])
    for step in range(3):
        x = tokens(seed=step)
        losses = model(x)
        masks.arm(plans[step + 1])  # the next batch's, before this one's backward pass
        model.zero_grad(set_to_none=True)
        masks.backward(losses, 1.0)
        have = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
        want = alone(copy.deepcopy(model), bands, plans[step], x, lambda model, x: model(x))
        assert distance(have, want) < EXACT


class Layouts(nn.Module):
    """Runs one layer on the same numbers in another layout: [B, T, W] -> [B]."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.enter, self.middle, self.leave = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.layout = layout
        self.sorts = layout == "sorted by length"

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.enter(x))
        batch, length, width = h.shape
        match self.layout:
            case "batch first":
                h = self.middle(h)
            case "time first":
                h = self.middle(h.transpose(0, 1)).transpose(0, 1)
            case "flattened tokens":
                h = self.middle(h.reshape(batch * length, width)).view(h.shape)
            case "flattened, time first":
                h = self.middle(h.transpose(0, 1).reshape(batch * length, width))
                h = h.view(length, batch, width).transpose(0, 1)
            case "heads before the batch":
                h = self.middle(h.view(batch, length, 2, width // 2).repeat(1, 1, 1, 2).permute(2, 0, 1, 3))
                h = h.sum(0)
            case "windows":
                h = self.middle(h.unfold(1, 2, 1).permute(0, 1, 3, 2).flatten(0, 1))
                h = h.view(batch, -1, width)
            case "packed by length":
                kept = x[:, :, 0] > 0
                packed = self.middle(h[kept])
                h = torch.zeros_like(h).masked_scatter(kept[:, :, None], packed)
            case "sorted by length" | "sorted from the second step on" if self.sorts:
                order = (x[:, :, 0] > 0).sum(1).argsort(stable=True)
                h = self.middle(h[order])[order.argsort()]
            case "sorted from the second step on":
                h = self.middle(h)
        return self.leave(torch.tanh(h)).pow(2).flatten(1).mean(1)


@pytest.mark.filterwarnings("ignore:gradwarden. :UserWarning", "ignore:gradwarden. the rows:UserWarning")
@pytest.mark.parametrize("length", [3, BATCH, 7])
@pytest.mark.parametrize(
    "layout",
    [
        "batch first",
        "time first",
        "flattened tokens",
        "flattened, time first",
        "heads before the batch",
        "windows",
        "packed by length",
        "sorted by length",
        "sorted from the second step on",
    ],
)
def test_trap_6_the_batch_is_found_in_every_layout(layout: str, length: int) -> None:
    model = Layouts(layout)
    names = [name for name, _ in model.named_parameters()]
    bands = tuple(
        Band(part, (), tuple(n for n in names if n.startswith(part))) for part in ("leave", "middle", "enter")
    )
    for engine in ("auto", "split"):
        masks = make_engine(model, bands, engine)
        for step in range(3):
            x = torch.randn(BATCH, length, WIDTH)
            weights = torch.rand(BATCH, 3) * (torch.rand(BATCH, 3) > 0.4)
            masks.disarm()
            want = alone(model, bands, weights, x, lambda model, x: model(x))
            model.zero_grad(set_to_none=True)
            masks.arm(weights)
            masks.backward(model(x), 1.0)
            have = {name: p.grad for name, p in model.named_parameters()}
            assert distance(have, want) < EXACT, (engine, step)
            model.sorts = layout.startswith("sorted")
        if engine == "auto" and not layout.endswith(("by length", "step on")):
            assert set(masks.paths.values()) == {"fast"}
        masks.close()


@pytest.fixture
def graphs_are_kept() -> Iterator[None]:
    """Compiled graphs may be differentiated several times, as the engines do."""
    with importlib.import_module("torch._functorch.config").patch(donated_buffer=False):
        yield
    torch.compiler.reset()


class Small(nn.Module):
    """A block and a head; moves rows by content where asked to: [B, T] -> [B]."""

    def __init__(self, sort: bool) -> None:
        super().__init__()
        self.words, self.block, self.head = nn.Embedding(WORDS, WIDTH), Block(), nn.Linear(WIDTH, WORDS)
        self.sort = sort

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.words(x))
        order = x[:, 0].argsort(stable=True) if self.sort else torch.arange(len(x))
        h = torch.sigmoid(self.block(h[order])[order.argsort()])
        return self.head(h).pow(2).flatten(1).mean(1)


@pytest.mark.parametrize("sort", [False, True])
def test_trap_9_a_compiled_model_is_exact(sort: bool, graphs_are_kept: None) -> None:
    """Layers answer for themselves between compiled parts, even if those move rows."""
    model = Small(sort)
    names = [name for name, _ in model.named_parameters()]
    shallow = tuple(n for n in names if not n.startswith("words"))
    bands = (Band("shallow", (), shallow), Band("words", (), ("words.weight",)))
    compiled = torch.compile(model, backend="aot_eager")
    masks = make_engine(model, bands, "auto")
    ordered = tokens()[tokens()[:, 0].argsort()]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for x in (*[ordered] * 4, ordered.flip(0)):  # the fifth batch is not one that is checked anyway
            weights = torch.rand(BATCH, 2) * (torch.rand(BATCH, 2) > 0.3)
            masks.disarm()
            want = alone(model, bands, weights, x, lambda model, x: model(x))
            model.zero_grad(set_to_none=True)
            masks.arm(weights)
            masks.backward(compiled(x), 1.0)
            assert distance({name: p.grad for name, p in model.named_parameters()}, want) < EXACT
    assert any("gradwarden" in str(warning.message) for warning in caught) == sort
    masks.close()


class Donated(torch.autograd.Function):
    """Refuses its backward pass in the words of a compiled graph that gives its memory away."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise RuntimeError("This backward function was compiled with non-empty donated buffers")


def test_trap_9_a_graph_that_can_be_differentiated_once_is_refused_with_the_remedy() -> None:
    model = nn.Linear(3, 2)
    bands = (Band("all", (), ("weight", "bias")),)
    masks = make_engine(model, bands, "split")
    masks.arm(torch.rand(BATCH, 1))
    with pytest.raises(MaskError, match="only once") as caught:
        masks.backward(Donated.apply(model(torch.randn(BATCH, 3))).sum(1), 1.0)
    assert "donated_buffer" in str(caught.value.help)


def test_trap_11_a_band_that_private_rows_never_reach_still_learns_of_them() -> None:
    """Confinement of one step's gradient is not confinement of information: the docs must not promise it."""
    model = GPT()
    bands = depth_bands(model)
    deep = {name for band in bands[1:] for name in band.parameters}
    public, private = tokens(5), tokens(1, seed=9)
    runs = []
    for private_row in (private, (private + 1) % WORDS):
        twin = copy.deepcopy(model)
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.5)
        masks = make_engine(twin, bands, "fused")
        weights = torch.ones(6, 4)
        weights[5, 1:] = 0.0
        steps = []
        for _ in range(3):
            optimizer.zero_grad()
            masks.arm(weights)
            masks.backward(twin(torch.cat([public, private_row])), 6.0)
            optimizer.step()
            steps.append({name: p.detach().clone() for name, p in twin.named_parameters()})
        runs.append(steps)
    same = [
        all(torch.equal(one[name], other[name]) for name in deep) for one, other in zip(*runs, strict=True)
    ]
    assert same == [True, False, False]


@engines
def test_trap_14_scattered_rows_give_what_sorted_rows_give(engine: str) -> None:
    model = GPT()
    bands = depth_bands(model)
    weights = torch.ones(BATCH, 4)
    weights[1::2, 1:] = 0.0
    x, order = tokens(), torch.tensor([0, 2, 4, 1, 3, 5])
    scattered = governed(model, bands, weights, x, engine)
    together = governed(model, bands, weights[order], x[order], engine)
    assert distance(scattered, {n: g for n, g in together.items() if g is not None}) < 1e-12


class Gated(Block):
    """A block with a parameter that is in no layer: nothing but a context keeps it off the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.gain


@pytest.mark.parametrize("kind", [Block, Gated])
def test_trap_14_nothing_is_recorded_below_what_the_batch_may_reach(kind: type[Block]) -> None:
    model = GPT()
    model.blocks[0], model.blocks[1] = kind(), kind()
    bands = depth_bands(model)
    masks = make_engine(model, bands, "fused")
    masks.arm(torch.ones(BATCH, 4))
    model(tokens())
    seen: dict[int, bool] = {}
    for number, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _m, _x, y, number=number: seen.update({number: y.requires_grad}))
    masks.arm(torch.tensor([[1.0, 1.0, 0.0, 0.0]] * BATCH))
    model(tokens())
    assert seen == {0: False, 1: False, 2: True, 3: True}


def test_trap_15_a_refused_example_does_not_change_the_dropout_of_the_others() -> None:
    model = GPT(dropout=0.3)
    bands = depth_bands(model)
    weights = torch.ones(BATCH, 4)
    weights[4:] = 0.0
    results = []
    masks = make_engine(model, bands, "fused")
    for seed in (7, 8):
        x = torch.cat([tokens(4), tokens(2, seed)])
        torch.manual_seed(5)
        model.zero_grad(set_to_none=True)
        masks.arm(weights)
        masks.backward(model(x), 4.0)
        results.append({name: p.grad.clone() for name, p in model.named_parameters()})  # type: ignore[union-attr]
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@engines
def test_weights_above_one_amplify(engine: str) -> None:
    """R2."""
    model = GPT()
    bands = depth_bands(model)
    weights = torch.tensor([[2.0, 3.5, 1.0, 0.0], [4.0, 1.0, 1.0, 1.0], [0.0, 1.5, 4.0, 0.25]]).repeat(2, 1)
    want = alone(model, bands, weights, tokens(), lambda model, x: model(x))
    assert distance(governed(model, bands, weights, tokens(), engine), want) < EXACT


@engines
@pytest.mark.parametrize(
    "profile", [(1.0, 0.0, 1.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0), (0.0, 0.0, 0.0, 0.0)]
)
def test_profiles_with_holes_and_empty_ones(engine: str, profile: tuple[float, ...]) -> None:
    """R3: a band without weight has no gradient, whether it lies between others or at an end."""
    model = GPT()
    bands = depth_bands(model)
    weights = torch.tensor([profile] * BATCH)
    want = alone(model, bands, weights, tokens(), lambda model, x: model(x))
    have = governed(model, bands, weights, tokens(), engine)
    closed = {
        name for band, weight in zip(bands, profile, strict=True) if weight == 0 for name in band.parameters
    }
    assert {name for name, gradient in have.items() if gradient is None} == closed
    if len(closed) < len(have):
        assert distance(have, want) < EXACT


@engines
def test_bands_may_be_any_groups_of_parameters(engine: str) -> None:
    """R4: biases, norms and attention as bands of their own, across all depths."""
    model = GPT()
    names = [name for name, _ in model.named_parameters()]
    biases = tuple(n for n in names if n.endswith("bias"))
    attention = tuple(n for n in names if ("qkv" in n or "proj" in n) and n not in biases)
    rest = tuple(n for n in names if n not in (*biases, *attention))
    bands = (Band("biases", (), biases), Band("attention", (), attention), Band("rest", (), rest))
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.2, 0.5, 3.0]]).repeat(2, 1)[
        :BATCH
    ]
    want = alone(model, bands, weights, tokens(), lambda model, x: model(x))
    assert distance(governed(model, bands, weights, tokens(), engine), want) < EXACT


@engines
def test_a_mixed_batch_is_the_sum_of_its_examples_masked_one_by_one(engine: str) -> None:
    """R29."""
    model = GPT()
    bands = depth_bands(model)
    weights = torch.rand(BATCH, 4) * (torch.rand(BATCH, 4) > 0.3)
    weights[0] = 1.0
    mixed = governed(model, bands, weights, tokens(), engine)
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row in range(BATCH):
        single = governed(model, bands, weights[row : row + 1], tokens()[row : row + 1], engine)
        for name, gradient in single.items():
            if gradient is not None:
                total[name] += gradient
    assert distance(mixed, total) < EXACT


@engines
def test_all_ones_reproduce_ungoverned_training_bit_by_bit(engine: str) -> None:
    """R31."""
    plain, model = GPT(dropout=0.2), GPT(dropout=0.2)
    model.load_state_dict(plain.state_dict())
    masks = make_engine(model, depth_bands(model), engine)
    runs = [torch.optim.AdamW(m.parameters(), lr=0.01, weight_decay=0.1) for m in (plain, model)]
    for step in range(4):
        for optimizer in runs:
            optimizer.zero_grad()
        torch.manual_seed(step)
        (plain(tokens(seed=step)) / 8.0).sum().backward()
        masks.arm(torch.ones(BATCH, 4))
        torch.manual_seed(step)
        masks.backward(model(tokens(seed=step)), 8.0)
        for optimizer in runs:
            optimizer.step()
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)


@engines
def test_a_blocked_band_keeps_its_bits_in_mixed_precision(engine: str) -> None:
    """R28: under autocast and a gradient scaler, whose scale comes off before the step."""
    torch.set_default_dtype(torch.float32)
    model = GPT()
    bands = depth_bands(model)
    deep = {name for band in bands[2:] for name in band.parameters}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    masks = make_engine(model, bands, engine)
    for step in range(3):
        optimizer.zero_grad()
        masks.arm(torch.tensor([[1.0, 0.5, 0.0, 0.0]] * BATCH))
        with torch.autocast("cpu", torch.bfloat16):
            losses = model(tokens(seed=step))
        masks.backward(scaler.scale(losses.float()), float(BATCH))
        scaler.step(optimizer)
        scaler.update()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name in deep), name


@engines
def test_frozen_layers_stay_frozen_and_let_gradients_through(engine: str) -> None:
    """R34."""
    model = GPT()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(("blocks.1.", "blocks.3.norm")))
    bands = depth_bands(model)
    weights = torch.rand(BATCH, 4) * (torch.rand(BATCH, 4) > 0.3)
    have = governed(model, bands, weights, tokens(), engine)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert all(have[name] is None for name in frozen)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    want = alone(model, bands, weights, tokens(), lambda model, x: model(x))
    assert distance(have, {n: g for n, g in want.items() if n not in frozen}) < EXACT
