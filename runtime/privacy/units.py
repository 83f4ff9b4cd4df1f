"""The gradients of a step's privacy units, clipped and summed, without keeping any unit's own gradient.

    sum over units u, groups g of  min(1, C_u share_g / |g_ug|) g_ug

g_ug is the gradient of all rows of unit u, each weighted per band before clipping, for the parameters of
group g (`clipping`). A unit whose gradient is not finite counts as zero in the group, and never refuses the
step, since a refusal would tell of it. So one unit, added or removed, moves the sum by at most C_u, as long
as the gradients of the others do not depend on it.

Layers that weigh their rows hand over what their gradients are made of (input and output gradient) as the
backward pass goes along. A group whose layers have all been called is finished at once: a few units at a
time, a layer's gradients are formed, measured and, where the group is a single layer, added to the sum. Where
the group has several layers, the sum is formed anew once all norms are known, by the kernel of any weighted
sum; only what is small, such as the gradients of biases, is kept for it.

Nothing here reports norms, counts or losses: they are functions of private data and have no budget.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from gradwarden.policy.context import FloatArray
from gradwarden.runtime.errors import PrivacyError
from gradwarden.runtime.masks.call import Call, Parameters
from gradwarden.runtime.masks.few import Products
from gradwarden.runtime.masks.full_precision import full_precision
from gradwarden.runtime.masks.plan import Plan
from gradwarden.runtime.masks.rows import Rows
from gradwarden.runtime.masks.unitwise import Unitwise, clip_factor, clip_factors, is_kept, squared_norm
from gradwarden.runtime.native.kernels import Sum
from gradwarden.runtime.privacy.clipping import (
    GradientSum,
    Group,
    Unit,
    checked_units,
    unfilled,
    wide,
    zeros,
)
from gradwarden.runtime.privacy.short import ShortLayers

Isolate: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class _Use:
    """One call of a layer, for the parameters of it that are in one group."""

    call: Call
    parameters: Parameters
    weight: Tensor | None
    bias: Tensor | None

    @property
    def narrow(self) -> bool:
        """Whether a sum over all units, which a kernel rounds to half precision, may pass their bounds."""
        return torch.finfo(self.parameters.grad.dtype).bits < 32

    def unitwise(self) -> dict[Tensor, Unitwise]:
        """Return the gradients by unit."""
        bands = (
            None if self.weight is None else self.call.homes[0],
            None if self.bias is None else self.call.homes[1],
        )
        rows, (owners, bias_owners) = self.call.plan.owned(bands)
        if rows.empty:
            return {}
        found = self.parameters.unitwise(rows, owners, bias_owners)
        named = zip((self.weight, self.bias), found, strict=True)
        return {p: by_unit for p, by_unit in named if p is not None and by_unit is not None}

    def of_unit(self, unit: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each parameter and its gradient over the rows of one unit."""
        return self._summed(lambda band: self.call.plan.unit_rows(band)[unit])

    def weighed(self, rows_of: Callable[[Plan, int], Rows]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each parameter and its gradient over all units. rows_of: theirs in a band, with weights."""
        return self._summed(lambda band: rows_of(self.call.plan, band))

    def without(self, parameters: Collection[Tensor]) -> _Use:
        """Return the use of the other parameters."""
        weight, bias = (None if p is None or p in parameters else p for p in (self.weight, self.bias))
        return replace(self, weight=weight, bias=bias)

    def _summed(self, rows_of: Callable[[int], Rows]) -> Iterator[tuple[Tensor, Tensor]]:
        rows: list[Rows | None] = []
        for parameter, band in zip((self.weight, self.bias), self.call.homes, strict=True):
            chosen = None if parameter is None or band is None else rows_of(band)
            rows.append(None if chosen is None or chosen.empty else chosen)
        named = zip((self.weight, self.bias), self.parameters.summed(*rows), strict=True)
        return ((p, found) for p, found in named if p is not None and found is not None)


@dataclass(slots=True)
class _Pending:
    """A group while the backward pass goes on. awaited: the number of calls that are still to come."""

    group: Group
    awaited: int = 0
    uses: list[_Use] = field(default_factory=list)


class UnitSums:
    """The clipped sum of the units of one forward pass; a `Sink` for the engine that differentiates it.

    units: rows of the batch, each in at most one unit. weights: float64 [B, bands] on the CPU. bands: for
    each band that private examples may reach, its number (the column of `weights`) and its parameters.
    groups: see `clip_groups`. origin: the id of a parameter by that of what forward passes use in its place
    (`Reduction.origin`).

    Raises PrivacyError where a row is in two units or a clip is not above zero.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        weights: Tensor,
        bands: Mapping[int, Sequence[Tensor]],
        groups: Sequence[Group],
        origin: Callable[[int], int] = int,
    ) -> None:
        checked_units(units, len(weights))
        self._units = tuple(units)
        self._clips = np.array([unit.clip for unit in units], dtype=np.float64)
        self._weights = weights
        self._bands = bands
        self._groups = tuple(groups)
        self._origin = origin
        self._pending = [_Pending(group) for group in groups]
        self._place = {id(p): number for number, group in enumerate(groups) for p in group.parameters}
        self._named = {id(p): p for group in groups for p in group.parameters}
        self._short = ShortLayers()
        self._sums: GradientSum = {}

    @property
    def sums(self) -> GradientSum:
        """What has been summed up, for every parameter."""
        for parameter, part in self._short.sums():
            self._put(parameter, part)
        self._sums |= zeros(p for p in self._named.values() if p not in self._sums)
        return self._sums

    @property
    def bands(self) -> Collection[int]:
        """The bands that private examples may reach, by number."""
        return self._bands.keys()

    def members(self) -> Tensor:
        """Return the number of each row's unit, int64 [B]; -1 for rows of none."""
        found = torch.full((len(self._weights),), -1, dtype=torch.int64, device="cpu")
        for number, unit in enumerate(self._units):
            found[list(unit.rows)] = number
        return found

    def expect(self, calls: Sequence[Call]) -> None:
        """Be told of the calls that will be handed over."""
        for call in calls:
            for number in self._touched(call):
                self._pending[number].awaited += 1

    def take(self, call: Call, parameters: Parameters) -> None:
        """Take the gradients of one call."""
        for number in self._touched(call):
            pending = self._pending[number]
            weight, bias = (
                self._named[key] if band is not None and self._place.get(key) == number else None
                for key, band in zip(map(self._origin, call.ids), call.homes, strict=True)
            )
            pending.uses.append(_Use(call, parameters, weight, bias))
            pending.awaited -= 1
            if not pending.awaited:
                self._finish(pending)

    def check(self) -> None:
        """Raise PrivacyError unless every call was handed over once."""
        if any(pending.awaited or pending.uses for pending in self._pending):
            raise PrivacyError(
                "the backward pass did not reach each layer once that private examples may shape",
                help='use `engine="split"` for this model',
            )

    def differentiate(self, losses: Tensor) -> None:
        """Take the gradients from the graph of losses [B], unit by unit."""
        add_units(self.sums, losses, self._units, self._weights, self._bands, self._groups)

    def differentiate_together(
        self, losses: Tensor, most: Callable[[int], int], used: Callable[[Tensor], Tensor]
    ) -> None:
        """See `Sink`. A pass for each band and each unit of the process that has most of them."""
        for number in range(most(len(self._units))):
            unit = self._units[number] if number < len(self._units) else None
            gradient: GradientSum = {}
            for band, members in self._bands.items():
                column = torch.zeros(len(losses), dtype=torch.float64, device="cpu")
                if unit is not None:
                    column[list(unit.rows)] = self._weights[list(unit.rows), band]
                trainable = [p for p in members if p.requires_grad]
                found = torch.autograd.grad(
                    losses,
                    [used(p) for p in trainable],
                    grad_outputs=column.to(losses),
                    retain_graph=True,
                    allow_unused=True,
                )
                parts = zip(trainable, found, strict=True)
                gradient |= {p: part.to(wide(p)) for p, part in parts if part is not None}
            if unit is not None:
                _clip_unit(self.sums, gradient, unit, self._groups)

    def _touched(self, call: Call) -> set[int]:
        return {
            self._place[key]
            for key, band in zip(map(self._origin, call.ids), call.homes, strict=True)
            if band is not None and key in self._place
        }

    def _finish(self, pending: _Pending) -> None:
        """Clip and sum what the calls of a group have given, and let go of it."""
        with full_precision({use.parameters.grad.device.type for use in pending.uses}):
            self._clip(pending)

    def _clip(self, pending: _Pending) -> None:
        bounds = self._clips * pending.group.share
        clusters, pending.uses = _clusters(pending.uses), []
        if len(clusters) == len(clusters[0]) == 1:
            gradients = clusters[0][0].unitwise()
            if not self._short.take(gradients, bounds):
                self._clip_layer(gradients, bounds)
            return
        measured = [self._measured(uses) for uses in clusters]
        squares = sum((found for found, _ in measured), start=np.zeros(len(bounds)))
        eps = max(torch.finfo(wide(p)).eps for p in pending.group.parameters)
        factors = clip_factors(squares, bounds, eps)
        each = factors.tolist()
        rows_of = cache(lambda plan, band: plan.units_weighed(band, each))
        while clusters:
            # What a layer has given makes room for the sums of those that follow.
            uses, (_, kept) = clusters.pop(), measured.pop()
            for parameter, by_unit in kept.items():
                self._add_to(parameter, by_unit, factors)
            self._add([use.without(kept) for use in uses], factors, rows_of)

    def _add(self, uses: Sequence[_Use], factors: FloatArray, rows_of: Callable[[Plan, int], Rows]) -> None:
        """Add the gradients of calls that share parameters. rows_of: see `_Use.weighed`."""
        if not any(use.narrow for use in uses):
            for parameter, part in (pair for use in uses for pair in use.weighed(rows_of)):
                self._put(parameter, part)
        elif len(uses) == 1:
            for parameter, by_unit in uses[0].unitwise().items():
                self._add_to(parameter, by_unit, factors)
        else:
            for unit, factor in enumerate(factors.tolist()):
                for parameter, part in _of_unit(uses, unit).items() if factor else ():
                    self._put(parameter, part.mul_(factor))

    def _clip_layer(self, gradients: Mapping[Tensor, Unitwise], bounds: FloatArray) -> None:
        """Add the clipped gradients of a layer that is clipped by itself: the largest ones as they come."""
        if not gradients:
            return
        largest = max(gradients, key=lambda p: p.numel())
        if len(gradients) == 2 and self._clip_both(largest, gradients, bounds):
            return
        smaller = [by_unit.squares() for parameter, by_unit in gradients.items() if parameter is not largest]
        others = sum(smaller, start=np.zeros(len(bounds)))
        total, begun = self._sum(largest)
        factors = gradients[largest].clip(total, others, bounds, begun)
        for parameter, by_unit in gradients.items():
            if parameter is not largest:
                self._add_to(parameter, by_unit, factors)

    def _clip_both(self, weight: Tensor, gradients: Mapping[Tensor, Unitwise], bounds: FloatArray) -> bool:
        """Add the clipped gradients of a weight and its bias where one kernel does that; whether it did."""
        products = gradients[weight]
        ((bias, sums),) = ((p, by_unit) for p, by_unit in gradients.items() if p is not weight)
        if not isinstance(products, Products) or not products.clips(sums, weight, bias):
            return False
        products.clip_both(Sum(*self._sum(weight)), Sum(*self._sum(bias)), bounds)
        return True

    def _add_to(self, parameter: Tensor, by_unit: Unitwise, factors: FloatArray) -> None:
        """Add gradients by unit, each times its factor, to the sum for a parameter."""
        total, begun = self._sum(parameter)
        by_unit.add(total, factors, begun)

    def _sum(self, parameter: Tensor) -> tuple[Tensor, bool]:
        """Return the sum for a parameter and whether it was begun: if not, it is to be overwritten now."""
        begun = parameter in self._sums
        if not begun:
            self._sums[parameter] = unfilled(parameter)
        return self._sums[parameter], begun

    def _put(self, parameter: Tensor, part: Tensor) -> None:
        """Add what nobody else has to the sum for a parameter."""
        if parameter in self._sums:
            self._sums[parameter].add_(part)
        else:
            self._sums[parameter] = part.to(wide(parameter)).contiguous()

    def _measured(self, uses: Sequence[_Use]) -> tuple[FloatArray, dict[Tensor, Unitwise]]:
        """Return the squared norm of each unit's gradient over calls that share parameters.

        And what need not be formed again for the sum.
        """
        if len(uses) == 1:
            by_unit = uses[0].unitwise()
            squares = sum((found.squares() for found in by_unit.values()), start=np.zeros(len(self._units)))
            return squares, {p: found for p, found in by_unit.items() if is_kept(found)}
        units = range(len(self._units))
        return np.array([sum(map(squared_norm, _of_unit(uses, unit).values())) for unit in units]), {}


