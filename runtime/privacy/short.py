"""Layers with few parameters that are clipped by themselves, such as norms: all of them at once.

Such a layer takes as many operations as a large one, and what these cost by themselves is most of it. So its
gradients wait, a line of numbers for each row of the batch, until the backward pass is over. Then all layers
are measured, and summed, side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradwarden.policy.context import FloatArray
from gradwarden.runtime.masks.unitwise import Owners, Stacked, Unitwise, clip_factors, wide

_SHORT = 1 << 16
"""Up to how many elements the gradients of a layer have, of all rows together, that wait."""


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """The gradients of a layer's parameters. bounds: what each unit's are clipped to, float64 [units]."""

    gradients: Mapping[Tensor, Stacked]
    bounds: FloatArray


class ShortLayers:
    """Layers whose gradients wait."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[Owners, torch.dtype, torch.device], list[_Layer]] = {}

    def take(self, gradients: Mapping[Tensor, Unitwise], bounds: FloatArray) -> bool:
        """Let the gradients of a layer wait. Returns whether they may: short ones, no unit with two rows."""
        stacked = {p: by_unit for p, by_unit in gradients.items() if isinstance(by_unit, Stacked)}
        if len(stacked) < len(gradients):
            return False  # before rows are asked for, which forms them
        kinds = {(by_unit.owners, by_unit.rows.dtype, by_unit.rows.device) for by_unit in stacked.values()}
        if len(kinds) != 1:
            return False
        (kind,) = kinds
        if not kind[0].single or sum(by_unit.elements for by_unit in stacked.values()) > _SHORT:
            return False
        self._waiting.setdefault(kind, []).append(_Layer(stacked, bounds))
        return True

    def sums(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each parameter and the clipped sum of its gradients, and let go of them."""
        while self._waiting:
            (owners, _, _), layers = self._waiting.popitem()
            yield from _clipped(layers, owners)


def _clipped(layers: Sequence[_Layer], owners: Owners) -> Iterator[tuple[Tensor, Tensor]]:
    parts = [(p, by_unit.rows) for layer in layers for p, by_unit in layer.gradients.items()]
    widths = [rows.shape[1:].numel() for _, rows in parts]
    side_by_side = wide(torch.cat([rows.flatten(1) for _, rows in parts], dim=1))
    layer_of = np.repeat(np.repeat(range(len(layers)), [len(layer.gradients) for layer in layers]), widths)
    places = torch.from_numpy(layer_of).to(side_by_side.device)
    scales = _scales(_squares(side_by_side, places, len(layers)), layers, owners, side_by_side.dtype)
    each = torch.from_numpy(scales).to(side_by_side).index_select(1, places)
    if not scales.all():
        # What has the factor 0 may not be finite.
        side_by_side = side_by_side.masked_fill(each == 0.0, 0.0)
    sums = torch.split((side_by_side * each).sum(0), widths)
    for (parameter, rows), part in zip(parts, sums, strict=True):
        yield parameter, part.view(rows.shape[1:]).clone()


def _squares(side_by_side: Tensor, places: Tensor, count: int) -> FloatArray:
    """Return the squared norm of each row's gradient of each layer, [rows, layers]."""
    squares = side_by_side.new_zeros((len(side_by_side), count), dtype=torch.float64)
    return squares.index_add_(1, places, side_by_side.double().square()).cpu().numpy()


def _scales(squares: FloatArray, layers: Sequence[_Layer], owners: Owners, dtype: torch.dtype) -> FloatArray:
    """Return what the rows of each layer are multiplied by, [rows, layers]."""
    eps = torch.finfo(dtype).eps
    found = [
        owners.scales(clip_factors(owners.per_unit(np.sqrt(square)), layer.bounds, eps))
        for layer, square in zip(layers, squares.T, strict=True)
    ]
    return np.stack(found, axis=1)
