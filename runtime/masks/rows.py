"""Which rows of a tensor count for a band, and how much."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gradwarden.policy.context import FloatArray
from gradwarden.runtime.masks.layout import Layout
from gradwarden.runtime.masks.transfer import queue, send

LIMIT = 2.0**16
"""How far factors may be from 1, and the weights of a band from the factors. Gradients times less might
underflow."""


class Rows:
    """The examples of a batch with a positive weight, and their weights.

    Weights are `factor` for every chosen example where `weights` is None, else `factor` times one for each of
    them; it is not 1 then where all are far from 1. chosen:
    int64 [count]. span: the first and the count of the chosen examples where they are adjacent. empty, whole,
    plain: whether none is chosen; whether every one is; whether every one is, with weight 1. idle: whether no
    gradient is due, not even the zeros that other processes may await.
    Tensors of indices and weights are made once for each device, precision and layout.
    """

    __slots__ = (
        *(
            "_indices",
            "_octaves",
            "_stretches",
            "_weights",
            "batch",
            "chosen",
            "count",
            "empty",
            "factor",
            "plain",
            "span",
            "weights",
        ),
        *("idle", "whole"),
    )

    def __init__(self, weights: Tensor, *, awaited: bool = False) -> None:
        """weights: float64 [B] on the CPU, finite, at least 0. awaited: see `idle`."""
        self._weigh(weights.tolist())
        self.idle = self.empty and not awaited

    @classmethod
    def weighed(cls, values: Sequence[float]) -> Rows:
        """Return the examples of a batch with these weights."""
        rows = cls.__new__(cls)
        rows._weigh(values)
        rows.idle = rows.empty
        return rows

    def _weigh(self, values: Sequence[float]) -> None:
        chosen = [row for row, value in enumerate(values) if value]
        weights = [values[row] for row in chosen]
        first = weights[0] if weights else 1.0
        equal = weights.count(first) == len(weights)
        ends = (chosen[0], chosen[-1]) if chosen else None
        factor = first if equal else _far(max(weights))
        given = None if equal else torch.from_numpy(np.array(weights) / factor)
        self._set(len(values), _index_of(chosen), given, factor, ends)

    def _set(
        self,
        batch: int,
        chosen: Tensor,
        weights: Tensor | None,
        factor: float,
        ends: tuple[int, int] | None,
    ) -> None:
        """ends: the first and the last of the chosen examples, None where there are none."""
        count = len(chosen)
        self.batch = batch
        self.count = count
        self.chosen = chosen
        self.weights = weights
        self.factor = factor
        self.span = (ends[0], count) if ends is not None and ends[1] - ends[0] + 1 == count else None
        self.empty = count == 0
        self.whole = count == batch
        self.plain = self.whole and weights is None and factor == 1.0
        self._octaves: tuple[tuple[float, Rows], ...] | None = None
        self._stretches: list[tuple[int, int]] | None = None
        self._indices: dict[tuple[object, ...], Tensor] = {}
        self._weights: dict[tuple[object, ...], Tensor] = {}

    def spread(self, owners: Tensor) -> Rows:
        """Return the rows of a tensor that belong to the chosen examples, with those examples' weights.

        owners: int64 [rows], the example that each row belongs to, -1 for nobody's. Where all examples have
        one weight, nobody's rows have it too: whatever gradient they get, it is some example's.
        """
        weights = torch.zeros(self.batch + 1, dtype=torch.float64, device="cpu")
        weights[self.chosen] = 1.0 if self.weights is None else self.weights
        if self.whole and self.weights is None:
            weights[-1] = 1.0
        given = weights[owners]
        chosen = torch.nonzero(given).flatten()
        ends = (int(chosen[0]), int(chosen[-1])) if len(chosen) else None
        rows = Rows.__new__(Rows)
        rows._set(len(owners), chosen, None if self.weights is None else given[chosen], self.factor, ends)
        rows.idle = self.idle
        return rows

    @classmethod
    def of(cls, batch: int, chosen: Sequence[int]) -> Rows:
        """Return chosen examples of a batch, in order, with weight 1."""
        rows = cls.__new__(cls)
        ends = (chosen[0], chosen[-1]) if chosen else None
        rows._set(batch, _index_of(chosen), None, 1.0, ends)
        rows.idle = rows.empty
        return rows

    @property
    def octaves(self) -> Sequence[tuple[float, Rows]]:
        """The same rows, in groups of weights from 1/2 to 1, and what the sum of each is to be times."""
        if self._octaves is None:
            if self.weights is None:
                groups: list[tuple[float, Tensor, Tensor | None]] = [(self.factor, self.chosen, None)]
            else:
                halves, powers = torch.frexp(self.weights)
                each = [(self.factor * 2.0**power, powers == power) for power in sorted(set(powers.tolist()))]
                groups = [(scale, self.chosen[own], halves[own]) for scale, own in each]
            self._octaves = tuple(self._octave(*group) for group in groups)
        return self._octaves

    def _octave(self, scale: float, chosen: Tensor, weights: Tensor | None) -> tuple[float, Rows]:
        """Return some of the rows, with these weights (None: 1), and what their sum is to be times."""
        rows = Rows.__new__(Rows)
        if weights is not None and bool((weights == weights[0]).all()):
            scale, weights = scale * float(weights[0]), None
        ends = (int(chosen[0]), int(chosen[-1])) if len(chosen) else None
        rows._set(self.batch, chosen, weights, 1.0, ends)
        rows.idle = self.idle
        return scale, rows

    def others(self) -> Rows:
        """Return the examples that are not chosen, with weight 1."""
        chosen = set(self.chosen.tolist())
        return Rows.of(self.batch, [row for row in range(self.batch) if row not in chosen])

    @property
    def stretches(self) -> Sequence[tuple[int, int]]:
        """Of each stretch of adjacent chosen examples the first, and the number after the last."""
        if self._stretches is None:
            found: list[tuple[int, int]] = []
            for row in self.chosen.tolist():
                adjacent = found and found[-1][1] == row
                first = found.pop()[0] if adjacent else row
                found.append((first, row + 1))
            self._stretches = found
        return self._stretches

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
        per_example = picked.shape[layout.dim] // self.count
        key = (queue(picked.device), picked.dtype, per_example, layout.interleaved)
        if key not in self._weights:
            repeated = (
                self.weights.repeat(per_example)
                if layout.interleaved
                else self.weights.repeat_interleave(per_example)
            )
            self._weights[key] = send(repeated, picked.device, picked.dtype)
        shape = [1] * picked.dim()
        shape[layout.dim] = -1
        return picked * self._weights[key].view(shape)

    def summed(self, each: Tensor, broken: bool) -> Tensor:
        """Return the weighted sum of a tensor [B, features], `factor` included.

        broken: whether a row that is not chosen may hold what is not finite, so that it must not even be
        multiplied by zero.
        """
        if broken:
            picked = self.pick(each, Layout(0, 2))
            return (picked if self.weights is None else self.weigh(picked, Layout(0, 2))).sum(0) * self.factor
        key = (queue(each.device), each.dtype)
        if key not in self._weights:
            every = np.zeros(self.batch)
            every[self.chosen.numpy()] = 1.0 if self.weights is None else self.weights.numpy()
            self._weights[key] = send(torch.from_numpy(every * self.factor), each.device, each.dtype)
        return self._weights[key] @ each

    def _index(self, device: torch.device, per_example: int, interleaved: bool) -> Tensor:
        key = (queue(device), per_example, interleaved)
        if per_example == 1 and key not in self._indices:
            self._indices[key] = send(self.chosen, device)
        elif key not in self._indices:
            inner = torch.arange(per_example, device="cpu")
            index = (
                inner[:, None] * self.batch + self.chosen
                if interleaved
                else self.chosen[:, None] * per_example + inner
            )
            self._indices[key] = send(index.flatten(), device)
        return self._indices[key]


def _index_of(rows: Sequence[int]) -> Tensor:
    """Return numbers of rows as int64 on the CPU. By way of numpy, which takes a fraction of the time."""
    return torch.from_numpy(np.array(rows, dtype=np.int64))


class Columns(Sequence[Rows]):
    """The rows of each band, made when they are first asked for; the same ones for equal weights.

    weights: float64 [B, bands]; factors: float64 [B], which they are relative to.
    """

    def __init__(self, weights: Tensor, factors: Tensor) -> None:
        # In numpy, which takes a fraction of the time.
        array = factors.numpy()
        self._weights, self._divisors = weights.numpy(), np.where(array > 0, array, 1.0)
        self._relative: list[list[float]] | None = None
        self._rows: dict[int, Rows] = {}
        self._known: dict[tuple[float, ...], Rows] = {}

    def __len__(self) -> int:
        return int(self._weights.shape[1])

    @property
    def plain(self) -> bool:
        """Whether every example counts for every band, with weight 1."""
        return bool((self._weights == self._divisors[:, None]).all())

    @property
    def alike(self) -> bool:
        """Whether all examples count alike for every band: none of them, or each with the same weight."""
        relative = self._weights / self._divisors[:, None]
        return bool((relative == relative[:1]).all())

    def __getitem__(self, band: int) -> Rows:  # type: ignore[override]  # bands are not sliced
        if band not in self._rows:
            if not 0 <= band < len(self):
                raise IndexError(band)
            if self._relative is None:
                self._relative = (self._weights / self._divisors[:, None]).T.tolist()
            values = tuple(self._relative[band])
            if values not in self._known:
                self._known[values] = Rows.weighed(values)
            self._rows[band] = self._known[values]
        return self._rows[band]


def row_factors(
    weights: Tensor, costs: Sequence[float], step: Tensor | None = None, narrow: bool = False
) -> Tensor:
    """Return a positive factor for each example, 0 for those without any weight: float64 [B].

    Back-propagation is linear, so an example's loss may be scaled by its factor and its weights divided by
    it. The factors are chosen so that the bands that then need weighing are the cheapest: `costs` has the
    price of weighing each band (its number of parameters). weights: float64 [B, bands]. step: the weights
    that the choice is made for, [N, bands], those of the batch among them; None: its own. narrow: whether
    gradients bear no scaling, so that every factor is 1 (`narrow`). They bear none beyond `LIMIT` anyway.
    """
    if narrow:
        return weights.gt(0).any(dim=1).to(torch.float64)
    array = (weights if step is None else step).numpy()
    fractional = bool(((array != 0.0) & (array != 1.0)).any())
    factors = _choices(array, fractional)
    scaled = array / np.where(factors > 0, factors, 1.0)[:, :, None]
    least = np.where(scaled > 0, scaled, np.inf).min(axis=1, initial=np.inf)
    uneven = np.isfinite(least) & (least != scaled.max(axis=1, initial=0.0))
    borne = ((factors == 0.0) | (factors >= 1.0 / LIMIT) & (factors <= LIMIT)).all(axis=1)
    best = int(np.where(borne, uneven @ np.asarray(costs), np.inf).argmin())
    return torch.from_numpy(factors[best] if step is None else _choices(weights.numpy(), fractional)[best])


def _choices(weights: FloatArray, fractional: bool) -> FloatArray:
    """Return factors to choose from, [C, B]: 1, the greatest weight, or the weight of one band or another."""
    active = weights.max(axis=1, initial=0.0)
    choices = [np.where(active > 0, 1.0, 0.0), active]
    if fractional:
        choices += [np.where(column > 0, column, active) for column in weights.T]
    return np.stack(choices)


def _far(greatest: float) -> float:
    """Return a power of two to take out of weights, the greatest of which is this; 1 unless it is far off."""
    return 1.0 if 1.0 / LIMIT <= greatest <= LIMIT else 2.0 ** (math.frexp(greatest)[1] - 1)


def relative(weights: Tensor, factors: Tensor) -> Tensor:
    """Return weights [B, bands] divided by their rows' factors; rows without weight stay 0."""
    return weights / torch.where(factors > 0, factors, 1.0)[:, None]