def _of_unit(uses: Sequence[_Use], unit: int) -> GradientSum:
    """Return the gradient of one unit over calls that share parameters."""
    gradient: GradientSum = {}
    for parameter, part in (pair for use in uses for pair in use.of_unit(unit)):
        known = gradient.get(parameter)
        gradient[parameter] = part.to(wide(parameter)) if known is None else known.add_(part)
    return gradient


def add_units(
    sums: GradientSum,
    losses: Tensor,
    units: Sequence[Unit],
    weights: Tensor,
    bands: Mapping[int, Sequence[Tensor]],
    groups: Sequence[Group],
    *,
    isolate: Isolate | None = None,
) -> None:
    """Add the clipped gradients of units to a sum, one backward pass or more for each; the graph is kept.

    losses: [B], one per example, attached to the graph. The rest: see `UnitSums`.

    isolate: computes the losses [n] of the given rows [n] in a forward pass of their own. In a graph that a
    batch shares, one row with values that are not finite spoils the gradients of all others (0 times
    infinity); a unit found so is computed again by itself. Without `isolate` it counts as zero, and the
    bound on one unit's effect holds only in steps where all values are finite.

    Raises PrivacyError where the losses have no graph.
    """
    if units and not losses.requires_grad:
        raise PrivacyError(
            "the losses of private examples are not attached to a graph",
            help="compute the losses outside `torch.no_grad`, and pass them before any `detach`",
        )
    for unit in units:
        # A row of weight zero must not even spoil its own unit.
        rows = torch.tensor(
            [row for row in unit.rows if bool(weights[row].any())], dtype=torch.long, device="cpu"
        )
        chosen, place = weights[rows], rows.to(losses.device)
        gradient = _unit_gradient(losses.index_select(0, place), chosen, bands)
        if isolate is not None and not _finite(gradient):
            gradient = _unit_gradient(isolate(place), chosen, bands)
        _clip_unit(sums, gradient, unit, groups)


