"""Many examples in one row: held to the same examples run one by one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from gradwarden.runtime.batching.packing import (
    attention_within,
    mean_by_document,
    next_token_losses,
    pack,
    positions_within,
)
from gradwarden.runtime.errors import MaskError, PrivacyError
from gradwarden.runtime.masks import fused, make_engine, ownership, row_check
from gradwarden.runtime.masks.graph import uses
from gradwarden.runtime.privacy.accounting import JointPlan, privacy_rules

pytestmark = pytest.mark.usefixtures("double")

engines = pytest.mark.parametrize("engine", ["fused", "split"])

WIDTH, WORDS, LENGTH = 8, 11, 9


class Block(nn.Module):
    """Attention under a mask, with norms over features and over the features of each head, and an MLP."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.norm_1, self.norm_2, self.heads = nn.LayerNorm(WIDTH), nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH // 2)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.layout = layout

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        rows, length, _ = x.shape
        query, key, value = (h.view(rows, length, 2, -1) for h in self.qkv(self.norm_1(x)).chunk(3, dim=2))
        if self.layout == "heads first":
            query, key = self.heads(query.transpose(1, 2)), self.heads(key.transpose(1, 2))
        else:
            query, key = self.heads(query).transpose(1, 2), self.heads(key).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(query, key, value.transpose(1, 2), attn_mask=mask)
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))
        h = self.norm_2(x)
        match self.layout:
            case "flattened":
                h = self.down(functional.gelu(self.up(h.flatten(0, 1)))).view(x.shape)
            case "time first":
                h = self.down(functional.gelu(self.up(h.transpose(0, 1)))).transpose(0, 1)
            case "flattened time first":
                h = self.up(h.transpose(0, 1).reshape(-1, WIDTH))
                h = self.down(functional.gelu(h)).view(length, rows, WIDTH).transpose(0, 1)
            case _:
                h = self.down(functional.gelu(self.up(h)))
        return x + h


class GPT(nn.Module):
    """A language model whose positions are numbered by the caller; the head may be the embedding."""

    def __init__(self, layout: str = "rows first", tied: bool = False, recompute: bool = False) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block(layout) for _ in range(3))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        if tied:
            self.head.weight = self.words.weight
        self.recompute = recompute

    def forward(self, tokens: Tensor, places: Tensor, mask: Tensor) -> Tensor:
        h = self.words(tokens) + self.places(places)
        for block in self.blocks:
            h = checkpoint(block, h, mask, use_reentrant=False) if self.recompute else block(h, mask)
        return self.head(self.norm(h))


LENGTHS = [[4, 3, 5, 2, 4], [9, 1, 2, 6], [3, 3, 3, 3, 3, 3], [5, 4, 2], [1, 2, 1, 4, 4, 5, 3]]
"""The lengths of the sequences of some batches. The third fills its rows."""


