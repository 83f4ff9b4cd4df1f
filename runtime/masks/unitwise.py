"""The gradients of a layer's parameter unit by unit: their norms, and their sum with a factor for each unit.

A unit is some of the rows of a batch; its gradient is the weighted sum of its rows' gradients. Small
gradients are formed row by row (`Stacked`); those of a table, for the entries that occur (`Looked`); large
ones, those of a few units at a time (`few`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from gradwarden.policy.context import FloatArray, IntArray
from gradwarden.runtime.masks.layout import Layout
from gradwarden.runtime.masks.rows import Rows
from gradwarden.runtime.native.kernels import GIVE_WAY, Members, add_places, usable

Numbers: TypeAlias = slice | list[int]
"""Of rows or units: a slice where they lie one after the other."""

LINE = 1024
"""Elements of a gradient whose squares are added up at its own precision."""
_KEPT = 1 << 18
"""Up to how many elements gradients have, of all rows together, that are kept from the norm to the sum."""
_LONG = 1 << 12
"""Up to how many, where lines of that length are not to be had. Of 50 257 equal ones, what is lost shows."""


@dataclass(frozen=True, eq=False)
class Owners:
    """Whose the picked rows of a batch are.

    units: the number of each row's unit, int64 [rows] on the CPU. weights: float64 [rows] on the CPU. count:
    of units, those included that have no row here.
    """

    units: Tensor
    weights: Tensor
    count: int

    @cached_property
    def single(self) -> bool:
        """Whether no unit has two rows."""
        return len(set(self.units.tolist())) == len(self.units)

    @cached_property
    def even(self) -> bool:
        """Whether every row has weight 1."""
        return bool((self._weights == 1.0).all())

    @cached_property
    def listed(self) -> tuple[IntArray, Members]:
        """The units that have rows, by number, and their rows as kernels take them."""
        counts = [len(rows) for _, rows, _ in self.members]
        rows = [row for _, own, _ in self.members for row in own]
        weights = [weight for _, _, own in self.members for weight in own]
        members = Members(
            np.cumsum([0, *counts], dtype=np.int64), np.array(rows, dtype=np.int64), np.array(weights)
        )
        return np.array([unit for unit, _, _ in self.members], dtype=np.int64), members

    def of_all(self, found: FloatArray) -> FloatArray:
        """Return numbers of the units that have rows as those of all units; 0 for the others."""
        numbers = np.zeros(self.count)
        numbers[self.listed[0]] = found
        return numbers

    @cached_property
    def members(self) -> tuple[tuple[int, list[int], list[float]], ...]:
        """The units that have rows, with their rows and these rows' weights."""
        found: dict[int, tuple[list[int], list[float]]] = {}
        for row, (unit, weight) in enumerate(zip(self.units.tolist(), self.weights.tolist(), strict=True)):
            rows, weights = found.setdefault(unit, ([], []))
            rows.append(row)
            weights.append(weight)
        return tuple((unit, rows, weights) for unit, (rows, weights) in found.items())

    def portions(self, most: int) -> Sequence[Portion]:
        """Return the units in portions of at most so many, where none has two rows."""
        if most not in self._portions:
            starts = range(0, len(self.members), most)
            self._portions[most] = [_portion(self.members[start : start + most]) for start in starts]
        return self._portions[most]

    @cached_property
    def _portions(self) -> dict[int, list[Portion]]:
        return {}

    @cached_property
    def _weights(self) -> FloatArray:
        return self.weights.numpy()

    def per_unit(self, norms: FloatArray) -> FloatArray:
        """Return the squared norm of each unit's gradient, where no unit has two rows. norms: of the rows."""
        found = np.zeros(self.count)
        found[self.units.numpy()] = np.square(norms * self._weights)
        return found

    def scales(self, factors: FloatArray) -> FloatArray:
        """Return each row's weight times its unit's factor."""
        scales: FloatArray = factors[self.units.numpy()] * self._weights
        return scales

    def per_row(self, factors: FloatArray, like: Tensor) -> Tensor:
        """Return each row's scale, on the device and at the precision of `like`."""
        return torch.from_numpy(self.scales(factors)).to(device=like.device, dtype=like.dtype)


@dataclass(frozen=True, slots=True)
class Portion:
    """Some units of one row each. rows, stretch: their rows. weights: of these."""

    units: Numbers
    rows: list[int]
    stretch: Numbers
    weights: Sequence[float]


def _portion(members: Sequence[tuple[int, list[int], list[float]]]) -> Portion:
    units = [unit for unit, _, _ in members]
    rows = [row for _, (row,), _ in members]
    weights = [weight for _, _, (weight,) in members]
    return Portion(stretch(units), rows, stretch(rows), weights)


