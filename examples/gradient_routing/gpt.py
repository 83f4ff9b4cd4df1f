"""A byte-level GPT with capacity that can be removed: beside every block a head and some units in quarantine.

Each example says through its gate whether it sees the quarantine. With the gate shut the model is, to the
bit, the one without it: that is what is released.

Shapes: B examples, T positions, D width, V characters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.gradient_routing.corpus import ALPHABET


@dataclass(frozen=True, slots=True)
class GPTConfig:
    """heads, units: attention heads and feed-forward units of a block. spare_…: of the quarantine."""

    layers: int = 2
    width: int = 64
    heads: int = 4
    units: int = 256
    spare_heads: int = 1
    spare_units: int = 64
    context: int = 64


class Attention(nn.Module):
    """Causal self-attention with some heads of a given size."""

    def __init__(self, width: int, heads: int, size: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * heads * size)
        self.project = nn.Linear(heads * size, width)

    def forward(self, x_BTD: Tensor) -> Tensor:  # noqa: N803
        batch, length, _ = x_BTD.shape
        split = (batch, length, self.heads, -1)
        query, key, value = (part.view(split).transpose(1, 2) for part in self.qkv(x_BTD).chunk(3, dim=-1))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        attended: Tensor = self.project(mixed.transpose(1, 2).reshape(batch, length, -1))
        return attended


class Feed(nn.Module):
    """A feed-forward network with some hidden units."""

    def __init__(self, width: int, units: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, units)
        self.contract = nn.Linear(units, width)

    def forward(self, x_BTD: Tensor) -> Tensor:  # noqa: N803
        fed: Tensor = self.contract(functional.gelu(self.expand(x_BTD)))
        return fed


class Block(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.heads, config.width // config.heads)
        self.norm_feed = nn.LayerNorm(config.width)
        self.feed = Feed(config.width, config.units)


class Spare(nn.Module):
    """What is added beside one block."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention = Attention(config.width, config.spare_heads, config.width // config.heads)
        self.feed = Feed(config.width, config.spare_units)


class QuarantineGPT(nn.Module):
    """Bytes [B, T] and gates [B] in, logits of the next byte [B, T, V] out."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.bytes = nn.Embedding(ALPHABET, config.width)
        self.previous = nn.Embedding(ALPHABET, config.width)
        self.positions = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.quarantine = nn.ModuleList(Spare(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, ALPHABET, bias=False)
        self.apply(_initialise)

    def forward(self, bytes_BT: Tensor, gates_B: Tensor) -> Tensor:  # noqa: N803
        positions_BT = torch.arange(bytes_BT.shape[1]).expand_as(bytes_BT)  # noqa: N806
        previous_BT = functional.pad(bytes_BT, (1, 0))[:, :-1]  # noqa: N806
        x_BTD = self.bytes(bytes_BT) + self.previous(previous_BT) + self.positions(positions_BT)  # noqa: N806
        gates = gates_B[:, None, None]
        for block, spare in zip(self.blocks, self.quarantine, strict=True):
            seen = block.norm_attention(x_BTD)
            x_BTD = x_BTD + block.attention(seen) + gates * spare.attention(seen)  # noqa: N806
            seen = block.norm_feed(x_BTD)
            x_BTD = x_BTD + block.feed(seen) + gates * spare.feed(seen)  # noqa: N806
        logits: Tensor = self.head(self.norm(x_BTD))
        return logits


def per_example_loss(model: QuarantineGPT, windows: Tensor, gates: Tensor) -> Tensor:
    """Return the mean cross-entropy of each window [B], in nats per byte. windows: [B, T + 1]."""
    logits = model(windows[:, :-1], gates).transpose(1, 2)
    return functional.cross_entropy(logits, windows[:, 1:], reduction="none").mean(dim=1)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
