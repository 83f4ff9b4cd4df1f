"""Rows that a model moves by what its examples hold are never credited to the wrong example."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from gradwarden.policy.program import Band
from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.masks import fused, make_engine, row_check
from gradwarden.runtime.masks.call import Call
from gradwarden.runtime.masks.graph import ends
from gradwarden.runtime.masks.ownership import misplaced
from gradwarden.runtime.masks.places import Places

BATCH, TOKENS, WORDS, WIDTH = 4, 6, 9, 5


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def lengths_of(x: Tensor) -> Tensor:
    """Return how many tokens of each example are not padding (0)."""
    return (x > 0).sum(1)


def still() -> nn.Module:
    """Return a layer whose weight is a constant to the graph."""
    return nn.Linear(WIDTH, WIDTH, bias=False).requires_grad_(False)


class Sorting(nn.Module):
    """Runs its middle layers on examples sorted by length, longest first."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.middle = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def move(self, h: Tensor, order: Tensor) -> Tensor:
        return h[order]

    def forward(self, x: Tensor) -> Tensor:
        order = lengths_of(x).argsort(descending=True, stable=True)
        h = torch.tanh(self.middle(self.move(self.words(x).mean(1), order)))
        return self.head(self.move(h, order.argsort()))


class SortingByHand(Sorting):
    """Leaves no trace of an index: only which row is taken is different."""

    def move(self, h: Tensor, order: Tensor) -> Tensor:
        return torch.stack([h[int(place)] for place in order])


class SortingByMatrix(Sorting):
    """Multiplies by a permutation matrix."""

    def move(self, h: Tensor, order: Tensor) -> Tensor:
        return functional.one_hot(order, len(order)).to(h.dtype) @ h


class SortingBySum(Sorting):
    """Adds what a permutation matrix gives to something."""

    def move(self, h: Tensor, order: Tensor) -> Tensor:
        return torch.addmm(h.new_zeros(WIDTH), functional.one_hot(order, len(order)).to(h.dtype), h)


class SortingBeforeFrozen(SortingByMatrix):
    """Multiplies what it has moved by a constant that moves nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.still = still()

    def move(self, h: Tensor, order: Tensor) -> Tensor:
        return self.still(super().move(h, order))  # type: ignore[no-any-return]


class SortingRecomputed(Sorting):
    """Recomputes its sorted part in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        order = lengths_of(x).argsort(descending=True, stable=True)

        def middle(h: Tensor) -> Tensor:
            return torch.tanh(self.middle(self.move(h.mean(1), order)))

        h = checkpoint(middle, self.words(x), use_reentrant=False)
        return self.head(self.move(h, order.argsort()))


class Packing(Sorting):
    """Runs every layer on the valid tokens alone, packed into one dimension."""

    def forward(self, x: Tensor) -> Tensor:
        valid = x > 0
        h = torch.tanh(self.middle(self.words(x[valid])))
        padded = h.new_zeros(*x.shape, WIDTH)
        padded[valid] = h
        return self.head(padded.sum(1))


class Splitting(Sorting):
    """Packs valid tokens and takes them apart by their lengths."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.middle(self.words(x[x > 0])))
        return self.head(torch.stack([part.sum(0) for part in h.split(lengths_of(x).tolist())]))


class PackedSequence(Sorting):
    """Uses a packed sequence between its layers."""

    def forward(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.words(x), lengths_of(x), batch_first=True, enforce_sorted=False)
        h = packed._replace(data=torch.tanh(self.middle(packed.data)))
        return self.head(pad_packed_sequence(h, batch_first=True)[0].sum(1))


class Experts(nn.Module):
    """Sends every example to the expert for its first token; padding goes to the last."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x)
        tokens, choice = h.flatten(0, 1), (x.flatten() > 4).long()
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            sent = (choice == number).nonzero().flatten()
            out = out.index_add(0, sent, torch.tanh(expert(tokens[sent])))
        return self.head(out.view_as(h).sum(1))


MODELS = [
    Sorting,
    SortingRecomputed,
    SortingByHand,
    SortingByMatrix,
    SortingBySum,
    SortingBeforeFrozen,
    Packing,
    Splitting,
    PackedSequence,
    Experts,
]
REGULAR = torch.tensor([[1, 2, 5, 6, 1, 7], [2, 3, 5, 7, 2, 8], [3, 4, 6, 8, 3, 5], [4, 1, 8, 5, 4, 6]])
IRREGULAR = torch.tensor([[1, 2, 0, 0, 0, 0], [5, 3, 6, 7, 1, 8], [3, 6, 2, 8, 0, 0], [4, 6, 3, 5, 0, 0]])
"""16 tokens are valid and 8 go to the second expert: both could be shared out evenly among four examples."""