def _clip_unit(sums: GradientSum, gradient: GradientSum, unit: Unit, groups: Sequence[Group]) -> None:
    """Add the clipped gradient of one unit to a sum."""
    for group in groups:
        parts = {p: gradient[p] for p in group.parameters if p in gradient}
        square = sum(map(squared_norm, parts.values()))
        for parameter, part in parts.items():
            by = clip_factor(square, unit.clip * group.share, torch.finfo(part.dtype).eps)
            if by:
                sums[parameter].add_(part, alpha=by)


def private_sum(
    losses: Tensor,
    units: Sequence[Unit],
    weights: Tensor,
    bands: Mapping[int, Sequence[Tensor]],
    *,
    isolate: Isolate | None = None,
) -> GradientSum:
    """Return the sum of units' gradients, each clipped jointly over all bands, by plain autograd.

    Zeros for every trainable parameter where there are no units. See `UnitSums` and `add_units`.
    """
    checked_units(units, len(losses))
    trainable = tuple(p for members in bands.values() for p in members if p.requires_grad)
    sums = zeros(trainable)
    add_units(sums, losses, units, weights, bands, [Group(trainable, 1.0)], isolate=isolate)
    return sums


def _clusters(uses: Sequence[_Use]) -> list[list[_Use]]:
    """Divide calls so that no parameter is used in two clusters."""
    clusters: list[list[_Use]] = []
    for use in uses:
        own = {id(p) for p in (use.weight, use.bias) if p is not None}
        shared = [c for c in clusters if any(own & {id(u.weight), id(u.bias)} for u in c)]
        clusters = [c for c in clusters if c not in shared]
        clusters.append([*(u for c in shared for u in c), use])
    return clusters


