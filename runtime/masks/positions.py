"""Where the positions of packed sequences lie in a tensor.

A batch of packed sequences has R rows of T positions, and each position belongs to some example. Layers see
[R, T, features], [T, R, features], [R, heads, T, features] or flattened positions; those that treat positions
alike are run on [R * T, features], where every row is one position.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Grid = tuple[int, int]
"""The numbers of rows and of positions in a row."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The rows are in dimension `rows`, their positions in dimension `times`.

    Where both are one dimension, positions of a row come one after another, or, if `interleaved`, rows do.
    """

    rows: int
    times: int
    interleaved: bool = False

    def fits(self, shape: Sequence[int], grid: Grid) -> bool:
        """Return whether a shape has room for the grid."""
        if len(shape) <= max(self.rows, self.times):
            return False
        if self.rows == self.times:
            return shape[self.rows] == grid[0] * grid[1]
        return (shape[self.rows], shape[self.times]) == grid

    def flatten(self, tensor: Tensor, grid: Grid) -> Tensor:
        """Return a tensor as [R * T, ...], a view where that is possible."""
        if self.rows != self.times:
            return tensor.movedim((self.rows, self.times), (0, 1)).flatten(0, 1)
        moved = tensor.movedim(self.rows, 0)
        if not self.interleaved:
            return moved
        return moved.reshape(*grid[::-1], *moved.shape[1:]).transpose(0, 1).flatten(0, 1)

    def restore(self, flat: Tensor, grid: Grid) -> Tensor:
        """Return what `flatten` was given, from its result or from what has other trailing dimensions.

        Not a view: it is what a layer returns, and if that was a view and changed in place, the hooks that
        `fully_shard` has on it would be dropped.
        """
        shape = (*grid, *flat.shape[1:])
        if (self.rows, self.times) == (0, 1):
            same: Tensor = torch.ops.aten._unsafe_view.default(flat, shape)
            return same
        if self.rows != self.times:
            return flat.view(shape).movedim((0, 1), (self.rows, self.times)).clone()
        if self.interleaved:
            return flat.view(shape).transpose(0, 1).flatten(0, 1).movedim(0, self.rows).clone()
        return flat.movedim(0, self.rows).clone() if self.rows else flat

    def across(self, values: Tensor, rank: int, grid: Grid) -> Tensor:
        """Return values [R * T], one for each position, so that they can be multiplied with a tensor."""
        shape = [1] * rank
        if self.rows == self.times:
            shape[self.rows] = -1
            return (values.view(grid).t() if self.interleaved else values).reshape(shape)
        shape[self.rows], shape[self.times] = grid
        return (values if self.rows < self.times else values.view(grid).t()).reshape(shape)


def placements(shape: Sequence[int], grid: Grid) -> Iterator[Placement]:
    """Yield where a tensor of this shape might hold the grid."""
    sizes = list(enumerate(shape))
    for rows, height in sizes:
        for times, width in sizes:
            if rows != times and (height, width) == grid:
                yield Placement(rows, times)
    for dim, size in sizes:
        if size == grid[0] * grid[1]:
            yield Placement(dim, dim)
            if min(grid) > 1:
                yield Placement(dim, dim, interleaved=True)