WEIGHTS = torch.tensor([[1.0, 0.0], [0.5, 1.0], [0.0, 0.0], [0.3, 0.7]])


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def bands_of(model: nn.Module) -> tuple[Band, ...]:
    names = [name for name, _ in trained(model)]
    shallow = tuple(name for name in names if not name.startswith("words"))
    return (Band("shallow", (), shallow), Band("deep", (), tuple(n for n in names if n not in shallow)))


def losses_of(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).pow(2).mean(1)


def definition(model: nn.Module, weights: Tensor, x: Tensor) -> dict[str, Tensor]:
    """Return each example's own gradients, weighted and summed."""
    total = {name: torch.zeros_like(p) for name, p in trained(model)}
    home = {name: k for k, band in enumerate(bands_of(model)) for name in band.parameters}
    for number in range(len(x)):
        loss = losses_of(model, x[number : number + 1])[0]
        for name, gradient in zip(
            total, torch.autograd.grad(loss, [p for _, p in trained(model)], allow_unused=True), strict=True
        ):
            if gradient is not None:
                total[name] += weights[number, home[name]] * gradient
    return total


def assert_exact(model: nn.Module, want: dict[str, Tensor]) -> None:
    for name, parameter in trained(model):
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, want[name], rtol=1e-9, atol=1e-12, msg=name)


def assert_step_exact(masks: Any, model: nn.Module, weights: Tensor, x: Tensor) -> None:
    """Take a batch's gradients, and hold them to the definition."""
    model.zero_grad()
    masks.disarm()
    want = definition(model, weights, x)
    masks.arm(weights)
    masks.backward(losses_of(model, x), 1.0)
    assert_exact(model, want)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One number for every batch whose rows are looked at."""
    found: list[int] = []
    monkeypatch.setattr(row_check, "misplaced", lambda *args: found.append(1) or misplaced(*args))
    return found


@pytest.mark.filterwarnings("ignore:gradwarden. masks:UserWarning")
@pytest.mark.parametrize("regular", [1, 3, 6])
@pytest.mark.parametrize("kind", MODELS)
def test_rows_moved_by_content_are_exact_from_the_first_irregular_batch_on(
    kind: Callable[[], nn.Module], regular: int
) -> None:
    torch.manual_seed(0)
    model = kind()
    masks = make_engine(model, bands_of(model), "auto")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for x in [REGULAR] * regular + [IRREGULAR, IRREGULAR.flip(0), REGULAR, IRREGULAR.roll(1, 0)]:
            assert_step_exact(masks, model, WEIGHTS, x)
    assert len(caught) == sum("rows of" in note or "not used" in note for note in masks.notes)


@pytest.mark.parametrize("kind", MODELS)
def test_strict_engines_refuse_what_they_cannot_credit(kind: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind()
    masks = make_engine(model, bands_of(model), "fused")
    for x in (REGULAR, REGULAR, REGULAR, IRREGULAR):
        model.zero_grad(set_to_none=True)
        masks.disarm()
        plain = definition(model, WEIGHTS, x)
        masks.arm(WEIGHTS)
        try:
            masks.backward(losses_of(model, x), 1.0)
        except MaskError:
            assert all(p.grad is None for p in model.parameters())
        else:
            assert_exact(model, plain)


def test_unweighted_gradients_do_not_depend_on_whose_rows_are_whose() -> None:
    torch.manual_seed(0)
    model = Sorting()
    masks = make_engine(model, bands_of(model), "auto")
    masks.arm(WEIGHTS)
    masks.backward(losses_of(model, REGULAR), 1.0)
    masks.disarm()
    alone = torch.autograd.grad(losses_of(model, IRREGULAR[1:2])[0], list(model.parameters()))
    masks.arm(WEIGHTS)
    losses = losses_of(model, IRREGULAR)
    with masks.unweighted():
        got = torch.autograd.grad(losses[1], list(model.parameters()))
    for gradient, expected in zip(got, alone, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


class Plain(nn.Module):
    """A small language model that indexes its positions, masks, slices and gathers its targets."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Parameter(torch.randn(TOKENS, WIDTH))
        self.norm, self.qkv = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.head: nn.Module = nn.Linear(WIDTH, WORDS)

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x) + self.places[torch.arange(x.shape[1])]
        query, key, value = self.qkv(self.norm(h)).split(WIDTH, dim=2)
        scores = (query @ key.transpose(1, 2)).masked_fill((x == 0)[:, None], -1e9)
        h = h + scores.softmax(2) @ value
        logits = self.head(h)[:, :-1].log_softmax(2)
        return -logits.gather(2, x[:, 1:, None]).squeeze(2)