def sequences(lengths: Sequence[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(WORDS, (length,), generator=generator) for length in lengths]


def together(model: nn.Module, tokens: Tensor, documents: Tensor, count: int) -> Tensor:
    logits = model(tokens, positions_within(documents), attention_within(documents))
    return next_token_losses(logits, tokens, documents, count)


def by_itself(model: nn.Module, sequence: Tensor) -> Tensor:
    """The loss of one sequence in a row of its own, without padding, and without the helpers."""
    size = len(sequence)
    if size == 1:
        return sum(p.sum() for p in model.parameters()) * 0.0
    mask = torch.ones(size, size, dtype=torch.bool).tril()
    logits = model(sequence[None], torch.arange(size)[None], mask)[0]
    return functional.cross_entropy(logits[:-1], sequence[1:])


@engines
@pytest.mark.parametrize(
    "layout", ["rows first", "heads first", "flattened", "time first", "flattened time first"]
)
def test_packed_sequences_have_the_gradients_of_the_same_sequences_one_by_one(
    engine: str, layout: str, assert_exact: Any
) -> None:
    model = GPT(layout)
    batches = [sequences(lengths, seed) for seed, lengths in enumerate(LENGTHS)]
    packed = [pack(batch, LENGTH) for batch in batches]
    masks = assert_exact(
        model,
        lambda n: together(model, *packed[n], len(batches[n])),
        lambda n, row: by_itself(model, batches[n][row]),
        [len(batch) for batch in batches],
        engine,
        arm=lambda masks, n, weights: masks.arm(weights, packed[n][1]),
    )
    assert masks.name == engine
    if engine == "fused":
        assert set(masks.paths.values()) == {"fast"}


@engines
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_tied_heads_and_recomputed_blocks(
    engine: str, tied: bool, recompute: bool, assert_exact: Any
) -> None:
    model = GPT(tied=tied, recompute=recompute)
    batches = [sequences(lengths, seed) for seed, lengths in enumerate(LENGTHS[:3])]
    packed = [pack(batch, LENGTH) for batch in batches]
    assert_exact(
        model,
        lambda n: together(model, *packed[n], len(batches[n])),
        lambda n, row: by_itself(model, batches[n][row]),
        [len(batch) for batch in batches],
        engine,
        arm=lambda masks, n, weights: masks.arm(weights, packed[n][1]),
    )


def test_a_batch_may_be_packed_and_the_next_one_not(assert_exact: Any) -> None:
    """Layers keep what they know of either kind of batch."""
    model = GPT()
    batches = [sequences(lengths, seed) for seed, lengths in enumerate(LENGTHS)]
    packed = [pack(batch, LENGTH) for batch in batches]
    plain = [torch.randint(WORDS, (len(batch), 8)) for batch in batches]
    order, mask = torch.arange(8)[None], torch.ones(8, 8, dtype=torch.bool).tril()

    def losses_of(tokens: Tensor) -> Tensor:
        logits = model(tokens, order.expand_as(tokens), mask)[:, :-1]
        return functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").mean(1)

    assert_exact(
        model,
        lambda n: together(model, *packed[n], len(batches[n])) if n % 2 else losses_of(plain[n]),
        lambda n, row: by_itself(model, batches[n][row]) if n % 2 else losses_of(plain[n][row][None])[0],
        [len(batch) for batch in batches],
        "fused",
        arm=lambda masks, n, weights: masks.arm(weights, packed[n][1] if n % 2 else None),
    )


def test_no_layer_of_a_language_model_takes_the_reference_way(bands_of: Any, some_weights: Any) -> None:
    """One backward pass: every parameter is reached by weighing layers alone."""
    model = GPT()
    batch = sequences(LENGTHS[0])
    tokens, documents = pack(batch, LENGTH)
    masks = make_engine(model, bands_of(model), "fused")
    masks.arm(some_weights(len(batch), 3), documents)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses = together(model, tokens, documents, len(batch))
    found = uses(losses, {id(p): 0 for p in model.parameters()})
    assert not found.ordinary
    assert found.weighing


def test_packed_batches_are_checked_ever_more_rarely(
    bands_of: Any, some_weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first eight all are, though every batch holds other documents."""
    checked: list[int] = []
    numbers = iter(range(1, 40))

    def counting(*args: Any) -> Any:
        checked.append(number)
        return ownership.misplaced(*args)

    monkeypatch.setattr(row_check, "misplaced", counting)
    model = GPT()
    masks = make_engine(model, bands_of(model), "fused")
    for number in numbers:
        batch = sequences([3, 6, 2 + number % 5, 4, 9], number)
        tokens, documents = pack(batch, LENGTH)
        masks.arm(some_weights(5, 3), documents[:3])
        masks.backward(together(model, tokens[:3], documents[:3], 5), 1.0)
    assert checked == [1, 2, 3, 4, 5, 6, 7, 8, 16, 32]


@pytest.mark.parametrize("weights", [[1.0, 0.0, 0.0, 1.0, 0.0], [0.0] * 5, [1.0] * 5])
def test_bands_that_no_example_may_shape_keep_none(weights: list[float], bands_of: Any) -> None:
    model = GPT()
    batch = sequences(LENGTHS[0])
    tokens, documents = pack(batch, LENGTH)
    bands = bands_of(model)
    masks = make_engine(model, bands, "fused")
    for _ in range(2):
        column = torch.tensor(weights)[:, None]
        masks.arm(torch.cat([torch.ones(5, 1), column, torch.zeros(5, 1)], dim=1), documents)
        masks.backward(together(model, tokens, documents, 5), 1.0)
        for name, parameter in model.named_parameters():
            closed = name in bands[2].parameters or (name in bands[1].parameters and not any(weights))
            assert (parameter.grad is None) == closed, name
        stopped = {choice.name for choice in masks.explain() if choice.way == "stop"}
        assert "band band2" in stopped
        assert ("blocks.0" in stopped) == (not any(weights))
        model.zero_grad(set_to_none=True)


def test_what_a_refused_example_holds_cannot_matter(bands_of: Any, some_weights: Any) -> None:
    """Tokens of an example without weight may be anything, and its loss not a number."""
    model = GPT()
    batch = sequences(LENGTHS[0])
    tokens, documents = pack(batch, LENGTH)
    masks = make_engine(model, bands_of(model), "fused")
    weights = some_weights(5, 3)
    weights[2] = 0.0
    found = []
    for spoilt in (False, True):
        if spoilt:
            tokens = torch.where(documents == 2, (tokens + 3) % WORDS, tokens)
        model.zero_grad(set_to_none=True)
        masks.arm(weights, documents)
        masks.backward(together(model, tokens, documents, 5), 1.0)
        found.append([p.grad for p in model.parameters()])
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["fused", "auto", "split"])
def test_attention_across_documents_is_refused_at_once(engine: str, bands_of: Any) -> None:
    model = GPT()
    batch = sequences(LENGTHS[0])
    tokens, documents = pack(batch, LENGTH)
    masks = make_engine(model, bands_of(model), engine)
    masks.arm(torch.ones(5, 3), documents)
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    with pytest.raises(MaskError, match="packed together") as caught:
        model(tokens, positions_within(documents), causal)
    assert "block-diagonal" in (caught.value.help or "")


@pytest.mark.parametrize("engine", ["fused", "auto"])
@pytest.mark.parametrize("how", ["attention", "losses", "padding"])
def test_what_crosses_documents_only_later_is_refused_when_it_does(
    engine: str, how: str, bands_of: Any, some_weights: Any
) -> None:
    """The first batches are fine. Then a mask is forgotten, or losses are credited to the wrong examples."""
    model = GPT()
    masks = make_engine(model, bands_of(model), engine)
    for step, lengths in enumerate(LENGTHS[:4]):
        batch = sequences(lengths, step)
        tokens, documents = pack(batch, LENGTH)
        weights = some_weights(len(batch), 3, seed=step)
        masks.arm(weights, documents)
        if step < 3:
            masks.backward(together(model, tokens, documents, len(batch)), 1.0)
            continue
        mask, owners = attention_within(documents), documents
        if how == "attention":
            mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
        elif how == "losses":
            owners = torch.where(documents < 0, documents, (documents + 1) % len(batch))
        else:
            mask = mask | (documents < 0)[:, None, None, :]
        model.zero_grad(set_to_none=True)
        losses = next_token_losses(
            model(tokens, positions_within(documents), mask), tokens, owners, len(batch)
        )
        with pytest.raises(MaskError, match="packed together"):
            masks.backward(losses, 1.0)
        assert all(parameter.grad is None for parameter in model.parameters())


class Convolved(nn.Module):
    """A convolution over time, which crosses documents, or one over the features of each position."""

    def __init__(self, over: str) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.over = over
        self.mix = nn.Conv1d(WIDTH if over == "time" else 1, WIDTH if over == "time" else 1, 3, padding=1)
        self.gain = nn.Parameter(torch.randn(WIDTH))
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.words(tokens) * self.gain
        if self.over == "time":
            h = h + self.mix(h.transpose(1, 2)).transpose(1, 2)
        else:
            h = h + self.mix(h.flatten(0, 1)[:, None])[:, 0].view(h.shape)
        return self.head(torch.tanh(h))


@engines
def test_a_convolution_over_time_is_refused(engine: str, bands_of: Any) -> None:
    model = Convolved("time")
    batch = sequences(LENGTHS[0])
    tokens, documents = pack(batch, LENGTH)
    masks = make_engine(model, bands_of(model), engine)
    masks.arm(torch.ones(5, 3), documents)
    with pytest.raises(MaskError, match="packed together"):
        model(tokens)


@engines
def test_layers_that_are_not_supported_take_the_reference_way(engine: str, assert_exact: Any) -> None:
    model = Convolved("features")
    batches = [sequences(lengths, seed) for seed, lengths in enumerate(LENGTHS)]
    packed = [pack(batch, LENGTH) for batch in batches]

    def losses(number: int) -> Tensor:
        tokens, documents = packed[number]
        each = model(tokens).square().mean(2)
        return mean_by_document(each, documents, len(batches[number]))

    masks = assert_exact(
        model,
        losses,
        lambda n, row: model(batches[n][row][None]).square().mean(),
        [len(batch) for batch in batches],
        engine,
        arm=lambda masks, n, weights: masks.arm(weights, packed[n][1]),
    )
    if engine == "fused":
        assert masks.paths["gain"] == "reference"
        assert masks.paths["head.weight"] == "fast"


class Gated(nn.Module):
    """A module whose gain no rule covers."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.mix = nn.Parameter(torch.randn(WIDTH)), nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        return self.gain * torch.tanh(self.mix(h))


def test_modules_that_are_pieces_in_other_batches_take_the_reference_way(assert_exact: Any) -> None:
    model = nn.Sequential(nn.Embedding(WORDS, WIDTH), Gated(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3))
    batches = [sequences(lengths, seed) for seed, lengths in enumerate(LENGTHS)]
    packed = [pack(batch, LENGTH) for batch in batches]
    plain = [torch.randint(WORDS, (len(batch), 8)) for batch in batches]

    def losses(number: int) -> Tensor:
        if number % 2 == 0:
            return model(plain[number]).square().mean((1, 2))
        tokens, documents = packed[number]
        return mean_by_document(model(tokens).square().mean(2), documents, len(batches[number]))

    def alone(number: int, row: int) -> Tensor:
        return model((batches if number % 2 else plain)[number][row][None]).square().mean()

    ways = []

    def arm(masks: Any, number: int, weights: Tensor) -> None:
        ways.append(masks.paths["1.gain"])
        masks.arm(weights, packed[number][1] if number % 2 else None)

    assert_exact(model, losses, alone, [len(batch) for batch in batches], "fused", arm=arm)
    assert ways[1] == "general"


def test_blocks_of_packed_sequences_are_run_in_one_piece(bands_of: Any) -> None:
    model = GPT()
    batch = sequences(LENGTHS[0])
    tokens, documents = pack(batch, LENGTH)
    masks = make_engine(model, bands_of(model), "fused")
    masks.arm(torch.tensor([[1.0, 1.0, 1.0]] + [[1.0, 0.0, 0.0]] * 4), documents)
    masks.backward(together(model, tokens, documents, 5), 1.0)
    first = next(choice for choice in masks.explain() if choice.name == "blocks.0")
    assert first.way == "slice"
    assert "its rows hold several examples" in first.reason


def test_rows_as_many_as_positions_are_not_mistaken_for_each_other(assert_exact: Any) -> None:
    """In the batch that is tried, rows and columns have the same owners; in the next they have not."""
    model = nn.Sequential(nn.Embedding(WORDS, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH))
    alike = torch.tensor([[0, 1, 2], [1, 3, 4], [2, 4, 5]])
    owners = [
        alike,
        torch.tensor([[0, 0, 1], [2, 3, 3], [4, 5, 5]]),
        torch.arange(6).repeat(2)[:9].view(3, 3),
    ]
    batches = [torch.randint(WORDS, (3, 3)) for _ in owners]
    assert_exact(
        model,
        lambda n: mean_by_document(model(batches[n]).square().mean(2), owners[n], 6),
        lambda n, row: model(batches[n][owners[n] == row][None]).square().mean(),
        [6, 6, 6],
        "fused",
        arm=lambda masks, n, weights: masks.arm(weights, owners[n]),
    )


@pytest.mark.parametrize(
    ("owners", "says"),
    [
        (torch.tensor([[0, 1, 5]]), "example 5"),
        (torch.tensor([[0, -2, 1]]), "example -2"),
        (torch.tensor([[0.0, 1.0]]), "float"),
        (torch.zeros(1, 2, 3, dtype=torch.long), "shape"),
    ],
)
@engines
def test_owners_that_make_no_sense_are_refused(engine: str, owners: Tensor, says: str, bands_of: Any) -> None:
    model = GPT()
    masks = make_engine(model, bands_of(model), engine)
    with pytest.raises(MaskError, match=says):
        masks.arm(torch.ones(5, 3), owners)


def test_owners_are_refused_where_a_policy_stops_the_flow_through_closed_bands(bands_of: Any) -> None:
    model = GPT()
    masks = fused.FusedEngine(model, bands_of(model), detached=True)
    with pytest.raises(MaskError, match="semantics detach"):
        masks.arm(torch.ones(5, 3), torch.arange(5))


def test_a_model_that_is_not_given_what_was_packed(bands_of: Any, some_weights: Any) -> None:
    """`fused` refuses, `auto` says so and is exact by the losses alone."""
    model = GPT()
    batch = sequences(LENGTHS[0])
    tokens, documents = pack(batch, LENGTH)
    for engine in ("fused", "auto"):
        masks = make_engine(model, bands_of(model), engine)
        masks.arm(some_weights(5, 3), documents[:, :-1])
        if engine == "fused":
            with pytest.raises(MaskError, match="holds the 2 rows of 8 positions"):
                together(model, tokens, documents, 5)
        else:
            with pytest.warns(UserWarning, match="reference path"):
                losses = together(model, tokens, documents, 5)
            masks.backward(losses, 1.0)
        masks.close()


# --- in a governed run --------------------------------------------------------------------------------------


@engines
def test_a_governed_step_on_packed_sequences(engine: str, lab: Any, reference: Any) -> None:
    model = GPT()
    governor = lab.governor(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.0), engine=engine)
    for step, kinds in enumerate(("abdCb", "bbcb", "aabdba")):
        batch = sequences(LENGTHS[step], step)
        tokens, documents = pack(batch, LENGTH)
        with governor.step(lab.batch(kinds, prefix=f"s{step}-")) as proposal:
            proposal.assign(documents)
            proposal.backward(together(model, tokens, documents, len(batch)))
        assert proposal.committed, proposal.refusal
        have = {p: None if p.grad is None else p.grad.clone() for p in model.parameters()}
        governor.engine.disarm()
        losses = torch.stack([by_itself(model, sequence) for sequence in batch])
        bands = list(governor.parameters.values())
        for parameter, want in reference(losses, proposal.weights, bands, float(len(batch))).items():
            assert (have[parameter] is None) == (want is None)
            if want is not None:
                torch.testing.assert_close(have[parameter], want, rtol=1e-9, atol=1e-12)
    governor.close()
    assert lab.verify().ok


PARTS = {
    "micro": lambda proposal: (list(range(part.start, part.stop)) for part in proposal.micro_batches(3)),
    "depth": lambda proposal: (part.tolist() for part in proposal.depth_batches(3)),
}


@engines
@pytest.mark.parametrize("cut", PARTS)
def test_parts_of_a_step_are_packed_one_by_one(engine: str, cut: str, lab: Any) -> None:
    found = []
    batch = sequences(LENGTHS[4])
    for name in ("whole", "parts"):
        torch.manual_seed(0)
        model = GPT()
        governor = lab.governor(model=model, name=name, engine=engine)
        with governor.step(lab.batch("abdCbad")) as proposal:
            for part in [list(range(7))] if name == "whole" else PARTS[cut](proposal):
                tokens, documents = pack([batch[place] for place in part], LENGTH)
                proposal.assign(documents)
                proposal.backward(together(model, tokens, documents, len(part)))
        assert proposal.committed, proposal.refusal
        found.append([p.grad for p in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


REFUSED = {
    "late": ("", MaskError, "after `backward`"),
    "detach": ("semantics detach", MaskError, "under `semantics detach`"),
    "private": ("privacy p { when kind == d  within shallow  epsilon 3  delta 1e-6  clip 1.0 }", PrivacyError,
                "attention mask that comes anew"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:gradwarden")
@pytest.mark.parametrize("how", REFUSED)
def test_an_assignment_that_is_refused_refuses_the_step_even_if_the_loop_goes_on(how: str, lab: Any) -> None:
    rule, kind, says = REFUSED[how]
    text = lab.policy.replace("deep = rest", f"deep = rest {rule}") if how == "detach" else lab.policy + rule
    options: dict[str, Any] = {}
    if how == "private":
        rules = privacy_rules(lab.program(text))
        options = {"privacy": JointPlan.for_noise(rules, 0.01, noise_multiplier=4.0), "normaliser": 4.0}
    model = GPT()
    governor = lab.governor(text, model=model, **options)
    batch = sequences(LENGTHS[0])
    tokens, documents = pack(batch, LENGTH)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with governor.step(lab.batch("aabda")) as proposal:
        if how == "late":
            proposal.assign(documents)
            proposal.backward(together(model, tokens, documents, 5))
        with pytest.raises(kind, match=says):
            proposal.assign(documents)
        if how == "private":
            proposal.backward(together(model, tokens, documents, 5))
    assert not proposal.committed
    assert all(map(torch.equal, before, model.parameters()))
    governor.ledger.flush()
    assert [body["reason"] for body in lab.bodies("refused")] == ["no_gradient"]


@pytest.fixture(scope="module")
def llama() -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=WORDS, max_position_embeddings=16, use_cache=False,
        attn_implementation="sdpa",
    )  # fmt: skip
    return lambda: transformers.LlamaForCausalLM(config).to(torch.float64)


@engines
def test_a_librarys_model_on_packed_sequences(engine: str, llama: Any, assert_exact: Any) -> None:
    """Hugging Face's Llama with a mask of our own; rotary positions start anew in each sequence."""
    model = llama()
    batches = [sequences(lengths, seed) for seed, lengths in enumerate(LENGTHS[:3])]
    packed = [pack(batch, LENGTH) for batch in batches]

    def losses(number: int) -> Tensor:
        tokens, documents = packed[number]
        allowed = attention_within(documents)
        mask = torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))
        places = positions_within(documents)
        logits = model(input_ids=tokens, position_ids=places, attention_mask=mask).logits
        return next_token_losses(logits, tokens, documents, len(batches[number]))

    def alone(number: int, row: int) -> Tensor:
        sequence = batches[number][row]
        logits = model(input_ids=sequence[None]).logits[0]
        each = functional.cross_entropy(logits[:-1], sequence[1:], reduction="none")
        return each.sum() / max(len(each), 1)

    masks = assert_exact(
        model,
        losses,
        alone,
        [len(batch) for batch in batches],
        engine,
        within=1e-6,  # rotary angles and norms are in float32 there
        arm=lambda masks, n, weights: masks.arm(weights, packed[n][1]),
    )
    assert masks.name == engine
