"""Products of float32 matrices at the precision of float32, whatever the process has asked for.

`torch.set_float32_matmul_precision`, and the settings of single backends, let kernels round the factors of a
product to TensorFloat-32 or bfloat16. A gradient that is formed twice, once to be measured or compared and
once in a sum with others, then differs from itself by 2^-11 or 2^-8 of the products that add up to it. Where
these cancel, that is more than the gradient, and no bound on the norm holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_EXACT = ("ieee", "none")


@contextmanager
def full_precision() -> Iterator[None]:
    """Inside, products and convolutions of float32 tensors round nothing but sums.

    The settings are those of the process: other threads that multiply meanwhile are as precise.
    """
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        with _full_precision_before_2_9():
            yield
        return
    lowered = [(part, part.fp32_precision) for part in _parts() if part.fp32_precision not in _EXACT]
    for part, _ in lowered:
        part.fp32_precision = "ieee"
    try:
        yield
    finally:
        for part, before in lowered:
            part.fp32_precision = "none"  # as it is by itself, or by what holds for all parts
            if part.fp32_precision != before:
                part.fp32_precision = before


@contextmanager
def _full_precision_before_2_9() -> Iterator[None]:
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    if products != "highest":
        torch.set_float32_matmul_precision("highest")
    if convolutions:
        torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        if products != "highest":
            torch.set_float32_matmul_precision(products)
        if convolutions:
            torch.backends.cudnn.allow_tf32 = True


def _parts() -> tuple[Any, ...]:
    """Return what a precision can be set for, of all that forms gradients."""
    backends: Any = torch.backends
    return backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv
