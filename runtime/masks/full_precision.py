"""Products of float32 matrices at the precision of float32, whatever the process has asked for.

`torch.set_float32_matmul_precision`, and the settings of single backends, let kernels round the factors of a
product to TensorFloat-32 or bfloat16. A gradient that is formed twice, once to be measured or compared and
once in a sum with others, then differs from itself by 2^-11 or 2^-8 of the products that add up to it. Where
these cancel, that is more than the gradient, and no bound on the norm holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Any

import torch

_EXACT = ("ieee", "none")


class _Inside:
    """Counts who needs full precision: the first to come asks for it, the last to leave undoes that."""

    def __init__(self) -> None:
        self._lock, self._count, self._raised = Lock(), 0, ExitStack()

    def enter(self) -> None:
        with self._lock:
            if not self._count:
                ours = hasattr(torch.backends.cuda.matmul, "fp32_precision")
                self._raised.enter_context(_raised() if ours else _raised_before_2_9())
            self._count += 1

    def leave(self) -> None:
        with self._lock:
            self._count -= 1
            if not self._count:
                self._raised.close()


_inside = _Inside()


@contextmanager
def full_precision() -> Iterator[None]:
    """Inside, products and convolutions of float32 tensors round nothing but sums.

    The settings are those of the process: other threads that multiply meanwhile are as precise. They stay
    until the last thread has left.
    """
    _inside.enter()
    try:
        yield
    finally:
        _inside.leave()


@contextmanager
def _raised() -> Iterator[None]:
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
def _raised_before_2_9() -> Iterator[None]:
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
