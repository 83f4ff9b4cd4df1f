"""Hugging Face's `Conv1D`, as in GPT-2: y = x W + b over the last dimension, with W [in, out].

The class is known by its name, so that the library need not be installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Function

from gradwarden.runtime.masks.call import (
    Call,
    at_its_precision,
    autocast_dtype,
    differentiable_once,
    row_sum,
    scaled,
)
from gradwarden.runtime.masks.layers.operation import stock_forward_named
from gradwarden.runtime.masks.layers.product import ProductParameters, matrix, stretches, summed_products
from gradwarden.runtime.masks.layout import Layout
from gradwarden.runtime.masks.rows import Rows

_CLASS = ("transformers.pytorch_utils", "Conv1D")


class TransposedLinearRows(Function):
    """x [..., in], weight [in, out], bias [out] -> [..., out]."""

    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.call, ctx.dtypes = call, (x.dtype, weight.dtype, bias.dtype)
        dtype = autocast_dtype(x)
        if dtype is not None:
            x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
        ctx.shape = x.shape
        ctx.save_for_backward(x if call.keeps_input else None, weight if ctx.needs_input_grad[1] else None)
        with at_its_precision(x, dtype):
            return torch.addmm(bias, matrix(x), weight).view(*x.shape[:-1], weight.shape[1])

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        call, (x, weight) = ctx.call, ctx.saved_tensors
        grad_x = None
        if ctx.needs_input_grad[1]:
            grad_x = call.input_gradient(
                grad,
                ctx.shape,
                lambda pick: (matrix(pick(grad)) @ weight.t()).view(*pick(grad).shape[:-1], -1),
            ).to(ctx.dtypes[0])
        return None, grad_x, *call.gradients(_Parameters(call.layout, x, grad, ctx.dtypes[1:]))


@dataclass(slots=True, eq=False)
class _Parameters(ProductParameters):
    transposed: ClassVar[bool] = True

    def summed(self, rows: Rows | None, bias_rows: Rows | None) -> tuple[Tensor | None, Tensor | None]:
        grad_weight = grad_bias = None
        found = None if rows is None else stretches(rows, self.layout, self.x, self.grad)
        if rows is not None and found is not None:
            grad_weight = scaled(summed_products(*found), rows).to(self.dtypes[0])
        elif rows is not None:
            weighed = rows.weigh(rows.pick(self.grad, self.layout), self.layout)
            product = matrix(rows.pick(self.x, self.layout)).t() @ matrix(weighed)
            grad_weight = scaled(product, rows).to(self.dtypes[0])
        if bias_rows is not None:
            grad_bias = row_sum(bias_rows, self.layout, self.grad, 1).to(self.dtypes[1])
        return grad_weight, grad_bias


class TransposedLinear:
    """Weighted `transformers.pytorch_utils.Conv1D`."""

    adds_rank: ClassVar[int] = 0
    function: ClassVar[type[Function]] = TransposedLinearRows

    @staticmethod
    def covers(module: nn.Module) -> bool:
        """Return whether this is the library's class, with its own forward."""
        return stock_forward_named(module, *_CLASS)

    @staticmethod
    def accepts(module: nn.Module, layout: Layout) -> bool:
        """Return whether the batch is not in the feature dimension."""
        return layout.dim < layout.rank - 1

    @staticmethod
    def run(module: nn.Module, call: Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return x W + b."""
        return TransposedLinearRows.apply(call, x, weight, bias)  # type: ignore[no-any-return, no-untyped-call]
