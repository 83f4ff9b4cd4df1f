"""`nn.RMSNorm`: y = x / sqrt(mean(x^2) + eps) * weight over trailing dimensions (Zhang and Sennrich 2019)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from gradwarden.runtime.masks.call import Call, differentiable_once, scaled
from gradwarden.runtime.masks.layers.operation import stock_forward
from gradwarden.runtime.masks.layout import Layout
from gradwarden.runtime.masks.rows import Rows
from gradwarden.runtime.masks.unitwise import Owners, Stacked, Unitwise, over_places, rows_first


class RMSNormRows(Function):
    """x [..., *shape], weight [*shape] -> [..., *shape]."""

    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, weight: Tensor) -> Tensor:
        eps: float | None = call.options["eps"]  # type: ignore[assignment]  # set by `RMSNorm.run`
        ctx.call = call
        ctx.eps = _default_eps(x.dtype, x.device.type) if eps is None else eps
        ctx.save_for_backward(x, weight)
        return functional.rms_norm(x, weight.shape, weight, eps)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        call, (x, weight) = ctx.call, ctx.saved_tensors
        parameters = _Parameters(call.layout, x, grad, weight, ctx.eps)
        grad_x = None
        if ctx.needs_input_grad[1]:
            grad_x = call.input_gradient(grad, x.shape, parameters.input_gradient, spare=1.0)
        return None, grad_x, call.gradients(parameters)[0]


@dataclass(slots=True, eq=False)
class _Parameters:
    """normal: x over its root mean square, where all of it was needed on the way to the input's gradient."""

    layout: Layout
    x: Tensor
    grad: Tensor
    weight: Tensor
    eps: float
    normal: Tensor | None = None

    def input_gradient(self, pick: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the gradient of the picked rows of the input."""
        x = pick(self.x)
        normal, inverse = _normalise(x, self.weight.dim(), self.eps)
        if x is self.x:
            self.normal = normal
        inner = pick(self.grad).to(normal.dtype) * self.weight
        dims = tuple(range(-self.weight.dim(), 0))
        mean = (inner * normal).mean(dims, keepdim=True)
        return (inverse * (inner - normal * mean)).to(x.dtype)

    def summed(self, rows: Rows | None, bias_rows: Rows | None) -> tuple[Tensor | None, Tensor | None]:
        if rows is None:
            return None, None
        if self.normal is None:
            normal, _ = _normalise(rows.pick(self.x, self.layout), self.weight.dim(), self.eps)
        else:
            normal = rows.pick(self.normal, self.layout)
        product = rows.weigh(rows.pick(self.grad, self.layout).to(normal.dtype) * normal, self.layout)
        total = product.reshape(-1, *self.weight.shape).sum(0)
        return scaled(total, rows).to(self.weight.dtype), None

    def unitwise(
        self, rows: Rows, owners: Owners | None, bias_owners: Owners | None
    ) -> tuple[Unitwise | None, Unitwise | None]:
        if owners is None:
            return None, None
        rank = self.weight.dim()
        normal, _ = _normalise(rows_first(self.x, rows, self.layout, rank), rank, self.eps)
        grad = rows_first(self.grad, rows, self.layout, rank)
        found = over_places(normal.mul_(grad).flatten(2))
        return Stacked(found.view(-1, *self.weight.shape), owners), None


def _normalise(x: Tensor, rank: int, eps: float) -> tuple[Tensor, Tensor]:
    """Return x over its root mean square, and the inverse of that; half precisions are widened."""
    wide = x if x.dtype == torch.float64 else x.float()
    inverse = torch.rsqrt(wide.pow(2).mean(tuple(range(-rank, 0)), keepdim=True) + eps)
    return wide * inverse, inverse


@cache
def _default_eps(dtype: torch.dtype, device: str) -> float:
    """Return what `rms_norm` adds to the mean square where it is told nothing.

    It is the eps of the precision that it computes in, which for half precisions is float32 in some releases
    and kernels; so it is asked.
    """
    with torch.inference_mode(False), torch.no_grad():
        x = torch.full((1, 4), 2.0**-12, dtype=dtype, device=device)
        ratio = float((x.double() / functional.rms_norm(x, (4,)).double())[0, 0])
    found = ratio**2 - 2.0**-24
    kinds = (dtype, torch.promote_types(dtype, torch.float32))
    return min((torch.finfo(kind).eps for kind in kinds), key=lambda eps: abs(eps - found))


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
        call.options = {"eps": module.eps}
        return RMSNormRows.apply(call, x, weight)  # type: ignore[no-any-return, no-untyped-call]
