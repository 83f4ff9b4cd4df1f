"""Which rows of a tensor count for a band, and how much."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradwarden.runtime.masks.layout import Layout


class Rows:
    """The examples of a batch with a positive weight, and their weights.

    Weights are `factor` for every chosen example where `weights` is None, else one for each of them.
    Tensors of indices and weights are made once for each device, precision and layout.
    """

    __slots__ = ("_indices", "_weights", "batch", "chosen", "factor", "span", "weights")

    def __init__(self, weights: Tensor) -> None:
        """weights: float64 [B] on the CPU, finite, at least 0."""
        chosen = torch.nonzero(weights).flatten()
        values = weights[chosen]
        equal = len(chosen) == 0 or bool((values == values[0]).all())
        self.batch = len(weights)
        self.chosen = chosen
        self.weights = None if equal else values
        self.factor = float(values[0]) if equal and len(chosen) else 1.0
        self.span: tuple[int, int] | None = None
        if len(chosen) and int(chosen[-1]) - int(chosen[0]) + 1 == len(chosen):
            self.span = (int(chosen[0]), len(chosen))
        self._indices: dict[tuple[object, ...], Tensor] = {}
        self._weights: dict[tuple[object, ...], Tensor] = {}

    def others(self) -> Rows:
        """Return the examples that are not chosen, with weight 1."""
        left = torch.ones(self.batch, dtype=torch.float64, device="cpu")
        left[self.chosen] = 0.0
        return Rows(left)

    @property
    def empty(self) -> bool:
        return len(self.chosen) == 0

    @property
    def whole(self) -> bool:
        """Whether every example is chosen."""
        return len(self.chosen) == self.batch

    @property
    def plain(self) -> bool:
        """Whether every example is chosen with weight 1."""
        return self.whole and self.weights is None and self.factor == 1.0

    def pick(self, tensor: Tensor, layout: Layout) -> Tensor:
        """Return the chosen examples' rows; a view where they are adjacent."""
        if self.whole:
            return tensor
        per_example = tensor.shape[layout.dim] // self.batch
        if self.span is not None and (per_example == 1 or not layout.interleaved):
            start, count = self.span
            return tensor.narrow(layout.dim, start * per_example, count * per_example)
        return tensor.index_select(layout.dim, self._index(tensor.device, per_example, layout.interleaved))

    def place(self, target: Tensor, values: Tensor, layout: Layout) -> None:
        """Write what was computed from picked rows to their places in `target`."""
        per_example = target.shape[layout.dim] // self.batch
        if self.span is not None and (per_example == 1 or not layout.interleaved):
            start, count = self.span
            target.narrow(layout.dim, start * per_example, count * per_example).copy_(values)
        else:
            index = self._index(target.device, per_example, layout.interleaved)
            target.index_copy_(layout.dim, index, values)

    def weigh(self, picked: Tensor, layout: Layout) -> Tensor:
        """Return picked rows times their weights; `factor` is left to the caller."""
        if self.weights is None:
            return picked
        per_example = picked.shape[layout.dim] // len(self.chosen)
        key = (picked.device, picked.dtype, per_example, layout.interleaved)
        if key not in self._weights:
            repeated = (
                self.weights.repeat(per_example)
                if layout.interleaved
                else self.weights.repeat_interleave(per_example)
            )
            self._weights[key] = repeated.to(device=picked.device, dtype=picked.dtype)
        shape = [1] * picked.dim()
        shape[layout.dim] = -1
        return picked * self._weights[key].view(shape)

    def _index(self, device: torch.device, per_example: int, interleaved: bool) -> Tensor:
        key = (device, per_example, interleaved)
        if key not in self._indices:
            inner = torch.arange(per_example, device="cpu")
            index = (
                inner[:, None] * self.batch + self.chosen
                if interleaved
                else self.chosen[:, None] * per_example + inner
            )
            self._indices[key] = index.flatten().to(device)
        return self._indices[key]


def row_factors(weights: Tensor, costs: Sequence[float]) -> Tensor:
    """Return a positive factor for each example, 0 for those without any weight: float64 [B].

    Back-propagation is linear, so an example's loss may be scaled by its factor and its weights divided by
    it. The factors are chosen so that the bands that then need weighing are the cheapest: `costs` has the
    price of weighing each band (its number of parameters). weights: float64 [B, bands].
    """
    active = weights.amax(dim=1, keepdim=True)
    base = (active > 0).to(weights.dtype)
    choices = [base, active]
    if not bool(((weights == 0) | (weights == 1)).all()):
        choices += [torch.where(band > 0, band, active) for band in weights[:, :, None].unbind(dim=1)]
    price = torch.tensor(costs, dtype=torch.float64, device="cpu")
    prices = [float(price[_uneven(relative(weights, choice[:, 0]))].sum()) for choice in choices]
    return choices[min(range(len(choices)), key=prices.__getitem__)][:, 0]


def relative(weights: Tensor, factors: Tensor) -> Tensor:
    """Return weights [B, bands] divided by their rows' factors; rows without weight stay 0."""
    return weights / torch.where(factors > 0, factors, 1.0)[:, None]


def _uneven(weights: Tensor) -> Tensor:
    """Return which bands have positive weights that differ: bool [bands]."""
    least = torch.where(weights > 0, weights, torch.inf).amin(dim=0)
    return (weights.amax(dim=0) > 0) & (least != weights.amax(dim=0))
