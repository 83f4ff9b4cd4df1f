"""Gradients of units that are formed a few at a time, in memory that the next few use again.

Each is measured and added to the sum while it is in the cache. A few rather than one, because that takes as
many operations for all of them as for one, every thread works on a gradient of its own, and the sum is read
and written once for all. Where gradients are matrix products, only norms are wanted and that is cheaper, none
is formed at all (`Products`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from gradwarden.policy.context import FloatArray
from gradwarden.runtime.masks.unitwise import (
    LINE,
    Numbers,
    Owners,
    Stacked,
    Unitwise,
    add_products,
    clip_and_add,
    clip_factors,
    line_norms,
    put,
    silenced,
    wide,
)
from gradwarden.runtime.native.kernels import (
    MARGIN,
    Clipping,
    Sum,
    clip_products,
    square_by_pairs,
    square_products,
    usable,
)

_EVEN = 4
"""The gradients of a multiple of so many units are formed at once: cores share them evenly."""
_AT_ONCE = 5 << 19
"""Elements of gradients that are formed at once: 10 MB at single precision."""
_SMALL, _TOGETHER = 1 << 14, 1 << 20
"""Up to how many elements a gradient has, and those of all rows together, that are formed row by row."""


class Few(ABC):
    """Gradients of which those of a few units are formed at a time."""

    def __init__(self, owners: Owners) -> None:
        self._owners = owners

    @abstractmethod
    def _each(self) -> Iterator[tuple[Numbers, Tensor]]:
        """Yield the numbers of some units and their gradients; the next ones overwrite these.

        Every unit that has rows comes once. Gradients are [pieces, units, lines, width]: those of a parameter
        in pieces, one after the other.
        """

    def squares(self) -> FloatArray:
        """See `Unitwise`."""
        found = np.zeros(self._owners.count)
        for units, gradients in self._each():
            found[units] = _squares(gradients)
        return found

    def add(self, total: Tensor, factors: FloatArray, begun: bool) -> None:
        """See `Unitwise`."""
        for units, gradients in self._each():
            _add(total, gradients, factors[units], begun)
            begun = True
        if not begun:
            total.zero_()

    def clip(self, total: Tensor, others: FloatArray, bounds: FloatArray, begun: bool) -> FloatArray:
        """See `Unitwise`. On a CPU every gradient is formed once, and added while it is in the cache."""
        if total.device.type != "cpu":
            return clip_and_add(self, total, others, bounds, begun)
        eps = torch.finfo(total.dtype).eps
        factors = clip_factors(others, bounds, eps)
        for units, gradients in self._each():
            own = clip_factors(others[units] + _squares(gradients), bounds[units], eps)
            _add(total, gradients, own, begun)
            factors[units], begun = own, True
        if not begun:
            total.zero_()
        return factors


class Products(Few):
    """Gradients left^T right, of left [rows, T, m] and right [rows, T, n]."""

    def __init__(self, left: Tensor, right: Tensor, owners: Owners) -> None:
        super().__init__(owners)
        self._left, self._right = left, right

    def squares(self) -> FloatArray:
        """See `Unitwise`. Without the gradients, from products between places, where these are fewer."""
        tokens, sizes = self._left.shape[1], (self._left.shape[2], self._right.shape[2])
        native = usable(self._left, self._right)
        # Kernels form half of the products between places, which are the same both ways.
        if self._owners.single and tokens * sum(sizes) < math.prod(sizes) * (1 + native):
            return self._from_places()
        if native:
            members = self._owners.listed[1]
            return self._owners.of_all(square_products(self._left, self._right, members))
        return super().squares()

    def _from_places(self) -> FloatArray:
        """Return squared norms as sums over pairs of places s, t of (l_s . l_t)(r_s . r_t).

        Goodfellow 2015 (arXiv:1510.01799); for sequences Li et al. 2022 (arXiv:2110.05679).
        """
        left, right = self._left, self._right
        if usable(left, right):
            return self._owners.per_unit(np.sqrt(square_by_pairs(left, right)))
        found = norms_from_products(
            torch.bmm(left, left.transpose(1, 2)), torch.bmm(right, right.transpose(1, 2))
        )
        return self._owners.per_unit(found)

    def clips(self, bias: Unitwise, *totals: Tensor) -> bool:
        """Return whether `clip_both` can be used: for sums of the left factors over places."""
        return (
            isinstance(bias, Stacked)
            and bias.sums(self._left, self._owners)
            and usable(self._left, self._right, *totals)
            and all(total.is_contiguous() for total in totals)
        )

    def clip_both(self, total: Sum, bias: Sum, bounds: FloatArray) -> None:
        """Add the gradients and the sums of the left factors over places, clipped jointly."""
        self._clip(total, np.zeros(len(bounds)), bounds, bias)

    def clip(self, total: Tensor, others: FloatArray, bounds: FloatArray, begun: bool) -> FloatArray:
        """See `Unitwise`."""
        if total.is_contiguous() and usable(self._left, self._right, total):
            return self._clip(Sum(total, begun), others, bounds)
        return super().clip(total, others, bounds, begun)

    def _clip(
        self, total: Sum, others: FloatArray, bounds: FloatArray, bias: Sum | None = None
    ) -> FloatArray:
        numbers, members = self._owners.listed
        clipping = Clipping(others[numbers], bounds[numbers], total, bias)
        return self._owners.of_all(clip_products(self._left, self._right, members, clipping))

    def add(self, total: Tensor, factors: FloatArray, begun: bool) -> None:
        """See `Unitwise`."""
        left, right = self._left, self._right
        scales = self._owners.per_row(factors, left)
        left, right = silenced(left, scales, factors), silenced(right, scales, factors)
        if right.shape[-1] < left.shape[-1]:
            right = right * scales[:, None, None]
        else:
            left = left * scales[:, None, None]
        put(total, left.flatten(0, 1).t() @ right.flatten(0, 1), begun)

    def _each(self) -> Iterator[tuple[Numbers, Tensor]]:
        left, right, owners = self._left, self._right, self._owners
        sizes = left.shape[2], right.shape[2]
        if not owners.single:
            memory = left.new_empty((1, *sizes))
            for unit, rows, weights in owners.members:
                own = weighed(left[rows], weights).flatten(0, 1)
                torch.mm(own.t(), right[rows].flatten(0, 1), out=memory[0])
                yield [unit], memory[None]
            return
        transposed = left.transpose(1, 2)
        memory = left.new_empty((at_once(math.prod(sizes), len(left)), *sizes))
        for portion in owners.portions(len(memory)):
            found = memory[: len(portion.rows)]
            torch.bmm(transposed[portion.stretch], right[portion.stretch], out=found)
            yield portion.units, weighed(found, portion.weights)[None]


def products(left: Tensor, right: Tensor, owners: Owners) -> Unitwise:
    """Return the gradients left^T right by unit, of left [rows, T, m] and right [rows, T, n].

    Half precisions are widened: rounded to them, a gradient has another norm than was measured.
    """
    left, right = wide(left), wide(right)
    size = left.shape[2] * right.shape[2]
    if size <= _SMALL and size * len(left) <= _TOGETHER:
        return Stacked(torch.bmm(left.transpose(1, 2), right), owners)
    return Products(left, right, owners)


def norms_from_products(left: Tensor, right: Tensor) -> FloatArray:
    """Return the roots of the sums of left * right, float64 [rows].

    left, right: [rows, places, places], of products between the places of a row, at the precision of their
    factors (`full_precision`); left is used up. The terms may cancel, so what rounding takes away is added:
    with S the product of the traces, an error of e in each inner product, relative to the norms of its
    factors, takes at most 2e S. Of equal features of one sign, whose sums are rounded to one side throughout,
    products of 64 to 4096 features took up to 21 eps S where two places cancelled, 15 where four did and 4
    where 32 did; of random ones less than 1. (Of one place alone, 65; there nothing cancels, and the bound is
    kept by the distance that `clip_factor` leaves.) Where T places do not cancel, 32 eps S overstate a norm
    by 16 eps T of it.
    """
    bound = MARGIN * torch.finfo(left.dtype).eps * _traces(left) * _traces(right)
    found = left.mul_(right).flatten(1).sum(1, dtype=torch.float64) + bound
    return found.clamp(min=0.0).sqrt().cpu().numpy()


def at_once(size: int, rows: int) -> int:
    """Return of how many rows, of so many, to form the gradients at once; they have `size` elements each."""
    found = max(1, _AT_ONCE // max(size, 1))
    return min(found if found < _EVEN else found - found % _EVEN, max(rows, 1))


def weighed(tensor: Tensor, weights: Sequence[float]) -> Tensor:
    """Return a tensor of one's own, [..., rows, m, n], with each row multiplied by its weight, in place."""
    if all(weight == 1.0 for weight in weights):
        return tensor
    return tensor.mul_(tensor.new_tensor(weights)[:, None, None])


