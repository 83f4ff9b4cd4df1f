"""`nn.GroupNorm`: normalisation of each example over groups of channels."""

from __future__ import annotations

from collections.abc import Callable
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
from gradwarden.runtime.masks.unitwise import Owners, Stacked, Unitwise


class GroupNormRows(Function):
    """x [N, C, *], weight and bias [C] -> [N, C, *]."""

    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.call, ctx.dtype = call, x.dtype
        if autocast_dtype(x) is not None and x.device.type != "cpu":
            x = x.float()
        x = x.contiguous()
        ctx.groups = call.options["groups"]
        y, mean, rstd = torch.native_group_norm(
            x,
            weight,
            bias,
            *_sizes(x),
            ctx.groups,
            call.options["eps"],  # type: ignore[arg-type]
        )
        ctx.save_for_backward(x, mean, rstd, weight)
        return y

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        call, (x, mean, rstd, weight) = ctx.call, ctx.saved_tensors
        parameters = _Parameters(call.layout, x, mean, rstd, weight, grad.contiguous(), ctx.groups)
        grad_x = None
        if ctx.needs_input_grad[1] and call.input_rows(spare=1.0).whole:
            # What the kernel finds on the way to the input's gradient is all that weight and bias need.
            grad_x, *each = parameters.by_example(x, mean, rstd, parameters.grad, [True, True, True])
            broken = not call.plan.live or call.plan.units is not None
            parameters.each, parameters.broken = (each[0], each[1]), broken
        elif ctx.needs_input_grad[1]:
            grad_x = call.input_gradient(
                parameters.grad,
                x.shape,
                lambda pick: parameters.run(pick, pick(rstd), [True, False, False])[0],
            )
        return None, None if grad_x is None else grad_x.to(ctx.dtype), *call.gradients(parameters)


@dataclass(slots=True, eq=False)
class _Parameters:
    """each: the gradients of weight and bias [N, C] of every example, where they are known.

    broken: whether some example has no weight, or is a unit's and may be left out of its sum, so that its
    rows may hold anything.
    """

    layout: Layout
    x: Tensor
    mean: Tensor
    rstd: Tensor
    weight: Tensor
    grad: Tensor
    groups: int
    each: tuple[Tensor, Tensor] | None = None
    broken: bool = True

    def run(self, pick: Callable[[Tensor], Tensor], rstd: Tensor, wanted: list[bool]) -> Any:
        """Return the gradients of input, weight and bias over picked rows, as far as wanted."""
        part = pick(self.x).contiguous()
        return torch.ops.aten.native_group_norm_backward(
            pick(self.grad).contiguous(),
            part,
            pick(self.mean).contiguous(),
            rstd.contiguous(),
            self.weight if wanted[0] else shape_only(self.weight),
            *_sizes(part),
            self.groups,
            wanted,
        )

    def summed(self, rows: Rows | None, bias_rows: Rows | None) -> tuple[Tensor | None, Tensor | None]:
        grad_weight = grad_bias = None
        layout = self.layout
        if self.each is not None:
            weight, bias = self.each
            return (
                None if rows is None else rows.summed(weight, self.broken),
                None if bias_rows is None else bias_rows.summed(bias, self.broken),
            )
        if rows is not None:
            together = rows is bias_rows and rows.weights is None
            # The gain's gradient is the sum over examples of sum(grad * (x - mean)) * rstd, so weights can go
            # to rstd, which has one number per example and group.
            weighed = rows.weigh(rows.pick(self.rstd, layout), layout)
            found = self.run(lambda tensor: rows.pick(tensor, layout), weighed, [False, True, together])
            grad_weight = scaled(found[1], rows)
            grad_bias = scaled(found[2], rows) if together else None
        if bias_rows is not None and grad_bias is None:
            grad_bias = row_sum(bias_rows, layout, self.grad.flatten(2).sum(2), 1)
        return grad_weight, grad_bias

    def unitwise(
        self, rows: Rows, owners: Owners | None, bias_owners: Owners | None
    ) -> tuple[Unitwise | None, Unitwise | None]:
        if self.each is not None:
            weight, bias = (rows.pick(part, Layout(0, 2)) for part in self.each)
        else:
            x, mean, rstd, grad = (
                rows.pick(tensor, self.layout).contiguous()
                for tensor in (self.x, self.mean, self.rstd, self.grad)
            )
            wanted = [False, owners is not None, bias_owners is not None]
            _, weight, bias = self.by_example(x, mean, rstd, grad, wanted)
        return (
            None if owners is None else Stacked(weight, owners),
            None if bias_owners is None else Stacked(bias, bias_owners),
        )

    def by_example(self, x: Tensor, mean: Tensor, rstd: Tensor, grad: Tensor, wanted: list[bool]) -> Any:
        """Return the gradients of the input, and of weight and bias [N, C] by example, as far as wanted.

        All channels of the batch lie beside each other, as of one example: what the kernel sums over the
        batch is then one example's alone.
        """
        rows, channels, positions = _sizes(x)
        weight = self.weight if wanted[0] else shape_only(self.weight)
        found = torch.ops.aten.native_group_norm_backward(
            grad,
            x,
            mean,
            rstd,
            weight.expand(rows, channels).flatten(),  # `repeat` takes twice the time
            1,
            rows * channels,
            positions,
            rows * self.groups,
            wanted,
        )
        shapes = (x.shape, (rows, channels), (rows, channels))
        return [
            part.view(shape) if want else None
            for part, shape, want in zip(found, shapes, wanted, strict=True)
        ]


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Return the batch, the channels and the positions of x."""
    return x.shape[0], x.shape[1], x.shape[2:].numel()


class GroupNorm:
    """Weighted `nn.GroupNorm`."""

    adds_rank: ClassVar[int] = 0
    function: ClassVar[type[Function]] = GroupNormRows

    @staticmethod
    def covers(module: nn.Module) -> bool:
        """Return whether this is the stock layer."""
        return stock_forward(module, (nn.GroupNorm,))

    @staticmethod
    def accepts(module: nn.GroupNorm, layout: Layout) -> bool:
        """Return whether the batch comes first."""
        return layout.dim == 0

    @staticmethod
    def run(module: nn.GroupNorm, call: Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return x normalised over groups of channels, times weight plus bias."""
        call.options = {"eps": module.eps, "groups": module.num_groups}
        return GroupNormRows.apply(call, x, weight, bias)  # type: ignore[no-any-return, no-untyped-call]
