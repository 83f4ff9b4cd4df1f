"""A byte-level GPT: the smallest model that shows what each depth learns.

Shapes: B examples, T positions, D width, H heads, V = 256 byte values.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

BYTES = 256

PADDING = -100
"""Target of positions after the end of a file; they take no part in the loss."""


@dataclass(frozen=True, slots=True)
class GPTConfig:
    """Sizes of the model. context: the longest sequence T."""

    layers: int = 4
    width: int = 192
    heads: int = 6
    context: int = 128

    def to_json(self) -> dict[str, int]:
        return asdict(self)


class Block(nn.Module):
    """Causal self-attention, then a feed-forward network, each after a layer norm and added back."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm_attention = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.project = nn.Linear(config.width, config.width)
        self.norm_feed = nn.LayerNorm(config.width)
        self.expand = nn.Linear(config.width, 4 * config.width)
        self.contract = nn.Linear(4 * config.width, config.width)

    def forward(self, x_BTD: Tensor) -> Tensor:  # noqa: N803
        x_BTD = x_BTD + self.attend(self.norm_attention(x_BTD))  # noqa: N806
        fed_BTD: Tensor = self.contract(functional.gelu(self.expand(self.norm_feed(x_BTD))))  # noqa: N806
        return x_BTD + fed_BTD

    def attend(self, x_BTD: Tensor) -> Tensor:  # noqa: N803
        batch, length, width = x_BTD.shape
        split = (batch, length, self.heads, width // self.heads)
        query, key, value = (part.view(split).transpose(1, 2) for part in self.qkv(x_BTD).chunk(3, dim=-1))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        attended: Tensor = self.project(mixed.transpose(1, 2).reshape(batch, length, width))
        return attended


class ByteGPT(nn.Module):
    """Bytes [B, T] in, logits of the next byte [B, T, V] out."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.bytes = nn.Embedding(BYTES, config.width)
        self.previous = nn.Embedding(BYTES, config.width)
        self.positions = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, BYTES, bias=False)
        self.apply(_initialise)

    def forward(self, bytes_BT: Tensor) -> Tensor:  # noqa: N803
        # One row of positions per example, so that each example's gradient is its own.
        positions_BT = torch.arange(bytes_BT.shape[1], device=bytes_BT.device).expand_as(bytes_BT)  # noqa: N806
        # Pairs of bytes are most of what a short run learns first; seeing the one before saves it the search.
        previous_BT = functional.pad(bytes_BT, (1, 0))[:, :-1]  # noqa: N806
        x_BTD = self.bytes(bytes_BT) + self.previous(previous_BT) + self.positions(positions_BT)  # noqa: N806
        for block in self.blocks:
            x_BTD = block(x_BTD)  # noqa: N806
        logits: Tensor = self.head(self.norm(x_BTD))
        return logits


def per_example_loss(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:  # noqa: N803
    """Return the mean cross-entropy of each example [B], in nats per byte, over its real positions."""
    losses_BT = functional.cross_entropy(  # noqa: N806
        logits_BTV.transpose(1, 2), targets_BT, ignore_index=PADDING, reduction="none"
    )
    return losses_BT.sum(dim=1) / (targets_BT != PADDING).sum(dim=1).clamp(min=1)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
