"""The gradient of a convolution's weight for each example by itself.

Two ways, both for all examples at once. Channels of all examples beside each other are one convolution with
as many groups (Rochette et al. 2019, arXiv:1912.06015). And the gradient is a product of the output gradient
with patches of the input, one product for each example. Grouped kernels are slow for many channels, patches
cost memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_MANY_CHANNELS = 64
"""Above this, patches are faster on CPUs: measured with torch 2.13 for kernels of 3 x 3."""


def convolution_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, options: Mapping[str, object], wanted: list[bool]
) -> Any:
    """Return the gradients of input, weight and bias, as far as wanted. options: of `torch.convolution`."""
    return torch.ops.aten.convolution_backward(
        grad,
        x,
        weight,
        None,
        options["stride"],
        options["padding"],
        options["dilation"],
        options["transposed"],
        options["output_padding"],
        options["groups"],
        wanted,
    )


def row_gradients(grad: Tensor, x: Tensor, weight: Tensor, options: Mapping[str, object]) -> Tensor:
    """Return each example's gradient of the weight, [N, *weight.shape].

    grad: [N, out, *]. x: [N, in, *]. options: of `torch.convolution`.
    """
    plain = options["groups"] == 1 and not options["transposed"] and x.dim() == 4
    if plain and max(weight.shape[:2]) > _MANY_CHANNELS:
        return _by_patches(grad, x, weight, options)
    return _by_groups(grad, x, weight, options)


def _by_groups(grad: Tensor, x: Tensor, weight: Tensor, options: Mapping[str, object]) -> Tensor:
    rows, groups = len(x), options["groups"]
    assert isinstance(groups, int)
    side_by_side = {**options, "groups": rows * groups}
    found = convolution_gradients(
        grad.reshape(1, -1, *grad.shape[2:]),
        x.reshape(1, -1, *x.shape[2:]),
        weight.repeat(rows, *[1] * (weight.dim() - 1)),
        side_by_side,
        [False, True, False],
    )[1]
    return found.view(rows, *weight.shape)  # type: ignore[no-any-return]


def _by_patches(grad: Tensor, x: Tensor, weight: Tensor, options: Mapping[str, Any]) -> Tensor:
    """Return the same for two-dimensional convolutions without groups."""
    (down, right), (high, wide), (pad_v, pad_h) = options["stride"], options["dilation"], options["padding"]
    padded = functional.pad(x, (pad_h, pad_h, pad_v, pad_v)).permute(0, 2, 3, 1).contiguous()
    rows, _, _, channels = padded.shape
    to_row, to_line, to_place, _ = padded.stride()
    (lines, places), (kernel_v, kernel_h) = grad.shape[2:], weight.shape[2:]
    patches = padded.as_strided(
        (rows, lines, places, kernel_v, kernel_h, channels),
        (to_row, to_line * down, to_place * right, to_line * high, to_place * wide, 1),
    ).reshape(rows, lines * places, -1)
    found = torch.bmm(grad.flatten(2), patches)
    return found.view(rows, -1, kernel_v, kernel_h, channels).permute(0, 1, 4, 2, 3)
