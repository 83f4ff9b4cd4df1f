"""`nn.Embedding`: rows of a table by index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from gradwarden.runtime.masks.call import Call, differentiable_once, scaled
from gradwarden.runtime.masks.layers.operation import stock_forward
from gradwarden.runtime.masks.layout import Layout
from gradwarden.runtime.masks.rows import Rows
from gradwarden.runtime.masks.unitwise import Looked, Owners, Unitwise, rows_first


class EmbeddingRows(Function):
    """index [...], weight [entries, width] -> [..., width]."""

    @staticmethod
    def forward(ctx: Any, call: Call, index: Tensor, weight: Tensor, padding: int | None) -> Tensor:
        ctx.call, ctx.entries = call, weight.shape[0]
        ctx.padding = -1 if padding is None else padding
        ctx.save_for_backward(index)
        return functional.embedding(index, weight, padding)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        parameters = _Parameters(ctx.call.layout, index, grad, ctx.entries, ctx.padding)
        return None, None, ctx.call.gradients(parameters)[0], None


@dataclass(slots=True, eq=False)
class _Parameters:
    layout: Layout
    index: Tensor
    grad: Tensor
    entries: int
    padding: int

    def summed(self, rows: Rows | None, bias_rows: Rows | None) -> tuple[Tensor | None, Tensor | None]:
        if rows is None:
            return None, None
        weighed = rows.weigh(rows.pick(self.grad, self.layout), self.layout).contiguous()
        picked = rows.pick(self.index, self.layout).contiguous()
        table = torch.ops.aten.embedding_dense_backward(weighed, picked, self.entries, self.padding, False)
        return scaled(table, rows), None

    def unitwise(
        self, rows: Rows, owners: Owners | None, bias_owners: Owners | None
    ) -> tuple[Unitwise | None, Unitwise | None]:
        if owners is None:
            return None, None
        index = rows_first(self.index, rows, self.layout, 0)
        grad = rows_first(self.grad, rows, self.layout, 1)
        if self.padding >= 0:
            grad = grad.masked_fill((index == self.padding)[..., None], 0.0)
        return Looked(index, grad, self.entries, owners), None


class Embedding:
    """Weighted `nn.Embedding` (dense gradients)."""

    adds_rank: ClassVar[int] = 1
    function: ClassVar[type[Function]] = EmbeddingRows

    @staticmethod
    def covers(module: nn.Module) -> bool:
        """Return whether this is the stock layer."""
        return stock_forward(module, (nn.Embedding,))

    @staticmethod
    def accepts(module: nn.Embedding, layout: Layout) -> bool:
        """Return whether the gradient is dense and the batch not in the feature dimension."""
        return not module.sparse and layout.dim < layout.rank - 1

    @staticmethod
    def run(module: nn.Embedding, call: Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the table's rows at indices x."""
        return EmbeddingRows.apply(call, x, weight, module.padding_idx)  # type: ignore[no-any-return, no-untyped-call]
