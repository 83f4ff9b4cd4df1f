"""What is trained: a network of some shape, on some device, its random batches and its losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.routing.models import GROUPS, Stack, gpt, llama, resnet

Batch: TypeAlias = tuple[Tensor, Tensor]
Family: TypeAlias = Literal["gpt", "llama", "resnet"]


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a network and of its batches.

    depth: blocks. batch: examples. tokens: of a sequence, or the side of a picture. classes: of the output,
    the vocabulary of a language model.
    """

    family: Family
    width: int
    depth: int
    batch: int
    tokens: int
    classes: int

    @property
    def convolutional(self) -> bool:
        return self.family == "resnet"

    @property
    def units(self) -> int:
        """How much a step learns from: tokens, or pictures."""
        return self.batch if self.convolutional else self.batch * self.tokens

    def tiny(self) -> Shape:
        """Return the same kind of network, so small that a step takes milliseconds."""
        small = 8 if self.convolutional else 16
        width = GROUPS if self.convolutional else 32
        return replace(self, width=width, depth=3, batch=4, tokens=small, classes=16)


SHAPES = {
    "gpt": Shape("gpt", width=384, depth=6, batch=16, tokens=128, classes=256),
    "llama": Shape("llama", width=384, depth=6, batch=16, tokens=128, classes=256),
    "resnet": Shape("resnet", width=32, depth=9, batch=32, tokens=32, classes=10),
    "resnet-64": Shape("resnet", width=64, depth=9, batch=32, tokens=32, classes=10),
    "gpt-768": Shape("gpt", width=768, depth=6, batch=16, tokens=128, classes=256),
    "llama-768": Shape("llama", width=768, depth=6, batch=16, tokens=128, classes=256),
    "gpt-350m": Shape("gpt", width=1024, depth=24, batch=16, tokens=1024, classes=32_768),
}
"""The networks of the core table by name, and wider ones."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A shape on a device. amp: under bfloat16 autocast."""

    shape: Shape
    device: str = "cpu"
    amp: bool = False

    @property
    def kind(self) -> str:
        return torch.device(self.device).type

    def build(self) -> Stack:
        """Return a new network, the same each time."""
        torch.manual_seed(0)
        shape = self.shape
        if shape.family == "resnet":
            return resnet(shape.width, shape.depth, shape.classes).to(self.device)
        make = gpt if shape.family == "gpt" else llama
        return make(shape.width, shape.depth, shape.tokens, shape.classes).to(self.device)

    def draw(self) -> Batch:
        """Return the inputs and the targets of one batch."""
        shape = self.shape
        if shape.convolutional:
            x = torch.randn(shape.batch, 3, shape.tokens, shape.tokens, device=self.device)
            return x, torch.randint(shape.classes, (shape.batch,), device=self.device)
        size = (shape.batch, shape.tokens)
        x, y = (torch.randint(shape.classes, size, device=self.device) for _ in range(2))
        return x, y

    def losses(self, model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
        """Return one loss per example [B]."""
        with torch.autocast(self.kind, torch.bfloat16, enabled=self.amp):
            logits = model(x).float()
        if self.shape.convolutional:
            return functional.cross_entropy(logits, y, reduction="none")
        losses = functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
        return losses.view(y.shape).mean(1)

    def synchronize(self) -> None:
        """Wait for the device, so that a clock tells the time of its work."""
        if self.kind == "cuda":
            torch.cuda.synchronize(self.device)