class Affine(nn.Module):
    """A layer of no class that is known."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.layer.weight, self.layer.bias)


class Turned(nn.Module):
    """A layer to which the batch comes in the middle."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        attentive = isinstance(self.layer, nn.MultiheadAttention)
        found = self.layer(x, x, x, need_weights=False) if attentive else self.layer(x)
        return (found[0] if isinstance(found, tuple) else found).transpose(0, 1)


FROZEN: dict[str, Callable[[], nn.Module]] = {
    "nothing": nn.Identity,
    "a layer": still,
    "a product by hand": Affine,
    "a layer, turned": lambda: Turned(nn.Linear(WIDTH, WIDTH)),
    "attention": lambda: Turned(nn.MultiheadAttention(WIDTH, 1)),
    "a recurrent layer": lambda: Turned(nn.GRU(WIDTH, WIDTH)),
}
"""What may lie frozen on the way to a model's head."""


@pytest.mark.parametrize("frozen", FROZEN)
def test_a_plain_language_model_stays_fused_and_is_checked_ever_more_rarely(
    monkeypatch: pytest.MonkeyPatch, frozen: str
) -> None:
    steps: list[int] = []
    checked: list[int] = []

    def count(*args: Any) -> list[Call]:
        checked.append(steps[-1])
        return misplaced(*args)

    monkeypatch.setattr(row_check, "misplaced", count)
    torch.manual_seed(0)
    model = Plain()
    model.head = nn.Sequential(FROZEN[frozen]().requires_grad_(False), model.head)
    masks = make_engine(model, bands_of(model), "auto")
    assert isinstance(masks, fused.FusedEngine)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(1, 12):
            steps.append(step)
            x = torch.randint(0, WORDS, (BATCH, TOKENS))
            assert_step_exact(masks, model, WEIGHTS, x)
    assert masks.name == "fused"
    assert not [note for note in masks.notes if "rows of" in note]
    assert checked == [1, 2, 4, 8]


class Pooling(nn.Module):
    """A convolution whose output is pooled into one place: [B, 3, 4, 4] -> [B, 5].

    pool: what makes [B, 8, 1, 1] of [B, 8, 4, 4].
    """

    def __init__(self, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.pool = pool
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.pool(self.first(x)).flatten(1))