class Unitwise(Protocol):
    """The gradients of one parameter by unit. Squares, factors and bounds are float64 [units].

    begun: whether a sum holds something that is to be added to; if not, what it holds is overwritten.
    """

    def squares(self) -> FloatArray:
        """Return the squared L2 norm of each unit's gradient."""

    def add(self, total: Tensor, factors: FloatArray, begun: bool) -> None:
        """Add the units' gradients, each times its factor, to a sum of the parameter's shape."""

    def clip(self, total: Tensor, others: FloatArray, bounds: FloatArray, begun: bool) -> FloatArray:
        """Add the units' gradients, clipped to their bounds, and return the factors.

        others: the squared norms of what is clipped jointly with them.
        """


def clip_factor(square: float, bound: float, eps: float) -> float:
    """Return what a gradient of this squared norm is multiplied by; 0 where it is not finite.

    eps: of the sum's precision. Gradients stay below their bound by some units of it, so that rounding, of
    the norm or of the product, does not carry them past it.
    """
    norm = math.sqrt(square) if square >= 0.0 else math.nan
    if norm == 0.0 or norm - norm != 0.0:
        return 0.0
    bound *= 1.0 - GIVE_WAY * eps
    return 1.0 if norm <= bound else bound / norm


def clip_factors(squares: FloatArray, bounds: FloatArray, eps: float) -> FloatArray:
    """Return the factor of each gradient: see `clip_factor`."""
    found = map(clip_factor, squares.tolist(), bounds.tolist(), [eps] * len(squares))
    return np.fromiter(found, np.float64, len(squares))


def squared_norm(gradient: Tensor) -> float:
    """Return the squared L2 norm; NaN or infinite where an element is.

    Accumulated in the gradient's precision, at least float32, along short lines of it only, else in float64.
    """
    if gradient.is_sparse:
        gradient = gradient.coalesce().values()
    if gradient.dim() > 1:
        whole = gradient.numel() % LINE == 0 and gradient.is_contiguous()
        gradient = line_norms(gradient.view(-1, LINE) if whole else gradient.flatten(1))
    wide = gradient.double()
    return float(torch.dot(wide, wide))


