"""`nn.RMSNorm`: y = x / sqrt(mean(x^2) + eps) * weight over trailing dimensions (Zhang and Sennrich 2019)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from gradwarden.runtime.masks.call import Call, differentiable_once, scaled
from gradwarden.runtime.masks.layers.operation import stock_forward
from gradwarden.runtime.masks.layout import Layout


class RMSNormRows(Function):
    """x [..., *shape], weight [*shape] -> [..., *shape]."""

    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, weight: Tensor) -> Tensor:
        eps: float | None = call.options["eps"]  # type: ignore[assignment]  # set by `RMSNorm.run`
        ctx.call = call
        ctx.eps = torch.finfo(x.dtype).eps if eps is None else eps
        ctx.save_for_backward(x, weight)
        return functional.rms_norm(x, weight.shape, weight, eps)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        call, (x, weight) = ctx.call, ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_x = call.input_gradient(
                grad, x.shape, lambda pick: _input_gradient(pick(grad), pick(x), weight, ctx.eps).to(x.dtype)
            )
        rows = call.weight_rows()
        if rows is not None:
            x, grad = rows.pick(x, call.layout), rows.pick(grad, call.layout)
            normal, _ = _normalise(x, weight.dim(), ctx.eps)
            product = rows.weigh(grad.to(normal.dtype) * normal, call.layout)
            grad_weight = scaled(product.reshape(-1, *weight.shape).sum(0), rows).to(weight.dtype)
        return None, grad_x, grad_weight


def _input_gradient(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    normal, inverse = _normalise(x, weight.dim(), eps)
    inner = grad.to(normal.dtype) * weight
    dims = tuple(range(-weight.dim(), 0))
    return inverse * (inner - normal * (inner * normal).mean(dims, keepdim=True))


def _normalise(x: Tensor, rank: int, eps: float) -> tuple[Tensor, Tensor]:
    """Return x over its root mean square, and the inverse of that; half precisions are widened."""
    wide = x if x.dtype == torch.float64 else x.float()
    inverse = torch.rsqrt(wide.pow(2).mean(tuple(range(-rank, 0)), keepdim=True) + eps)
    return wide * inverse, inverse


class RMSNorm:
    """Weighted `nn.RMSNorm`."""

    adds_rank: ClassVar[int] = 0
    function: ClassVar[type[Function]] = RMSNormRows

    @staticmethod
    def covers(module: nn.Module) -> bool:
        """Return whether this is the stock layer."""
        return stock_forward(module, (nn.RMSNorm,))

    @staticmethod
    def accepts(module: nn.RMSNorm, layout: Layout) -> bool:
        """Return whether the batch is not in a normalised dimension."""
        return layout.dim < layout.rank - len(module.normalized_shape)

    @staticmethod
    def run(module: nn.RMSNorm, call: Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return x over its root mean square, times weight."""
        call.options["eps"] = module.eps
        return RMSNormRows.apply(call, x, weight)  # type: ignore[no-any-return, no-untyped-call]
