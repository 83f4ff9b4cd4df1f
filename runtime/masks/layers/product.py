"""What layers that multiply by their weight, over the last dimension, have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradwarden.runtime.masks.layout import Layout
from gradwarden.runtime.masks.rows import Rows
from gradwarden.runtime.masks.unitwise import Owners, Stacked, Unitwise, over_places, products, rows_first


@dataclass(frozen=True, slots=True, eq=False)
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
        bias = None if bias_owners is None else Stacked(over_places(grad), bias_owners)
        if owners is None:
            return None, bias
        x = rows_first(self.x, rows, self.layout, 1)
        return products(x, grad, owners) if self.transposed else products(grad, x, owners), bias


def matrix(tensor: Tensor) -> Tensor:
    """Return a tensor [..., features] as [rows, features]."""
    return tensor.reshape(-1, tensor.shape[-1])
