"""The gradients of a layer's parameter unit by unit: their norms, and their sum with a factor for each unit.

A unit is some of the rows of a batch; its gradient is the weighted sum of its rows' gradients. Three ways to
come by it: small gradients are formed row by row (`Stacked`); those of a table, for the entries that occur
(`Looked`); large ones, one unit at a time and each in the memory of the one before (`OneByOne`), or, where
they are matrix products, only norms are wanted and that is cheaper, not at all (`Products`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gradwarden.runtime.masks.layout import Layout
from gradwarden.runtime.masks.rows import Rows

_GIVE_WAY = 64.0
"""By how many units of rounding a clipped gradient stays below its bound."""


@dataclass(frozen=True, slots=True, eq=False)
class Owners:
    """Whose the picked rows of a batch are.

    units: the number of each row's unit, int64 [rows] on the CPU. weights: float64 [rows] on the CPU. count:
    of units, those included that have no row here.
    """

    units: Tensor
    weights: Tensor
    count: int

    def single(self) -> bool:
        """Return whether no unit has two rows."""
        return len(set(self.units.tolist())) == len(self.units)

    def per_row(self, factors: Sequence[float], like: Tensor) -> Tensor:
        """Return each row's weight times its unit's factor, on the device and at the precision of `like`."""
        own = torch.tensor(factors, dtype=torch.float64, device="cpu")[self.units]
        return (own * self.weights).to(device=like.device, dtype=like.dtype)

    def members(self) -> Iterator[tuple[int, list[int], list[float]]]:
        """Yield the units that have rows, with their rows and these rows' weights."""
        found: dict[int, tuple[list[int], list[float]]] = {}
        for row, (unit, weight) in enumerate(zip(self.units.tolist(), self.weights.tolist(), strict=True)):
            rows, weights = found.setdefault(unit, ([], []))
            rows.append(row)
            weights.append(weight)
        for unit, (rows, weights) in found.items():
            yield unit, rows, weights


class Unitwise(Protocol):
    """The gradients of one parameter by unit."""

    def squares(self) -> list[float]:
        """Return the squared L2 norm of each unit's gradient."""

    def add(self, total: Tensor, factors: Sequence[float]) -> None:
        """Add the units' gradients, each times its factor, to a sum of the parameter's shape."""

    def clip(self, total: Tensor, others: Sequence[float], bounds: Sequence[float]) -> list[float]:
        """Add the units' gradients, clipped to their bounds, and return the factors.

        others: the squared norms of what is clipped jointly with them.
        """


def clip_factor(square: float, bound: float, eps: float) -> float:
    """Return what a gradient of this squared norm is multiplied by; 0 where it is not finite.

    eps: of the sum's precision. A gradient that is clipped gives way by some units of it, so that rounding
    does not carry it past its bound.
    """
    norm = math.sqrt(square) if square >= 0.0 else math.nan
    if norm == 0.0 or norm - norm != 0.0:
        return 0.0
    return 1.0 if norm <= bound else bound / norm * (1.0 - _GIVE_WAY * eps)


def squared_norm(gradient: Tensor) -> float:
    """Return the squared L2 norm; NaN or infinite where an element is.

    Accumulated in the gradient's precision along its last dimensions only, then in float64.
    """
    if gradient.dim() > 1:
        gradient = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    norm = float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
    return norm * norm


def rows_first(tensor: Tensor, rows: Rows, layout: Layout, rank: int) -> Tensor:
    """Return the chosen rows of a tensor as [rows, T, *last `rank` dimensions]; a view where it can be."""
    opened = layout.by_example(tensor, rows.batch)
    picked = rows.pick(opened, Layout(0, opened.dim()))
    return picked.reshape(rows.count, -1, *picked.shape[picked.dim() - rank :])