def _squares(gradients: Tensor) -> FloatArray:
    """Return the squared L2 norms of units' gradients [pieces, units, lines, width]: see `squared_norm`."""
    pieces, units, lines, width = gradients.shape
    if lines * width % LINE == 0:
        gradients = gradients.view(pieces, units, -1, LINE)
    norms: Tensor = torch.linalg.vector_norm(line_norms(gradients), dim=(0, 2), dtype=torch.float64)
    squares: FloatArray = np.square(norms.cpu().numpy())
    return squares


def _add(total: Tensor, gradients: Tensor, factors: FloatArray, begun: bool) -> None:
    """Add units' gradients [pieces, units, lines, width], each times its factor, to a sum.

    What has the factor 0 is not looked at: it may not be finite.
    """
    pieces, units = gradients.shape[:2]
    if units > 1 and factors.all() and total.is_contiguous() and total.dtype == gradients.dtype:
        scales = torch.from_numpy(factors).to(total)
        if pieces == 1:
            add_products(total, gradients.view(units, -1).t(), scales, begun)
            return
        for own, part in zip(total.view(pieces, -1), gradients.flatten(2), strict=True):
            add_products(own, part.t(), scales, begun)
        return
    if not begun:
        total.zero_()
    for number in np.flatnonzero(factors).tolist():
        total.add_(gradients[:, number].reshape(total.shape), alpha=float(factors[number]))


def _traces(matrices: Tensor) -> Tensor:
    """Return the trace of each matrix, float64."""
    diagonals: Tensor = matrices.diagonal(dim1=1, dim2=2)
    return diagonals.sum(1, dtype=torch.float64)
