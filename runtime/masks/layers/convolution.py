"""`nn.Conv1d` to `Conv3d` and `nn.ConvTranspose1d` to `3d`: groups, dilation, stride, every padding mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from gradwarden.runtime.masks.call import (
    Call,
    at_its_precision,
    autocast_dtype,
    differentiable_once,
    scaled,
    shape_only,
)
from gradwarden.runtime.masks.layers.operation import stock_forward
from gradwarden.runtime.masks.layers.row_convolution import convolution_gradients, gradients_by_unit
from gradwarden.runtime.masks.layout import Layout
from gradwarden.runtime.masks.rows import Rows
from gradwarden.runtime.masks.unitwise import Owners, Stacked, Unitwise


class ConvolutionRows(Function):
    """x [N, C, *], weight [out, C/groups, *kernel], bias [out] -> [N, out, *].

    Where transposed, the weight is [C, out/groups, *kernel].
    """

    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.call, ctx.dtypes = call, (x.dtype, weight.dtype, None if bias is None else bias.dtype)
        dtype = autocast_dtype(x)
        if dtype is not None:
            x, weight = x.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        ctx.save_for_backward(x, weight)
        with at_its_precision(x, dtype):
            return torch.convolution(x, weight, bias, **call.options)  # type: ignore[arg-type]

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        call, (x, weight) = ctx.call, ctx.saved_tensors
        grad_x = None
        if ctx.needs_input_grad[1]:
            grad_x = call.input_gradient(
                grad,
                x.shape,
                lambda pick: convolution_gradients(
                    pick(grad), pick(x), weight, call.options, [True, False, False]
                )[0],
            ).to(ctx.dtypes[0])
        return None, grad_x, *call.gradients(_Parameters(call, x, weight, grad, ctx.dtypes[1:]))


@dataclass(slots=True, eq=False)
class _Parameters:
    call: Call
    x: Tensor
    weight: Tensor
    grad: Tensor
    dtypes: Sequence[torch.dtype]

    def summed(self, rows: Rows | None, bias_rows: Rows | None) -> tuple[Tensor | None, Tensor | None]:
        layout = self.call.layout
        grad_weight = grad_bias = None
        if rows is not None:
            grad_weight = _weight_gradient(self.call, rows, self.grad, self.x, shape_only(self.weight))
            grad_weight = grad_weight.to(self.dtypes[0])
        if bias_rows is not None:
            weighed = bias_rows.weigh(bias_rows.pick(self.grad, layout), layout)
            grad_bias = scaled(weighed.transpose(0, 1).flatten(1).sum(1), bias_rows).to(self.dtypes[1])
        return grad_weight, grad_bias

    def unitwise(
        self, rows: Rows, owners: Owners | None, bias_owners: Owners | None
    ) -> tuple[Unitwise | None, Unitwise | None]:
        grad = rows.pick(self.grad, self.call.layout)
        bias = None if bias_owners is None else Stacked(grad.flatten(2).sum(2), bias_owners)
        if owners is None:
            return None, bias
        x = rows.pick(self.x, self.call.layout)
        return gradients_by_unit(grad, x, shape_only(self.weight), self.call.options, owners), bias


def _weight_gradient(call: Call, rows: Rows, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    grad, x = rows.pick(grad, call.layout), rows.pick(x, call.layout)
    if x.numel() < grad.numel():
        x = rows.weigh(x, call.layout)
    else:
        grad = rows.weigh(grad, call.layout)
    return scaled(convolution_gradients(grad, x, weight, call.options, [False, True, False])[1], rows)


class Convolution:
    """Weighted convolutions."""

    adds_rank: ClassVar[int] = 0
    function: ClassVar[type[Function]] = ConvolutionRows

    @staticmethod
    def covers(module: nn.Module) -> bool:
        """Return whether this is the stock layer."""
        return stock_forward(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))

    @staticmethod
    def accepts(module: _ConvNd, layout: Layout) -> bool:
        """Return whether the input has a batch dimension and the batch is in it."""
        return layout.dim == 0 and layout.rank == len(module.kernel_size) + 2

    @staticmethod
    def run(module: _ConvNd, call: Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the convolution of x; padding other than plain zeros is added by a stock operation."""
        padding = module.padding
        if module.padding_mode != "zeros" or padding == "same":
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            x = functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)
            padding = (0,) * len(module.kernel_size)
        elif isinstance(padding, str):
            padding = (0,) * len(module.kernel_size)
        return _apply(module, call, x, weight, bias, padding)


class TransposedConvolution:
    """Weighted transposed convolutions, without a requested output size."""

    adds_rank: ClassVar[int] = 0
    function: ClassVar[type[Function]] = ConvolutionRows

    @staticmethod
    def covers(module: nn.Module) -> bool:
        """Return whether this is the stock layer."""
        return stock_forward(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))

    @staticmethod
    def accepts(module: _ConvNd, layout: Layout) -> bool:
        """Return whether the input has a batch dimension and the batch is in it."""
        return Convolution.accepts(module, layout)

    @staticmethod
    def run(module: _ConvNd, call: Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the transposed convolution of x."""
        return _apply(module, call, x, weight, bias, module.padding)


def _apply(
    module: _ConvNd, call: Call, x: Tensor, weight: Tensor, bias: Tensor | None, padding: object
) -> Tensor:
    call.options = {
        "stride": module.stride,
        "padding": padding,
        "dilation": module.dilation,
        "transposed": module.transposed,
        "output_padding": module.output_padding,
        "groups": module.groups,
    }
    return ConvolutionRows.apply(call, x, weight, bias)  # type: ignore[no-any-return, no-untyped-call]
