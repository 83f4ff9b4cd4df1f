"""Inputs as people lay them out: channels last, time first, named arguments, batches of every size."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

pytestmark = pytest.mark.usefixtures("double")

engines = pytest.mark.parametrize("engine", ["fused", "split"])

SIZES = [4, 4, 4, 1, 3]


class Pictures(nn.Module):
    """Convolutions, plain, strided, grouped and transposed, and a head: [B, 4, 6, 6] -> [B, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.groups = nn.Conv2d(4, 8, 3, padding=1), nn.GroupNorm(4, 8)
        self.down, self.up = nn.Conv2d(8, 8, 3, stride=2, groups=2), nn.ConvTranspose2d(8, 8, 2)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.silu(self.groups(self.enter(x)))
        h = functional.silu(self.up(self.down(h)))
        return self.head(self.norm(h.permute(0, 2, 3, 1)).mean((1, 2)))


@engines
@pytest.mark.parametrize("formats", ["model", "inputs", "both"])
def test_channels_last(engine: str, formats: str, assert_exact: Any) -> None:
    model = Pictures()
    batches = [torch.randn(size, 4, 6, 6) for size in SIZES]
    if formats != "inputs":
        model = model.to(memory_format=torch.channels_last)
    if formats != "model":
        batches = [x.to(memory_format=torch.channels_last) for x in batches]
    masks = assert_exact(
        model,
        lambda n: model(batches[n]).square().sum(1),
        lambda n, row: model(batches[n][row : row + 1]).square().sum(),
        SIZES,
        engine,
    )
    if engine == "fused":
        assert set(masks.paths.values()) == {"fast"}
    if formats == "both":
        kernel = model.enter.weight
        assert kernel.is_contiguous(memory_format=torch.channels_last)


class TimeFirst(nn.Module):
    """Attention over time and an MLP on [T, B, W] -> [B], or on [T, B] tokens."""

    def __init__(self, tokens: bool, attention: bool) -> None:
        super().__init__()
        self.enter = nn.Embedding(9, 8) if tokens else nn.Linear(4, 8)
        self.norm, self.qkv = nn.LayerNorm(8), nn.Linear(8, 24)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        query, key, value = (part.transpose(0, 1) for part in self.qkv(self.norm(h)).chunk(3, dim=2))
        mixed = functional.scaled_dot_product_attention(query, key, value) if self.attention else value
        return self.down(torch.tanh(self.up(h + mixed.transpose(0, 1)))).square().mean((0, 2))


@engines
@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
@pytest.mark.parametrize("length", [3, 4, 7])
@pytest.mark.parametrize("attention", [True, False], ids=["attention", "positions alone"])
@pytest.mark.filterwarnings("ignore:gradwarden. the rows:UserWarning")
def test_time_first(engine: str, tokens: bool, length: int, attention: bool, assert_exact: Any) -> None:
    """Sequences as long as the batch is wide included, in the very batch that is probed."""
    model = TimeFirst(tokens, attention)
    shape = [(length, size) if tokens else (length, size, 4) for size in SIZES]
    batches = [torch.randint(9, s) if tokens else torch.randn(s) for s in shape]
    assert_exact(
        model,
        lambda n: model(batches[n]),
        lambda n, row: model(batches[n][:, row : row + 1]).sum(),
        SIZES,
        "auto" if engine == "fused" and not attention else engine,
    )


@dataclass
class Record:
    """What a library's model might return."""

    scores: Tensor
    hidden: tuple[Tensor, ...]


class Keywords(nn.Module):
    """Takes everything by name, in dictionaries and tuples, with constants among them."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.kinds = nn.Embedding(9, 8), nn.Embedding(3, 8)
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(
        self, *, words: dict[str, Tensor], extra: tuple[Tensor, float] | None = None, twice: bool = False
    ) -> Record:
        mask = words["mask"].to(self.head.weight.dtype)[..., None]
        h = self.words(words["ids"]) + self.kinds(words["kinds"])
        if extra is not None:
            h = h + extra[0][:, None] * extra[1]
        for _ in range(1 + twice):
            h = h + torch.tanh(self.mix(h))
        pooled = (h * mask).sum(1) / mask.sum(1).clamp(min=1.0)
        return Record(self.head(pooled), (h,))


@engines
def test_named_arguments_dictionaries_and_records(engine: str, assert_exact: Any) -> None:
    model = Keywords()

    def batch(size: int, length: int) -> dict[str, Any]:
        ends = torch.randint(1, length + 1, (size,))
        words = {
            "ids": torch.randint(9, (size, length)),
            "kinds": torch.randint(3, (size, length)),
            "mask": torch.arange(length) < ends[:, None],
        }
        return {"words": words, "extra": (torch.randn(size, 8), 0.5), "twice": size > 3}

    batches = [batch(size, 3 + size % 3) for size in SIZES]

    def one(batch: dict[str, Any], row: int) -> dict[str, Any]:
        part = slice(row, row + 1)
        words = {name: tensor[part] for name, tensor in batch["words"].items()}
        return {**batch, "words": words, "extra": (batch["extra"][0][part], batch["extra"][1])}

    assert_exact(
        model,
        lambda n: model(**batches[n]).scores.square().sum(1),
        lambda n, row: model(**one(batches[n], row)).scores.square().sum(),
        SIZES,
        engine,
    )


@engines
@pytest.mark.parametrize("sizes", [[1, 1, 5, 1], [5, 2, 1], [2, 3, 1, 7, 7, 4]])
def test_batches_of_every_size(engine: str, sizes: list[int], assert_exact: Any) -> None:
    model = nn.Sequential(
        nn.Linear(4, 8), *(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.Tanh()) for _ in range(3))
    )
    batches = [torch.randn(size, 4) for size in sizes]
    masks = assert_exact(
        model,
        lambda n: model(batches[n]).square().sum(1),
        lambda n, row: model(batches[n][row : row + 1]).square().sum(),
        sizes,
        engine,
    )
    assert masks.name == engine


@engines
def test_a_mean_over_tokens_leaves_padding_out(engine: str, lab: Any, reference: Any) -> None:
    """Each example's own tokens count, however long the others of its batch are."""
    model = nn.Sequential(nn.Embedding(9, 6), nn.LayerNorm(6), nn.Linear(6, 9))
    governor = lab.governor(model=model, engine=engine)
    for step, length in enumerate((5, 3, 7)):
        ids = torch.randint(9, (4, length))
        ends = torch.tensor([length, 1, 2, 3])
        mask = (torch.arange(length) < ends[:, None])[:, 1:].to(torch.get_default_dtype())

        def losses(ids: Tensor, mask: Tensor) -> Tensor:
            each = functional.cross_entropy(model(ids)[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
            return (each * mask).sum(1) / mask.sum(1).clamp(min=1.0)

        with governor.step(lab.batch("abda", prefix=f"s{step}-")) as proposal:
            proposal.backward(losses(ids, mask))
        assert proposal.committed, proposal.refusal
        have = {p: None if p.grad is None else p.grad.clone() for p in model.parameters()}
        for parameter in model.parameters():  # back to where the step began
            parameter.data += 0.0 if parameter.grad is None else 0.1 * parameter.grad
        governor.engine.disarm()
        alone = torch.stack(
            [
                losses(ids[r : r + 1, :end], mask[r : r + 1, : end - 1])[0]
                for r, end in enumerate(ends.tolist())
            ]
        )
        bands = list(governor.parameters.values())
        for parameter, gradient in reference(alone, proposal.weights, bands, 4.0).items():
            torch.testing.assert_close(have[parameter], gradient, rtol=1e-9, atol=1e-12)


@engines
def test_a_mean_over_all_tokens_of_the_batch_is_a_constant_share_of_each_examples_sum(
    engine: str, lab: Any
) -> None:
    """The usual loss of language models, mean over tokens, where every example may shape everything."""
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 9))
    ids, mask = torch.randint(9, (4, 5)), torch.rand(4, 5) > 0.3
    each = functional.cross_entropy(model(ids).transpose(1, 2), ids, reduction="none")
    want = torch.autograd.grad(each[mask].mean(), list(model.parameters()))
    governor = lab.governor(model=model, engine=engine)
    with governor.step(lab.batch("aaaa")) as proposal:
        each = functional.cross_entropy(model(ids).transpose(1, 2), ids, reduction="none")
        proposal.backward((each * mask).sum(1) * (len(ids) / mask.sum()))
    for parameter, gradient in zip(model.parameters(), want, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)


def test_no_layout_of_this_page_makes_the_engine_warn(assert_exact: Any) -> None:
    model = TimeFirst(tokens=True, attention=True)
    batches = [torch.randint(9, (6, 4)) for _ in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masks = assert_exact(
            model,
            lambda n: model(batches[n]),
            lambda n, row: model(batches[n][:, row : row + 1]).sum(),
            [4, 4, 4],
            "auto",
        )
    assert set(masks.paths.values()) == {"fast"}
