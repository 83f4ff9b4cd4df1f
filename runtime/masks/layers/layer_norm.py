"""`nn.LayerNorm`: normalisation over trailing dimensions, with a gain and an optional bias."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Function

from gradwarden.runtime.masks.call import Call, autocast_dtype, differentiable_once, row_sum, scaled
from gradwarden.runtime.masks.layers.operation import stock_forward
from gradwarden.runtime.masks.layout import Layout
from gradwarden.runtime.masks.rows import Rows
from gradwarden.runtime.masks.unitwise import Owners, Stacked, Unitwise, rows_first


class LayerNormRows(Function):
    """x [..., *shape], weight and bias [*shape] -> [..., *shape]."""

    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.call, ctx.dtype = call, x.dtype
        if autocast_dtype(x) is not None and x.device.type != "cpu":
            x = x.float()
        eps = call.options["eps"]
        y, mean, rstd = torch.native_layer_norm(x, weight.shape, weight, bias, eps)  # type: ignore[arg-type]
        ctx.save_for_backward(x, mean, rstd, weight, bias)
        return y

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        call, (*row_wise, weight, bias) = ctx.call, ctx.saved_tensors
        layout, affine = call.layout, (weight, bias)
        grad_x = None
        if ctx.needs_input_grad[1]:
            grad_x = call.input_gradient(
                grad,
                row_wise[0].shape,
                lambda pick: _gradients(pick(grad), map(pick, row_wise), affine, [True, False, False])[0],
                spare=1.0,
            ).to(ctx.dtype)
        parameters = _Parameters(layout, row_wise, affine, grad)
        return None, grad_x, *call.gradients(parameters)


@dataclass(frozen=True, slots=True, eq=False)
class _Parameters:
    layout: Layout
    row_wise: Sequence[Tensor]
    affine: tuple[Tensor, Tensor | None]
    grad: Tensor

    def summed(self, rows: Rows | None, bias_rows: Rows | None) -> tuple[Tensor | None, Tensor | None]:
        layout, grad = self.layout, self.grad
        grad_weight = grad_bias = None
        if rows is not None:
            x, mean, rstd = (rows.pick(tensor, layout) for tensor in self.row_wise)
            together = rows is bias_rows and rows.weights is None
            # The gain's gradient is the sum of grad * (x - mean) * rstd, so weights can go to rstd, which has
            # one number per row.
            weighed = (x, mean, rows.weigh(rstd, layout))
            found = _gradients(rows.pick(grad, layout), weighed, self.affine, [False, True, together])
            grad_weight = scaled(found[1], rows)
            grad_bias = scaled(found[2], rows) if together else None
        if bias_rows is not None and grad_bias is None:
            grad_bias = row_sum(bias_rows, layout, grad, self.affine[0].dim())
        return grad_weight, grad_bias

    def unitwise(
        self, rows: Rows, owners: Owners | None, bias_owners: Owners | None
    ) -> tuple[Unitwise | None, Unitwise | None]:
        rank = self.affine[0].dim()
        grad, x, mean, rstd = (
            rows_first(tensor, rows, self.layout, rank) for tensor in (self.grad, *self.row_wise)
        )
        dtype = torch.promote_types(mean.dtype, torch.float32)
        weight = bias = None
        if owners is not None:
            centred = x.to(dtype).sub(mean).mul_(grad).flatten(2)
            weight = Stacked(
                torch.bmm(rstd.to(dtype).flatten(1)[:, None], centred).view(-1, *x.shape[2:]), owners
            )
        if bias_owners is not None:
            bias = Stacked(grad.sum(1, dtype=dtype), bias_owners)
        return weight, bias


def _gradients(
    grad: Tensor, row_wise: Iterable[Tensor], affine: tuple[Tensor, Tensor | None], wanted: list[bool]
) -> Sequence[Tensor]:
    """Return the wanted gradients of rows of (x, mean, rstd). The stock kernel takes them as contiguous."""
    x, mean, rstd = (tensor.contiguous() for tensor in row_wise)
    return torch.ops.aten.native_layer_norm_backward(  # type: ignore[no-any-return]
        grad.contiguous(), x, affine[0].shape, mean, rstd, *affine, wanted
    )


class LayerNorm:
    """Weighted `nn.LayerNorm`."""

    adds_rank: ClassVar[int] = 0
    function: ClassVar[type[Function]] = LayerNormRows

    @staticmethod
    def covers(module: nn.Module) -> bool:
        """Return whether this is the stock layer."""
        return stock_forward(module, (nn.LayerNorm,))

    @staticmethod
    def accepts(module: nn.LayerNorm, layout: Layout) -> bool:
        """Return whether the batch is not in a normalised dimension."""
        return layout.dim < layout.rank - len(module.normalized_shape)

    @staticmethod
    def run(module: nn.LayerNorm, call: Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the normalised x times weight plus bias."""
        call.options["eps"] = module.eps
        return LayerNormRows.apply(call, x, weight, bias)  # type: ignore[no-any-return, no-untyped-call]
