"""`nn.Embedding`: rows of a table by index."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from gradwarden.runtime.masks.call import Call, differentiable_once, scaled
from gradwarden.runtime.masks.layers.operation import stock_forward
from gradwarden.runtime.masks.layout import Layout


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
        rows, layout = ctx.call.weight_rows(), ctx.call.layout
        if rows is None:
            return None, None, None, None
        weighed = rows.weigh(rows.pick(grad, layout), layout).contiguous()
        picked = rows.pick(index, layout).contiguous()
        table = torch.ops.aten.embedding_dense_backward(weighed, picked, ctx.entries, ctx.padding, False)
        return None, None, scaled(table, rows), None


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
