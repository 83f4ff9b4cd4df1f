"""The networks that are trained: a GPT, a Llama-style decoder and a residual network with GroupNorm.

Each is a `Stack`: a stem at the input, blocks, and a top at the output. Weights are random and the data too:
only the work of a step matters here. B examples, T tokens, side x side pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradwarden.policy.program import Band

HEAD_WIDTH = 64
GROUPS = 8


class Stack(nn.Module):
    """A stem, blocks and a top, run in this order.

    Every block names in `hidden_reader` the layer that reads its hidden activations.
    """

    def __init__(self, stem: nn.Module, blocks: Sequence[nn.Module], top: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks, self.top = stem, nn.ModuleList(blocks), top

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.top(x)

    def parts(self) -> list[nn.Module]:
        """Return the top, the blocks from the top down, and the stem: one for each band."""
        return [self.top, *reversed(self.blocks), self.stem]

    def members(self) -> list[list[nn.Parameter]]:
        """Return the parameters of each band."""
        return [list(part.parameters()) for part in self.parts()]

    def bands(self) -> tuple[Band, ...]:
        """Return a band for the top, one for each block from the top down, and one for the stem."""
        names = {id(module): name for name, module in self.named_modules()}
        return tuple(
            Band(
                f"band_{number}",
                (),
                tuple(f"{names[id(part)]}.{name}" for name, _ in part.named_parameters()),
            )
            for number, part in enumerate(self.parts())
        )


# --- GPT ----------------------------------------------------------------------------------------------------


class Words(nn.Module):
    """Words and, where asked for, learned positions: [B, T] -> [B, T, width]."""

    def __init__(self, vocabulary: int, width: int, positions: int = 0) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(positions, width) if positions else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x)
        if self.positions is None:
            return h
        return h + self.positions(torch.arange(x.shape[1], device=x.device))


class Head(nn.Module):
    """Normalisation and logits: [B, T, width] -> [B, T, vocabulary]."""

    def __init__(self, norm: nn.Module, width: int, vocabulary: int) -> None:
        super().__init__()
        self.norm, self.head = norm, nn.Linear(width, vocabulary, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))


class GPTBlock(nn.Module):
    """Pre-norm attention and MLP: [B, T, width] -> [B, T, width]."""

    hidden_reader = "down"

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD_WIDTH)
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm_1(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(functional.gelu(self.up(self.norm_2(x))))


def gpt(width: int, depth: int, tokens: int, vocabulary: int) -> Stack:
    """Return a GPT: LayerNorm, learned positions, attention in heads of 64, GELU."""
    return Stack(
        Words(vocabulary, width, tokens),
        [GPTBlock(width) for _ in range(depth)],
        Head(nn.LayerNorm(width), width, vocabulary),
    )


# --- Llama --------------------------------------------------------------------------------------------------


class LlamaBlock(nn.Module):
    """Grouped-query attention with rotary positions, and a gated MLP: [B, T, width] -> [B, T, width]."""

    hidden_reader = "down"

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD_WIDTH)
        self.shared = next(n for n in (3, 2, 1) if self.heads % n == 0)
        size, inner = width // self.heads, 8 * width // 3
        pairs = self.heads // self.shared
        self.norm_1, self.norm_2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.query, self.proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, pairs * size, bias=False)
        self.value = nn.Linear(width, pairs * size, bias=False)
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)
        steps = torch.arange(0, size, 2) / size
        angles = torch.arange(tokens)[:, None] * 10_000.0 ** -torch.cat((steps, steps))
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        normed = self.norm_1(x)
        query = self._turn(self._heads(self.query(normed)))
        key = self._turn(self._heads(self.key(normed))).repeat_interleave(self.shared, dim=1)
        value = self._heads(self.value(normed)).repeat_interleave(self.shared, dim=1)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        normed = self.norm_2(x)
        return x + self.down(functional.silu(self.gate(normed)) * self.up(normed))

    def _heads(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        return x.view(batch, tokens, -1, self.cosine.shape[1]).transpose(1, 2)

    def _turn(self, x: Tensor) -> Tensor:
        """Rotate pairs of features by an angle that grows with the position (RoPE, arXiv 2104.09864)."""
        tokens = x.shape[2]
        first, second = x.chunk(2, dim=3)
        turned = torch.cat((-second, first), dim=3)
        return (x * self.cosine[:tokens] + turned * self.sine[:tokens]).to(x.dtype)


def llama(width: int, depth: int, tokens: int, vocabulary: int) -> Stack:
    """Return a decoder in the style of Llama: RMSNorm, rotary positions, shared key heads, SwiGLU."""
    return Stack(
        Words(vocabulary, width),
        [LlamaBlock(width, tokens) for _ in range(depth)],
        Head(nn.RMSNorm(width), width, vocabulary),
    )


# --- residual network ---------------------------------------------------------------------------------------


class ResidualBlock(nn.Module):
    """Two pre-activated convolutions: [B, before, side, side] -> [B, after, side / stride, side / stride]."""

    hidden_reader = "second"

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.GroupNorm(GROUPS, before), nn.GroupNorm(GROUPS, after)
        self.first = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        kept = before == after and stride == 1
        self.shortcut = nn.Identity() if kept else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.first(functional.relu(self.norm_1(x)))
        return self.shortcut(x) + self.second(functional.relu(self.norm_2(inner)))


class Classes(nn.Module):
    """Normalisation, mean over all places and logits: [B, channels, side, side] -> [B, classes]."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm, self.head = nn.GroupNorm(GROUPS, channels), nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.relu(self.norm(x)).mean(dim=(2, 3)))


def resnet(width: int, depth: int, classes: int) -> Stack:
    """Return a residual network of `depth` blocks in three stages: width, 2 width and 4 width channels."""
    stages = [3 * number // depth for number in range(depth)]
    channels = [width, *(width << stage for stage in stages)]
    strides = [1 + (after > before) for before, after in zip([0, *stages], stages, strict=False)]
    blocks = [
        ResidualBlock(before, after, stride)
        for before, after, stride in zip(channels, channels[1:], strides, strict=False)
    ]
    return Stack(nn.Conv2d(3, width, 3, padding=1, bias=False), blocks, Classes(channels[-1], classes))
