"""A small language model whose rows are packed sequences, or one sequence each, and its losses."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradwarden.runtime.batching.packing import attention_within, next_token_losses, pack, positions_within

WORDS, LENGTH, WIDTH = 7, 8, 6


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (x[:, None] for x in self.mix(self.norm(h)).chunk(3, dim=2))
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)[:, 0]
        return h + torch.tanh(self.out(mixed))


class Reader(nn.Module):
    """Four blocks; `deep` are the embeddings and the lower ones, under the laboratory's policy.

    gain: a parameter that is used outside of layers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, WIDTH))
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, tokens: Tensor, places: Tensor, mask: Tensor) -> Tensor:
        h = self.words(tokens) + self.places(places)
        for block in self.blocks:
            h = block(h, mask)
        return self.head(self.gain * h)


def reader_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Reader().double()


def text_of(name: str) -> Tensor:
    """Two to seven tokens, the same for a name wherever it is met."""
    seed = zlib.crc32(name.encode())
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(WORDS, (2 + seed % 6,), generator=generator)


def packed_losses(
    model: nn.Module, proposal: Any, examples: Sequence[dict[str, Any]], how: str = ""
) -> Tensor:
    """The examples' losses, packed. how: `unassigned`, `crossing` or `misnumbered`, what goes wrong."""
    tokens, documents = pack([text_of(e["id"]) for e in examples], LENGTH)
    tokens = tokens.long()
    if how == "misnumbered":
        proposal.assign(documents + 1)
    elif how != "unassigned":
        proposal.assign(documents)
    mask = attention_within(documents)
    if how == "crossing":
        mask = torch.ones_like(mask).tril()
    logits = model(tokens, positions_within(documents), mask)
    return next_token_losses(logits, tokens, documents, len(examples))


def padded_losses(model: nn.Module, examples: Sequence[dict[str, Any]]) -> Tensor:
    """The same losses, each text in a row of its own."""
    texts = [text_of(e["id"]) for e in examples]
    tokens = torch.stack([functional.pad(text, (0, LENGTH - len(text))) for text in texts])
    places = torch.arange(LENGTH).expand_as(tokens)
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    logits = model(tokens, places, mask)
    each = functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    counts = torch.tensor([[len(text) - 1] for text in texts])
    return (each * (torch.arange(LENGTH - 1) < counts)).sum(1) / counts[:, 0]
