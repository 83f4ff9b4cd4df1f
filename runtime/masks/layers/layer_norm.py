"""`nn.LayerNorm`: normalisation over trailing dimensions, with a gain and an optional bias."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Function

from gradwarden.runtime.masks.call import (
    Call,
    autocast_dtype,
    differentiable_once,
    row_sum,
    scaled,
    shape_only,
)
from gradwarden.runtime.masks.layers.operation import stock_forward
from gradwarden.runtime.masks.layout import Layout
from gradwarden.runtime.masks.rows import Rows
from gradwarden.runtime.masks.unitwise import Owners, Stacked, Unitwise, over_places, rows_first
from gradwarden.runtime.native.kernels import norm_gradients, usable

_LARGE = 1 << 14
"""Elements of a row for which a call of a kernel costs little."""


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
        parameters = _Parameters(call.layout, row_wise, (weight, bias), grad)
        grad_x = None
        if ctx.needs_input_grad[1]:
            rows = call.weight_rows()
            together = rows is not None and rows is call.bias_rows() and _even(rows)
            grad_x = call.input_gradient(
                grad,
                row_wise[0].shape,
                lambda pick: parameters.input_gradient(pick, together),
                spare=1.0,
            ).to(ctx.dtype)
        return None, grad_x, *call.gradients(parameters)


@dataclass(slots=True, eq=False)
class _Parameters:
    """whole: the sums over all rows, where they came with the gradient of the input."""

    layout: Layout
    row_wise: Sequence[Tensor]
    affine: tuple[Tensor, Tensor | None]
    grad: Tensor
    whole: tuple[Tensor, Tensor] | None = None

    def input_gradient(self, pick: Callable[[Tensor], Tensor], together: bool) -> Tensor:
        """Return the gradient of the picked rows of the input. together: take the sums over them as well."""
        grad = pick(self.grad)
        together = together and grad.shape == self.grad.shape
        found = _gradients(grad, map(pick, self.row_wise), self.affine, [True, together, together])
        if together:
            self.whole = (found[1], found[2])
        return found[0]

    def summed(self, rows: Rows | None, bias_rows: Rows | None) -> tuple[Tensor | None, Tensor | None]:
        layout, grad = self.layout, self.grad
        grad_weight = grad_bias = None
        if rows is not None:
            together = rows is bias_rows and rows.weights is None
            if self.whole is not None and together and _even(rows):
                return self.whole[0] * rows.factor, self.whole[1] * rows.factor
            x, mean, rstd = (rows.pick(tensor, layout) for tensor in self.row_wise)
            # The gain's gradient is the sum of grad * (x - mean) * rstd, so weights can go to rstd, which has
            # one number per row.
            weighed = (x, mean, rows.weigh(rstd, layout))
            affine = _shapes(self.affine)
            found = _gradients(rows.pick(grad, layout), weighed, affine, [False, True, together])
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
        wanted = (owners is not None, bias_owners is not None)
        weight, bias = _by_row(grad, (x, mean, rstd), _shapes(self.affine), wanted)
        return (
            None if owners is None or weight is None else Stacked(weight, owners),
            None if bias_owners is None or bias is None else Stacked(bias, bias_owners),
        )


def _by_row(
    grad: Tensor,
    row_wise: tuple[Tensor, Tensor, Tensor],
    affine: tuple[Tensor, Tensor | None],
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of weight and bias [rows, *shape] of each row, as far as wanted.

    grad: [rows, T, *shape]. row_wise: x, like it; mean and rstd, [rows, T, …, 1].
    """
    x, mean, rstd = row_wise
    if usable(grad, x, mean, rstd):
        both = norm_gradients(grad.flatten(2), x.flatten(2), mean.flatten(1), rstd.flatten(1))
        gain, shift = (part.view(-1, *x.shape[2:]) for part in both)
        return gain if wanted[0] else None, shift if wanted[1] else None
    dtype = torch.promote_types(mean.dtype, torch.float32)
    if _row_is_large(x) and {grad.dtype, x.dtype, mean.dtype, affine[0].dtype} == {dtype}:
        each = zip(grad, *row_wise, strict=True)
        found = [_gradients(own, others, affine, [False, *wanted])[1:] for own, *others in each]
        weights, biases = zip(*found, strict=True)
        return torch.stack(weights) if wanted[0] else None, torch.stack(biases) if wanted[1] else None
    weight = None
    if wanted[0]:
        centred = x.to(dtype).sub(mean).mul_(grad).flatten(2)
        weight = torch.bmm(rstd.to(dtype).flatten(1)[:, None], centred).view(-1, *x.shape[2:])
    bias = over_places(grad.to(dtype).flatten(2)).view(-1, *x.shape[2:]) if wanted[1] else None
    return weight, bias


def _row_is_large(x: Tensor) -> bool:
    """Return whether the stock kernel is faster at each row than arithmetic on all of them at once."""
    return x.device.type == "cpu" and len(x) > 0 and x[0].numel() >= _LARGE


def _even(rows: Rows) -> bool:
    """Return whether all rows count, with one weight."""
    return rows.whole and rows.weights is None


def _shapes(affine: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    weight, bias = affine
    return shape_only(weight), None if bias is None else shape_only(bias)


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
        call.options = {"eps": module.eps}
        return LayerNormRows.apply(call, x, weight, bias)  # type: ignore[no-any-return, no-untyped-call]
