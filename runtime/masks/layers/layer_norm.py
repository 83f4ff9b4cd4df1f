"""`nn.LayerNorm`: normalisation over trailing dimensions, with a gain and an optional bias."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from gradwarden.runtime.masks.call import Call, autocast_dtype, scaled
from gradwarden.runtime.masks.layout import Layout
from gradwarden.runtime.masks.rows import Rows


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
        call, saved = ctx.call, ctx.saved_tensors
        x, _, _, weight, _ = saved
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[1]:
            grad_x = call.input_gradient(
                grad, x.shape, lambda pick: _gradients(pick(grad), pick, saved, [True, False, False])[0]
            ).to(ctx.dtype)
        rows, bias_rows = call.weight_rows(), call.bias_rows()
        if rows is not None and rows is bias_rows:
            grad_weight, grad_bias = _parameter_gradients(rows, call, grad, saved, [False, True, True])
        else:
            if rows is not None:
                (grad_weight,) = _parameter_gradients(rows, call, grad, saved, [False, True, False])
            if bias_rows is not None:
                weighed = bias_rows.weigh(bias_rows.pick(grad, call.layout), call.layout)
                grad_bias = scaled(weighed.reshape(-1, *weight.shape).sum(0), bias_rows)
        return None, grad_x, grad_weight, grad_bias


def _parameter_gradients(
    rows: Rows, call: Call, grad: Tensor, saved: Sequence[Tensor], wanted: list[bool]
) -> list[Tensor]:
    weighed = rows.weigh(rows.pick(grad, call.layout), call.layout)
    found = _gradients(weighed, lambda tensor: rows.pick(tensor, call.layout), saved, wanted)
    return [scaled(gradient, rows) for gradient, want in zip(found, wanted, strict=True) if want]


def _gradients(
    grad: Tensor, pick: Callable[[Tensor], Tensor], saved: Sequence[Tensor], wanted: list[bool]
) -> Sequence[Tensor]:
    """Return the wanted gradients of picked rows. The stock kernel reads its statistics as if contiguous."""
    x, mean, rstd, weight, bias = saved
    x, mean, rstd = (pick(tensor).contiguous() for tensor in (x, mean, rstd))
    return torch.ops.aten.native_layer_norm_backward(  # type: ignore[no-any-return]
        grad.contiguous(), x, weight.shape, mean, rstd, weight, bias, wanted
    )


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