def _unit_gradient(losses: Tensor, weights: Tensor, bands: Mapping[int, Sequence[Tensor]]) -> GradientSum:
    """Return the weighted gradient of one unit's rows; parameters that it does not reach are left out.

    losses: [R]. weights: [R, bands], on the CPU. Bands whose weights are proportional share one backward
    pass: for a unit of one row, all of them.
    """
    gradient: GradientSum = {}
    for direction, scales in _directions(weights, bands):
        targets = [(p, scale) for band, scale in scales.items() for p in bands[band] if p.requires_grad]
        if not targets:
            continue
        found = torch.autograd.grad(
            losses,
            [p for p, _ in targets],
            grad_outputs=direction.to(losses),
            retain_graph=True,
            allow_unused=True,
        )
        for (p, scale), part in zip(targets, found, strict=True):
            if part is not None:
                dense = part.to_dense() if part.is_sparse else part
                gradient[p] = dense.to(wide(p)) * scale
    return gradient


def _directions(weights: Tensor, bands: Collection[int]) -> list[tuple[Tensor, dict[int, float]]]:
    """Return the distinct directions of the bands' weight columns: [(direction, {band: length}), …].

    A direction is a column over its greatest weight. Bands of weight zero are left out.
    """
    directions: list[tuple[Tensor, dict[int, float]]] = []
    for band in bands:
        column = weights[:, band].double()
        length = float(column.max()) if len(column) else 0.0
        if length == 0.0:
            continue
        direction = column / length
        for known, scales in directions:
            if torch.equal(known, direction):
                scales[band] = length
                break
        else:
            directions.append((direction, {band: length}))
    return directions


def _finite(gradient: GradientSum) -> bool:
    square = sum(map(squared_norm, gradient.values()))
    return square - square == 0.0
