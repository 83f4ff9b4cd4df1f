"""The norms of a convolution's weight gradients, example by example, without the gradients.

The squared norm is a sum over pairs of places s, t of the output of (g_s . g_t)(p_s . p_t), where g is the
output's gradient and p_s the patch of the input that s sees (Bu et al. 2022, arXiv:2205.10683). The products
of patches need no patches: at a stride of 1 they are sums, over the places d of the kernel, of products
between places of the padded input,

    p_s . p_t = sum over d of  x_{s+d} . x_{t+d}

and where the places of the output are numbered as those of the padded input are, line after line, all that
s + d takes is to begin d places later.
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
    (lines, places), (pad_v, pad_h) = x.shape[2:], options["padding"]
    seen = (lines + 2 * pad_v) * (places + 2 * pad_h)
    numbered = grad.shape[2] * (places + 2 * pad_h)
    channels = seen**2 * x.shape[1] + numbered**2 * grad.shape[1]
    return float(channels + _ADDITION * numbered**2 * weight.shape[2:].numel())


def norms(grad: Tensor, x: Tensor, weight: Tensor, options: Mapping[str, Any]) -> FloatArray:
    """Return the L2 norm of the weight's gradient for each example, float64 [N]; never understated."""
    (high, across), (pad_v, pad_h) = options["dilation"], options["padding"]
    x = functional.pad(wide(x), (pad_h, pad_h, pad_v, pad_v))
    width, lines, places = x.shape[3], *grad.shape[2:]
    numbered = (lines - 1) * width + places
    own = functional.pad(wide(grad), (0, width - places)).flatten(2)[:, :, :numbered]
    seen = x.flatten(2)
    seen = torch.bmm(seen.transpose(1, 2), seen)
    patches = grad.new_zeros((len(x), numbered, numbered), dtype=seen.dtype)
    for line in range(weight.shape[2]):
        for place in range(weight.shape[3]):
            first = line * high * width + place * across
            patches += seen[:, first : first + numbered, first : first + numbered]
    return norms_from_products(torch.bmm(own.transpose(1, 2), own), patches)