def restrided(sizes: tuple[int, ...], strides: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """Return what pools into one place, and reads the result by these sizes and strides."""
    return lambda x: x.mean((2, 3), keepdim=True).as_strided((len(x), *sizes), strides)


@pytest.mark.parametrize(
    ("pool", "rarely"),
    [
        (nn.AdaptiveAvgPool2d(1), True),
        (restrided((8, 1, 1), (8, 1, 8, 8)), True),
        (restrided((8, 1, 1), (8, 0, 8, 8)), False),
        (restrided((1, 8, 1), (8, 8, 1, 1)), False),
        (lambda x: x.flatten(2).sum(2).as_strided((len(x), 8), (8, 1)), False),
    ],
    ids=["pooling", "the same places", "other strides", "another shape", "after another operation"],
)
def test_a_picture_pooled_into_one_place_is_no_reason_to_check_every_batch(
    checks: list[int], pool: Callable[[Tensor], Tensor], rarely: bool
) -> None:
    torch.manual_seed(0)
    model = Pooling(pool).to(memory_format=torch.channels_last)
    masks = make_engine(model, bands_of(model), "fused")
    for _ in range(8):
        masks.arm(WEIGHTS)
        x = torch.randn(BATCH, 3, 4, 4).to(memory_format=torch.channels_last)
        masks.backward(model(x).square().mean(1), 1.0)
    assert len(checks) == (4 if rarely else 8)


class Sender(nn.Module):
    """Sorts positions by what they hold, runs them through an expert, puts them back: [B, T, W] -> the same.

    kind: how that is handed on. What is sorted may be another argument, of the same shape.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.norm = kind, nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Any:
        rows = self.norm(x if other is None else other).flatten(0, 1)
        order = rows[:, 0].argsort()
        back = (
            torch.zeros_like(rows)
            .index_copy(0, order, self.down(torch.tanh(self.up(rows[order]))))
            .view_as(x)
        )
        ways = {
            "added": lambda: x + back,
            "added to another": lambda: x + back,
            "added twice": lambda: x + (back + x),
            "alone": lambda: back,
            "as a difference": lambda: x + (back - x),
            "and a negative": lambda: x + (back + -x),
            "and less than nothing": lambda: x + torch.add(back, x, alpha=-1),
            "multiplied": lambda: 1.0 * x + back,
            "besides": lambda: (x + back, back),
        }
        return ways[self.kind]()


class Senders(nn.Module):
    """A stack of blocks that move rows by content."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, 3)
        self.blocks = nn.ModuleList(Sender(kind) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = first = self.words(x)
        for block in self.blocks:
            found = block(h, first) if block.kind == "added to another" else block(h)
            h = found if isinstance(found, Tensor) else found[0] + found[1]
        return self.head(h.sum(1))


@pytest.mark.parametrize(
    ("kind", "rarely"),
    [
        ("added", True),
        ("added twice", True),
        ("added to another", False),
        ("alone", False),
        ("as a difference", False),
        ("and a negative", False),
        ("and less than nothing", False),
        ("multiplied", False),
        ("besides", False),
    ],
)
def test_rows_moved_within_a_block_that_adds_to_what_it_is_given_are_no_reason_to_check_every_batch(
    checks: list[int], kind: str, rarely: bool
) -> None:
    torch.manual_seed(0)
    model = Senders(kind)
    masks = make_engine(model, bands_of(model), "fused")
    for _ in range(8):
        x, weights = torch.randint(0, WORDS, (BATCH, TOKENS)), 0.25 + 0.5 * torch.rand(BATCH, 2)
        assert_step_exact(masks, model, weights, x)
    assert {c.way for c in masks.explain() if c.name.startswith("blocks.")} == {"scale"}
    assert len(checks) == (4 if rarely else 8)


def test_an_example_that_is_not_finite_and_has_no_weight_is_no_offence() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 2))
    bands = (Band("all", (), tuple(name for name, _ in model.named_parameters())),)
    masks = make_engine(model, bands, "fused")
    x, weights = torch.randn(4, 3), torch.tensor([[1.0], [0.0], [0.5], [0.2]])
    want = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for number in (0, 2, 3):
        loss = losses_of(model, x[number : number + 1])[0]
        for name, gradient in zip(want, torch.autograd.grad(loss, list(model.parameters())), strict=True):
            want[name] += weights[number, 0] * gradient
    x[1] = torch.nan
    masks.arm(weights)
    masks.backward(losses_of(model, x), 1.0)
    assert_exact(model, want)


def test_only_the_last_nodes_of_every_way_through_a_graph_are_its_ends() -> None:
    x = torch.randn(3, requires_grad=True)
    low = x * 2
    left, right = low.exp(), low.sin()
    side = x.cos()
    losses = left + right * side
    nodes = [tensor.grad_fn for tensor in (losses, left, right, side, low)]
    assert set(ends(losses, nodes)) == {side.grad_fn, low.grad_fn}
    assert set(ends(losses, nodes[:3])) == {left.grad_fn, right.grad_fn}


def test_frozen_weights_are_looked_for_only_where_a_constant_is_multiplied_by(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To go through all parameters takes a fifth of what the walk through the graph does."""
    looked: list[bool] = []
    fixed = Places.fixed
    monkeypatch.setattr(Places, "fixed", lambda places: looked.append(True) or fixed(places))
    model = Plain()
    for product in (False, True):
        model.head = nn.Sequential(Affine().requires_grad_(False), model.head) if product else model.head
        masks = make_engine(model, bands_of(model), "fused")
        looked.clear()
        masks.arm(WEIGHTS)
        masks.backward(losses_of(model, torch.randint(0, WORDS, (BATCH, TOKENS))), 1.0)
        assert bool(looked) == product
