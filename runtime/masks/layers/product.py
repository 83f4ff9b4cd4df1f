"""What layers that multiply by their weight, over the last dimension, have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradwarden.runtime.masks.few import products
from gradwarden.runtime.masks.layout import Layout
from gradwarden.runtime.masks.rows import Rows
from gradwarden.runtime.masks.unitwise import Owners, Stacked, Unitwise, rows_first

_SHORTEST = 64
"""As many rows are multiplied sooner where they lie than they are gathered, added to a sum or not."""

_WIDE = (torch.float32, torch.float64)


@dataclass(slots=True, eq=False)
class ProductParameters:
    """The gradients of one call, from x [..., in] and the output's gradient [..., out].

    dtypes: of weight and bias. transposed: whether the weight is [in, out], not [out, in].
    """

    layout: Layout
    x: Tensor
    grad: Tensor
    dtypes: Sequence[torch.dtype]
    transposed: ClassVar[bool]

    def unitwise(
        self, rows: Rows, owners: Owners | None, bias_owners: Owners | None
    ) -> tuple[Unitwise | None, Unitwise | None]:
        """See `Parameters`."""
        grad = rows_first(self.grad, rows, self.layout, 1)
        bias = None if bias_owners is None else Stacked(grad, bias_owners, places=True)
        if owners is None:
            return None, bias
        x = rows_first(self.x, rows, self.layout, 1)
        return products(x, grad, owners) if self.transposed else products(grad, x, owners), bias


def stretches(rows: Rows, layout: Layout, *tensors: Tensor) -> Sequence[Sequence[Tensor]] | None:
    """Return the chosen rows of tensors [batch, ..., features], a matrix for each stretch of examples.

    None where it is better to gather them: on accelerators, where rows lie otherwise or have weights, where
    stretches are short, and in half precisions, which a sum of several products would round too often.
    """
    if tensors[0].device.type != "cpu" or rows.weights is not None or not rows.count:
        return None
    if layout.dim or layout.interleaved:
        return None
    shortest = rows.batch * _SHORTEST * len(rows.stretches)
    for tensor in tensors:
        if tensor.dtype not in _WIDE or not tensor.is_contiguous():
            return None
        if tensor.shape[:-1].numel() * rows.count < shortest:
            return None
    return [_stretches(rows, matrix(tensor)) for tensor in tensors]


def _stretches(rows: Rows, tensor: Tensor) -> Sequence[Tensor]:
    each = len(tensor) // rows.batch
    return [tensor[first * each : end * each] for first, end in rows.stretches]


def summed_products(lefts: Sequence[Tensor], rights: Sequence[Tensor]) -> Tensor:
    """Return the sum of left^T right, [a, b], over pairs of matrices [n, a] and [n, b]."""
    total = lefts[0].t() @ rights[0]
    for left, right in zip(lefts[1:], rights[1:], strict=True):
        torch.addmm(total, left.t(), right, out=total)
    return total


def summed_rows(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum over all rows of matrices [n, features]."""
    total = parts[0].sum(0)
    for part in parts[1:]:
        total += part.sum(0)
    return total


def matrix(tensor: Tensor) -> Tensor:
    """Return a tensor [..., features] as [rows, features]."""
    return tensor.reshape(-1, tensor.shape[-1])
