"""Where the examples of a batch lie in a tensor.

Layers see rows, not examples. A layout says which dimension holds the batch, and, where that dimension is a
multiple of the batch (flattened tokens, windows), which of its rows belong to which example. Layouts are
learned from two runs of different batch size, so that a sequence as long as the batch is wide cannot be
mistaken for it, and confirmed by the gradients of single examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """The batch is in dimension `dim` of tensors of rank `rank`.

    Where that dimension has m rows per example, row r belongs to example r // m, or, with `interleaved`, to
    example r % batch.
    """

    dim: int
    rank: int
    interleaved: bool = False

    def fits(self, shape: Sequence[int], batch: int) -> bool:
        """Return whether a shape leaves room for the batch; later dimensions are not looked at."""
        if len(shape) <= self.dim or batch == 0:
            return len(shape) > self.dim and shape[self.dim] == 0
        return shape[self.dim] >= batch and shape[self.dim] % batch == 0

    def example(self, tensor: Tensor, batch: int, number: int) -> Tensor:
        """Return a view of the part of a tensor that belongs to one example."""
        return self.by_example(tensor, batch)[number]

    def by_example(self, tensor: Tensor, batch: int) -> Tensor:
        """Return a view whose first dimension is the examples; what an example has of `dim` stays there."""
        per_example = tensor.shape[self.dim] // batch
        sizes = (per_example, batch) if self.interleaved else (batch, per_example)
        opened = tensor.view(*tensor.shape[: self.dim], *sizes, *tensor.shape[self.dim + 1 :])
        return opened.movedim(self.dim + self.interleaved, 0)


def candidates(small: Sequence[int], large: Sequence[int], sizes: tuple[int, int]) -> list[Layout]:
    """Return the layouts that explain how a shape grew between two batch sizes, the likeliest first."""
    if len(small) != len(large):
        return []
    found = []
    for dim, (few, many) in enumerate(zip(small, large, strict=True)):
        if few > 0 and few % sizes[0] == 0 and many * sizes[0] == few * sizes[1]:
            found.append(Layout(dim, len(large)))
            if few > sizes[0]:
                found.append(Layout(dim, len(large), interleaved=True))
    return found


def confirmed(layouts: Sequence[Layout], gradients: Sequence[Tensor | None]) -> Layout | None:
    """Return the first layout under which each example's loss touches only that example's rows.

    `gradients` are those of each example's loss with respect to one tensor. None where no layout fits, or
    where nothing was touched and several layouts would fit.
    """
    known = [(number, gradient) for number, gradient in enumerate(gradients) if gradient is not None]
    touched = any(bool(gradient.any()) for _, gradient in known)
    if not touched:
        return layouts[0] if len(layouts) == 1 else None
    for layout in layouts:
        if all(_only(layout, gradient, len(gradients), number) for number, gradient in known):
            return layout
    return None


def _only(layout: Layout, gradient: Tensor, batch: int, number: int) -> bool:
    others = (other for other in range(batch) if other != number)
    return not any(bool(layout.example(gradient, batch, other).any()) for other in others)
