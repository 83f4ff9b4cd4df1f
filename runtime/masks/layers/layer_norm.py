"""`nn.LayerNorm`: normalisation over trailing dimensions, with a gain and an optional bias."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from gradwarden.runtime.masks.call import Call, autocast_dtype, scaled
from gradwarden.runtime.masks.layout import Layout

_backward = torch.ops.aten.native_layer_norm_backward


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
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        call, (x, mean, rstd, weight, bias) = ctx.call, ctx.saved_tensors
        layout, shape = call.layout, weight.shape
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[1]:
            grad_x = call.input_gradient(
                grad,
                x.shape,
                lambda pick: _backward(
                    pick(grad), pick(x), shape, pick(mean), pick(rstd), weight, bias, [True, False, False]
                )[0],
            ).to(ctx.dtype)
        rows, bias_rows = call.weight_rows(), call.bias_rows()
        both = rows is not None and bias_rows is rows
        if rows is not None:
            weighed = rows.weigh(rows.pick(grad, layout), layout)
            picked = (rows.pick(tensor, layout) for tensor in (x, mean, rstd))
            _, grad_weight, together = _backward(
                weighed, *_around(picked, shape), weight, bias, [False, True, both]
            )
            grad_weight = scaled(grad_weight, rows)
            grad_bias = scaled(together, rows) if both else None
        if bias_rows is not None and not both:
            weighed = bias_rows.weigh(bias_rows.pick(grad, layout), layout)
            grad_bias = scaled(weighed.reshape(-1, *shape).sum(0), bias_rows)
        return None, grad_x, grad_weight, grad_bias


def _around(picked: Any, shape: torch.Size) -> tuple[Any, ...]:
    x, mean, rstd = picked
    return x, shape, mean, rstd


class LayerNorm:
    """Weighted `nn.LayerNorm`."""

    classes: ClassVar[tuple[type[nn.Module], ...]] = (nn.LayerNorm,)
    adds_rank: ClassVar[int] = 0
    function: ClassVar[type[Function]] = LayerNormRows

    @staticmethod
    def accepts(module: nn.LayerNorm, layout: Layout) -> bool:
        """Return whether the batch is not in a normalised dimension."""
        return layout.dim < layout.rank - len(module.normalized_shape)

    @staticmethod
    def run(module: nn.LayerNorm, call: Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the normalised x times weight plus bias."""
        call.options["eps"] = module.eps
        return LayerNormRows.apply(call, x, weight, bias)  # type: ignore[no-any-return, no-untyped-call]
