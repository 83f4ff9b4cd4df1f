"""The norms of a convolution's weight gradients, example by example, without the gradients.

The squared norm is a sum over pairs of places s, t of the output of (g_s . g_t)(p_s . p_t), where g is the
output's gradient and p_s the patch of the input that s sees (Bu et al. 2022, arXiv:2205.10683). The products
of patches need no patches: at a stride of 1 they are sums, over the places d of the kernel, of products
between places of the padded input,

    p_s . p_t = sum over d of  x_{s+d} . x_{t+d}

Places of both are numbered line after line, with as many of zeros at the end of each line as the padding is
wide. So one place to the left of a line is one of these as well, and all that s + d takes is to begin some
places later, or earlier.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gradwarden.policy.context import FloatArray
from gradwarden.runtime.masks.few import norms_from_products
from gradwarden.runtime.masks.unitwise import wide

_ADDITION = 10.0
"""What adding two numbers in memory costs, in multiplications of a matrix product."""


def work(grad: Tensor, x: Tensor, weight: Tensor, options: Mapping[str, Any]) -> float:
    """Return what `norms` costs for an example, in multiplications; infinite where it cannot be used.

    grad: [N, out, *]. x: [N, in, *]. weight: [out, in, *kernel]. options: of `torch.convolution`.
    """
    if x.dim() != 4 or options["transposed"] or options["groups"] != 1 or set(options["stride"]) != {1}:
        return float("inf")
    width = _width(grad, x, options)
    seen, numbered = x.shape[2] * width, grad.shape[2] * width
    products = seen**2 * x.shape[1] + numbered**2 * grad.shape[1]
    return float(products + _ADDITION * numbered**2 * weight.shape[2:].numel())


def norms(grad: Tensor, x: Tensor, weight: Tensor, options: Mapping[str, Any]) -> FloatArray:
    """Return the L2 norm of the weight's gradient for each example, float64 [N]; never understated."""
    (high, across), (pad_v, pad_h) = options["dilation"], options["padding"]
    width = _width(grad, x, options)
    seen, own = _products(wide(x), width), _products(wide(grad), width)
    places, count = seen.shape[1], own.shape[1]
    patches = own.new_zeros(own.shape)
    for line in range(weight.shape[2]):
        for place in range(weight.shape[3]):
            later = (line * high - pad_v) * width + place * across - pad_h
            first, end = max(0, -later), min(count, places - later)
            if first < end:
                part = seen[:, first + later : end + later, first + later : end + later]
                patches[:, first:end, first:end] += part
    return norms_from_products(own, patches)


def _width(grad: Tensor, x: Tensor, options: Mapping[str, Any]) -> int:
    """Return how many places a line has, with zeros."""
    return max(x.shape[3] + int(options["padding"][1]), grad.shape[3])


def _products(tensor: Tensor, width: int) -> Tensor:
    """Return the products of places over channels, [N, places, places], of a tensor [N, channels, *]."""
    lines, places = tensor.shape[2:]
    numbered = functional.pad(tensor, (0, width - places)).flatten(2)
    numbered = numbered[:, :, : (lines - 1) * width + places]
    return torch.bmm(numbered.transpose(1, 2), numbered)