class Stacked:
    """Gradients formed row by row, [rows, *shape]."""

    def __init__(self, rows: Tensor, owners: Owners) -> None:
        self._rows, self._owners = rows, owners

    def squares(self) -> list[float]:
        """See `Unitwise`."""
        owners, rows = self._owners, self._rows
        if owners.single():
            found = torch.zeros(owners.count, dtype=torch.float64, device="cpu")
            return found.index_add_(0, owners.units, (_norms(rows) * owners.weights).square()).tolist()
        sums = rows.new_zeros((owners.count, *rows.shape[1:]))
        weighed = rows * owners.weights.to(rows).view(-1, *[1] * (rows.dim() - 1))
        return _norms(sums.index_add_(0, owners.units.to(rows.device), weighed)).square().tolist()

    def add(self, total: Tensor, factors: Sequence[float]) -> None:
        """See `Unitwise`."""
        scales = self._owners.per_row(factors, self._rows)
        total += (scales @ _silenced(self._rows, scales).flatten(1)).view_as(total)

    def clip(self, total: Tensor, others: Sequence[float], bounds: Sequence[float]) -> list[float]:
        """See `Unitwise`."""
        return _clip_and_add(self, total, others, bounds)


class Looked:
    """Gradients of a table's entries: index [rows, T], gradient [rows, T, width]; entries: of the table."""

    def __init__(self, index: Tensor, gradient: Tensor, entries: int, owners: Owners) -> None:
        keys = index + (owners.units.to(index.device) * entries)[:, None]
        found, places = torch.unique(keys, return_inverse=True)
        weighed = gradient * owners.weights.to(gradient)[:, None, None]
        sums = gradient.new_zeros((len(found), gradient.shape[-1]))
        self._sums = sums.index_add_(0, places.flatten(), weighed.flatten(0, 1))
        self._units, self._entries, self._count = found // entries, found % entries, owners.count

    def squares(self) -> list[float]:
        """See `Unitwise`."""
        found = torch.zeros(self._count, dtype=torch.float64, device="cpu")
        return found.index_add_(0, self._units.cpu(), _norms(self._sums).square()).tolist()

    def add(self, total: Tensor, factors: Sequence[float]) -> None:
        """See `Unitwise`."""
        each = torch.tensor(factors, dtype=torch.float64, device="cpu").to(self._sums)[self._units]
        weighed = _silenced(self._sums, each) * each[:, None]
        total.index_add_(0, self._entries, weighed.to(total.dtype))

    def clip(self, total: Tensor, others: Sequence[float], bounds: Sequence[float]) -> list[float]:
        """See `Unitwise`."""
        return _clip_and_add(self, total, others, bounds)