def line_norms(lines: Tensor) -> Tensor:
    """Return the L2 norms over the last dimension: float32 of what is narrower, float64 of long lines."""
    narrow = torch.finfo(lines.dtype).bits < 32
    dtype = torch.float64 if lines.shape[-1] > _LONG else torch.float32 if narrow else None
    return torch.linalg.vector_norm(lines, dim=-1, dtype=dtype)  # type: ignore[no-any-return]


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor at a precision in which sums of its elements can be taken: float32 at least."""
    return tensor if torch.finfo(tensor.dtype).bits >= 32 else tensor.float()


def rows_first(tensor: Tensor, rows: Rows, layout: Layout, rank: int) -> Tensor:
    """Return the chosen rows of a tensor as [rows, T, *last `rank` dimensions]; a view where it can be."""
    if layout.dim == 0 and not layout.interleaved:
        picked = rows.pick(tensor, layout)
    else:
        opened = layout.by_example(tensor, rows.batch)
        picked = rows.pick(opened, Layout(0, opened.dim()))
    return picked.reshape(rows.count, -1, *picked.shape[picked.dim() - rank :])


def over_places(tensor: Tensor) -> Tensor:
    """Return the sums of [rows, T, n] over T, [rows, n], float32 at least.

    On a CPU a kernel or else a product with ones takes a third of the time that the reduction does.
    """
    if usable(tensor):
        return add_places(tensor)
    if tensor.device.type != "cpu" or torch.finfo(tensor.dtype).bits < 32:
        return tensor.sum(1, dtype=torch.promote_types(tensor.dtype, torch.float32))
    rows, places, _ = tensor.shape
    return torch.bmm(tensor.new_ones((1, 1, 1)).expand(rows, 1, places), tensor).squeeze(1)


class Stacked:
    """Gradients formed row by row, [rows, *shape]."""

    def __init__(self, rows: Tensor, owners: Owners, *, places: bool = False) -> None:
        """places: whether rows are [rows, T, n] and a gradient is their sum over T, formed if asked for."""
        self._rows, self.owners, self._places = rows, owners, places

    @property
    def rows(self) -> Tensor:
        """The gradients."""
        if self._places:
            self._rows, self._places = over_places(self._rows), False
        return self._rows

    @property
    def elements(self) -> int:
        """How many there are in all rows."""
        each = self._rows.shape[2:] if self._places else self._rows.shape[1:]
        return len(self._rows) * each.numel()

    def sums(self, rows: Tensor, owners: Owners) -> bool:
        """Return whether the gradients are the sums of these rows over places, not yet formed."""
        return self._places and self._rows is rows and self.owners is owners

    def squares(self) -> FloatArray:
        """See `Unitwise`."""
        owners, rows = self.owners, self.rows
        if owners.single:
            return owners.per_unit(_norms(rows))
        rows = wide(rows)
        sums = rows.new_zeros((owners.count, *rows.shape[1:]))
        weighed = rows * owners.weights.to(rows).view(-1, *[1] * (rows.dim() - 1))
        return np.square(_norms(sums.index_add_(0, owners.units.to(rows.device), weighed)))

    def add(self, total: Tensor, factors: FloatArray, begun: bool) -> None:
        """See `Unitwise`."""
        scales = self.owners.per_row(factors, total)
        rows = silenced(self.rows, scales, factors).flatten(1).to(total.dtype)
        add_products(total, rows.t(), scales, begun)

    def clip(self, total: Tensor, others: FloatArray, bounds: FloatArray, begun: bool) -> FloatArray:
        """See `Unitwise`."""
        return clip_and_add(self, total, others, bounds, begun)


def is_kept(gradients: Unitwise) -> bool:
    """Return whether gradients are there once they were measured, and small enough to be kept for the sum."""
    return isinstance(gradients, Stacked) and gradients.elements <= _KEPT


class Looked:
    """Gradients of a table's entries: index [rows, T], gradient [rows, T, width]; entries: of the table."""

    def __init__(self, index: Tensor, gradient: Tensor, entries: int, owners: Owners) -> None:
        keys = index + (owners.units.to(index.device) * entries)[:, None]
        found, places = torch.unique(keys, return_inverse=True)
        gradient = wide(gradient)
        weighed = gradient if owners.even else gradient * owners.weights.to(gradient)[:, None, None]
        sums = gradient.new_zeros((len(found), gradient.shape[-1]))
        self._sums = sums.index_add_(0, places.flatten(), weighed.flatten(0, 1))
        self._units, self._entries, self._count = (
            (found // entries).cpu().numpy(),
            found % entries,
            owners.count,
        )

    def squares(self) -> FloatArray:
        """See `Unitwise`."""
        found = np.zeros(self._count)
        np.add.at(found, self._units, line_norms(self._sums).double().square().cpu().numpy())
        return found

    def add(self, total: Tensor, factors: FloatArray, begun: bool) -> None:
        """See `Unitwise`."""
        if not begun:
            total.zero_()
        each = torch.from_numpy(factors[self._units]).to(self._sums)
        weighed = silenced(self._sums, each, factors) * each[:, None]
        total.index_add_(0, self._entries, weighed.to(total.dtype))

    def clip(self, total: Tensor, others: FloatArray, bounds: FloatArray, begun: bool) -> FloatArray:
        """See `Unitwise`."""
        return clip_and_add(self, total, others, bounds, begun)


def stretch(numbers: list[int]) -> Numbers:
    """Return numbers as a slice, of which no copy is made, where they come one after the other."""
    first, count = numbers[0], len(numbers)
    return slice(first, first + count) if numbers == list(range(first, first + count)) else numbers


def clip_and_add(
    gradients: Unitwise, total: Tensor, others: FloatArray, bounds: FloatArray, begun: bool
) -> FloatArray:
    """Add units' gradients, clipped, by their norms: see `Unitwise.clip`."""
    factors = clip_factors(gradients.squares() + others, bounds, torch.finfo(total.dtype).eps)
    gradients.add(total, factors, begun)
    return factors


def add_products(total: Tensor, matrix: Tensor, vector: Tensor, begun: bool) -> None:
    """Add the product of a matrix and a vector, both at the sum's precision, to a sum of any shape."""
    if total.is_contiguous():
        total.view(-1).addmv_(matrix, vector, beta=int(begun))
    else:
        put(total, (matrix @ vector).view(total.shape), begun)


def put(total: Tensor, part: Tensor, begun: bool) -> None:
    """Add a part to a sum, or begin it by that."""
    if begun:
        total += part
    else:
        total.copy_(part)


def _norms(rows: Tensor) -> FloatArray:
    """Return the L2 norm of each row; accumulated as in `squared_norm`."""
    if rows.dim() > 2:
        rows = line_norms(rows.flatten(2))
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return norms.cpu().numpy()


def silenced(rows: Tensor, scales: Tensor, factors: FloatArray) -> Tensor:
    """Return rows with zeros for those of scale 0, whose values may not be finite. factors: of all units."""
    if factors.all():
        return rows
    return rows.masked_fill((scales == 0.0).view(-1, *[1] * (rows.dim() - 1)), 0.0)
