"""`nn.Linear`: y = x W^T + b over the last dimension."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from gradwarden.runtime.masks.call import (
    Call,
    at_its_precision,
    autocast_dtype,
    differentiable_once,
    row_sum,
    scaled,
)
from gradwarden.runtime.masks.layers.operation import stock_forward
from gradwarden.runtime.masks.layers.product import (
    ProductParameters,
    matrix,
    stretches,
    summed_products,
    summed_rows,
)
from gradwarden.runtime.masks.layout import Layout
from gradwarden.runtime.masks.rows import Rows


class LinearRows(Function):
    """x [..., in], weight [out, in], bias [out] -> [..., out]."""

    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.call, ctx.dtypes = call, (x.dtype, weight.dtype, None if bias is None else bias.dtype)
        dtype = autocast_dtype(x)
        if dtype is not None:
            x, weight = x.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        keep = x if call.keeps_input else None
        ctx.shape = x.shape
        ctx.save_for_backward(keep, weight if ctx.needs_input_grad[1] else None)
        if dtype is None:
            return functional.linear(x, weight, bias)
        with at_its_precision(x, dtype):
            return functional.linear(x, weight, bias)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        call, (x, weight) = ctx.call, ctx.saved_tensors
        grad_x = None
        if ctx.needs_input_grad[1]:
            grad_x = _input_gradient(call, grad, weight, ctx.shape).to(ctx.dtypes[0])
        return None, grad_x, *call.gradients(_Parameters(call.layout, x, grad, ctx.dtypes[1:]))


def _input_gradient(call: Call, grad: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
    def compute(pick: Callable[[Tensor], Tensor]) -> Tensor:
        picked = pick(grad)
        return (matrix(picked) @ weight).view(*picked.shape[:-1], shape[-1])

    return call.input_gradient(grad, shape, compute)


@dataclass(slots=True, eq=False)
class _Parameters(ProductParameters):
    transposed: ClassVar[bool] = False

    def summed(self, rows: Rows | None, bias_rows: Rows | None) -> tuple[Tensor | None, Tensor | None]:
        grad_weight = grad_bias = None
        if rows is not None:
            grad_weight, weighed = _weight_gradient(rows, self.layout, self.x, self.grad)
            grad_weight = grad_weight.to(self.dtypes[0])
            if weighed is not None and bias_rows is rows:
                grad_bias = scaled(summed_rows(weighed), bias_rows).to(self.dtypes[1])
        if bias_rows is not None and grad_bias is None:
            grad_bias = row_sum(bias_rows, self.layout, self.grad, 1).to(self.dtypes[1])
        return grad_weight, grad_bias


def _weight_gradient(
    rows: Rows, layout: Layout, x: Tensor, grad: Tensor
) -> tuple[Tensor, Sequence[Tensor] | None]:
    """Return the weight's gradient and, where it was formed, the weighted output gradient, as matrices.

    Weights go to whichever of x and grad is narrower.
    """
    found = stretches(rows, layout, grad, x)
    if found is not None:
        return scaled(summed_products(*found), rows), found[0]
    x, grad = rows.pick(x, layout), rows.pick(grad, layout)
    weighed = None
    if rows.weights is None:
        weighed = [matrix(grad)]
    elif x.shape[-1] < grad.shape[-1]:
        x = rows.weigh(x, layout)
    else:
        grad = rows.weigh(grad, layout)
        weighed = [matrix(grad)]
    return scaled(matrix(grad).t() @ matrix(x), rows), weighed


class Linear:
    """Weighted `nn.Linear`."""

    adds_rank: ClassVar[int] = 0
    function: ClassVar[type[Function]] = LinearRows

    @staticmethod
    def covers(module: nn.Module) -> bool:
        """Return whether this is the stock layer."""
        return stock_forward(module, (nn.Linear,))

    @staticmethod
    def accepts(module: nn.Linear, layout: Layout) -> bool:
        """Return whether the batch is not in the feature dimension."""
        return layout.dim < layout.rank - 1

    @staticmethod
    def run(module: nn.Linear, call: Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return x W^T + b."""
        return LinearRows.apply(call, x, weight, bias)  # type: ignore[no-any-return, no-untyped-call]