class OneByOne(ABC):
    """Gradients of which one is formed at a time."""

    @abstractmethod
    def _each(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the gradient of each unit that has rows; the next one overwrites it."""

    @property
    @abstractmethod
    def _count(self) -> int:
        """How many units there are."""

    def squares(self) -> list[float]:
        """See `Unitwise`."""
        found = [0.0] * self._count
        for unit, gradient in self._each():
            found[unit] = squared_norm(gradient)
        return found

    def add(self, total: Tensor, factors: Sequence[float]) -> None:
        """See `Unitwise`."""
        for unit, gradient in self._each():
            if factors[unit]:
                total.add_(gradient, alpha=factors[unit])

    def clip(self, total: Tensor, others: Sequence[float], bounds: Sequence[float]) -> list[float]:
        """See `Unitwise`. On a CPU every gradient is formed once, and added while it is in the cache."""
        if total.device.type != "cpu":
            return _clip_and_add(self, total, others, bounds)
        eps = torch.finfo(total.dtype).eps
        factors = [clip_factor(square, bound, eps) for square, bound in zip(others, bounds, strict=True)]
        for unit, gradient in self._each():
            factors[unit] = clip_factor(others[unit] + squared_norm(gradient), bounds[unit], eps)
            if factors[unit]:
                total.add_(gradient, alpha=factors[unit])
        return factors


class Products(OneByOne):
    """Gradients left^T right, of left [rows, T, m] and right [rows, T, n]."""

    def __init__(self, left: Tensor, right: Tensor, owners: Owners) -> None:
        self._left, self._right, self._owners = left, right, owners

    def squares(self) -> list[float]:
        """See `Unitwise`. Without the gradients, from products between places, where these are fewer."""
        tokens, sizes = self._left.shape[1], (self._left.shape[2], self._right.shape[2])
        if self._owners.single() and tokens * sum(sizes) < math.prod(sizes):
            return self._from_places()
        return super().squares()

    def _from_places(self) -> list[float]:
        """Return squared norms as sums over pairs of places s, t of (l_s . l_t)(r_s . r_t).

        Goodfellow 2015 (arXiv:1510.01799); for sequences Li et al. 2022 (arXiv:2110.05679). The terms may
        cancel, so what rounding can take away is added: a norm is never understated.
        """
        left, right = self._left, self._right
        inner = torch.bmm(left, left.transpose(1, 2)), torch.bmm(right, right.transpose(1, 2))
        margin = 4.0 * torch.finfo(left.dtype).eps
        bound = margin * _traces(inner[0]) * _traces(inner[1])
        found = (inner[0] * inner[1]).flatten(1).sum(1, dtype=torch.float64) + bound
        squares = torch.zeros(self._owners.count, dtype=torch.float64, device="cpu")
        weighed = found.clamp(min=0.0).cpu() * self._owners.weights.square()
        return squares.index_add_(0, self._owners.units, weighed).tolist()

    def add(self, total: Tensor, factors: Sequence[float]) -> None:
        """See `Unitwise`."""
        left, right = self._left, self._right
        scales = self._owners.per_row(factors, left)
        left, right = _silenced(left, scales), _silenced(right, scales)
        if right.shape[-1] < left.shape[-1]:
            right = right * scales[:, None, None]
        else:
            left = left * scales[:, None, None]
        total += (left.flatten(0, 1).t() @ right.flatten(0, 1)).to(total.dtype)

    @property
    def _count(self) -> int:
        return self._owners.count

    def _each(self) -> Iterator[tuple[int, Tensor]]:
        left, right = self._left, self._right
        memory = left.new_empty((left.shape[2], right.shape[2]))
        by_row = left.transpose(1, 2).unbind(), right.unbind()
        for unit, rows, weights in self._owners.members():
            if len(rows) == 1:
                torch.mm(by_row[0][rows[0]], by_row[1][rows[0]], out=memory)
                yield unit, memory if weights[0] == 1.0 else memory.mul_(weights[0])
            else:
                weighed = left[rows] * left.new_tensor(weights)[:, None, None]
                torch.mm(weighed.flatten(0, 1).t(), right[rows].flatten(0, 1), out=memory)
                yield unit, memory


def _clip_and_add(
    gradients: Unitwise, total: Tensor, others: Sequence[float], bounds: Sequence[float]
) -> list[float]:
    eps = torch.finfo(total.dtype).eps
    squares = [own + other for own, other in zip(gradients.squares(), others, strict=True)]
    factors = [clip_factor(square, bound, eps) for square, bound in zip(squares, bounds, strict=True)]
    gradients.add(total, factors)
    return factors


def _norms(rows: Tensor) -> Tensor:
    """Return the L2 norm of each row, float64 on the CPU; accumulated as in `squared_norm`."""
    if rows.dim() > 2:
        rows = torch.linalg.vector_norm(rows.flatten(2), dim=2)
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return norms.cpu()


def _traces(matrices: Tensor) -> Tensor:
    """Return the trace of each matrix, float64."""
    diagonals: Tensor = matrices.diagonal(dim1=1, dim2=2)
    return diagonals.sum(1, dtype=torch.float64)


def _silenced(rows: Tensor, scales: Tensor) -> Tensor:
    """Return rows with zeros for those of scale 0, whose values may not be finite."""
    silent = scales == 0.0
    return rows.masked_fill(silent.view(-1, *[1] * (rows.dim() - 1)), 0.0) if bool(silent.any()) else rows
