"""`nn.GroupNorm`: normalisation of each example over groups of channels."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from gradwarden.runtime.masks.call import Call, autocast_dtype, scaled
from gradwarden.runtime.masks.layers.operation import stock_forward
from gradwarden.runtime.masks.layout import Layout
from gradwarden.runtime.masks.rows import Rows


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
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        call, (x, mean, rstd, weight) = ctx.call, ctx.saved_tensors
        grad = grad.contiguous()

        def run(rows_of: Any, weigh: Any, wanted: list[bool]) -> Any:
            part = rows_of(x)
            return torch.ops.aten.native_group_norm_backward(
                weigh(rows_of(grad)),
                part,
                rows_of(mean),
                rows_of(rstd),
                weight,
                *_sizes(part),
                ctx.groups,
                wanted,
            )

        def parameters(rows: Rows, wanted: list[bool]) -> list[Tensor]:
            found = run(
                lambda tensor: rows.pick(tensor, call.layout).contiguous(),
                lambda tensor: rows.weigh(tensor, call.layout),
                wanted,
            )
            return [scaled(gradient, rows) for gradient, want in zip(found, wanted, strict=True) if want]

        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[1]:
            grad_x = call.input_gradient(
                grad,
                x.shape,
                lambda pick: run(lambda t: pick(t).contiguous(), lambda t: t, [True, False, False])[0],
            ).to(ctx.dtype)
        rows, bias_rows = call.weight_rows(), call.bias_rows()
        if rows is not None and rows is bias_rows:
            grad_weight, grad_bias = parameters(rows, [False, True, True])
        else:
            if rows is not None:
                (grad_weight,) = parameters(rows, [False, True, False])
            if bias_rows is not None:
                (grad_bias,) = parameters(bias_rows, [False, False, True])
        return None, grad_x, grad_weight, grad_bias


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
        call.options.update(eps=module.eps, groups=module.num_groups)
        return GroupNormRows.apply(call, x, weight, bias)  # type: ignore[no-any-return, no-untyped-call]
