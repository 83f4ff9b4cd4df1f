"""The private part of a step's gradient: clipped per privacy unit, summed, noised.

DP-SGD (Abadi et al. 2016, arXiv:1607.00133, algorithm 1) on the bands that private examples may reach:

    sum over units u of  min(1, C_u / |g_u|) g_u   +   N(0, sigma²),   all divided by a constant normaliser

g_u is the gradient of unit u: of all its rows, each weighted per band before clipping, and |g_u| its L2 norm
over all bands jointly. A unit whose gradient is not finite counts as zero, and never refuses the step, since
a refusal would tell of it. So one unit, added or removed, moves the sum by at most C_u, as long as the
gradients of the others do not depend on it; `private_sum` says what that needs.

Nothing here reports norms, counts or losses: they are functions of private data and have no budget.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from gradwarden.runtime.errors import PrivacyError

GradientSum: TypeAlias = dict[Tensor, Tensor]
"""A sum of gradients by parameter, float32 or wider."""

Isolate: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Unit:
    """The rows of one privacy unit in this batch, and the bound of its contribution."""

    rows: tuple[int, ...]
    clip: float


def private_sum(
    losses: Tensor,
    units: Sequence[Unit],
    weights: Tensor,
    parameters: Mapping[int, Sequence[Tensor]],
    *,
    isolate: Isolate | None = None,
) -> GradientSum:
    """Return the sum of the units' clipped gradients; zeros for every parameter where there are no units.

    losses: [B], one per example, attached to the graph; the graph is kept. units: rows of the batch, each in
    at most one unit. weights: [B, bands] on the CPU, applied per row and band before clipping. parameters:
    for each band that private examples may reach, its number (the column of `weights`) and its parameters;
    those that need no gradient are left out of the result.

    isolate: computes the losses [n] of the given rows [n] in a forward pass of their own. In a graph that a
    batch shares, one row with values that are not finite spoils the gradients of all others (0 times
    infinity); a unit found so is computed again by itself. Without `isolate` it counts as zero, and the
    bound on one unit's effect holds only in steps where all values are finite.

    Raises PrivacyError where a row is in two units, a clip is not above zero, or the losses have no graph.
    """
    _check(units, losses)
    sums = {p: torch.zeros_like(p, dtype=_wide(p)) for band in parameters.values() for p in band}
    sums = {p: total for p, total in sums.items() if p.requires_grad}
    for unit in units:
        # A row of weight zero must not even spoil its own unit.
        rows = torch.tensor(
            [row for row in unit.rows if bool(weights[row].any())], dtype=torch.long, device="cpu"
        )
        chosen, place = weights[rows], rows.to(losses.device)
        gradient = _unit_gradient(losses.index_select(0, place), chosen, parameters)
        if isolate is not None and not _finite(gradient):
            gradient = _unit_gradient(isolate(place), chosen, parameters)
        _add_clipped(sums, gradient, unit.clip)
    return sums


def add_noise(sums: GradientSum, sigma: float, generator: torch.Generator) -> None:
    """Add Gaussian noise of standard deviation `sigma` to every element, in place.

    Call it in every step, whether or not the batch held private rows. The generator's seed must be secret.
    """
    for total in sums.values():
        noise = torch.randn(total.shape, generator=generator, dtype=total.dtype, device=generator.device)
        total.add_(noise.to(total.device), alpha=sigma)


def add_to_gradients(sums: GradientSum, normaliser: float) -> None:
    """Add the sums, divided by a constant, to the parameters' gradients.

    What a parameter's precision cannot hold becomes the greatest number that it can: an infinite gradient
    would refuse the step, and so tell of noised values in a step that no budget pays for.
    """
    for parameter, total in sums.items():
        greatest = torch.finfo(parameter.dtype).max
        share = (total / normaliser).clamp(-greatest, greatest).to(parameter.dtype)
        grad = share if parameter.grad is None else parameter.grad.add_(share)
        parameter.grad = grad.clamp_(-greatest, greatest)


def _unit_gradient(
    losses: Tensor, weights: Tensor, parameters: Mapping[int, Sequence[Tensor]]
) -> GradientSum:
    """Return the weighted gradient of one unit's rows; parameters that it does not reach are left out.

    losses: [R]. weights: [R, bands], on the CPU. Bands whose weights are proportional share one backward
    pass: for a unit of one row, all of them.
    """
    gradient: GradientSum = {}
    for direction, scales in _directions(weights, parameters):
        targets = [(p, scale) for band, scale in scales.items() for p in parameters[band] if p.requires_grad]
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
                gradient[p] = dense.to(_wide(p)) * scale
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


def _add_clipped(sums: GradientSum, gradient: GradientSum, clip: float) -> None:
    norm = _norm(gradient)
    if norm == 0.0 or norm - norm != 0.0:
        return
    for p, part in gradient.items():
        # Rounding each product up must not carry the unit past its bound: give way by the rounding's size.
        slack = 1.0 - 2.0 * torch.finfo(part.dtype).eps
        sums[p].add_(part, alpha=1.0 if norm <= clip else clip / norm * slack)


def _norm(gradient: GradientSum) -> float:
    """Return the L2 norm over all parameters, accumulated in float64; NaN or infinite where an element is."""
    squares = [torch.linalg.vector_norm(part, dtype=torch.float64) ** 2 for part in gradient.values()]
    return float(sum(squares, torch.zeros((), dtype=torch.float64, device="cpu")).sqrt()) if squares else 0.0


def _finite(gradient: GradientSum) -> bool:
    norm = _norm(gradient)
    return norm - norm == 0.0


def _wide(parameter: Tensor) -> torch.dtype:
    """Sums are kept in float32 at least: half precision would lose both small units and small noise."""
    return torch.promote_types(parameter.dtype, torch.float32)


def _check(units: Sequence[Unit], losses: Tensor) -> None:
    rows = [row for unit in units for row in unit.rows]
    if len(set(rows)) != len(rows):
        raise PrivacyError("a row belongs to two privacy units")
    if any(not 0 <= row < len(losses) for row in rows):
        raise PrivacyError(f"a privacy unit names a row outside the batch of {len(losses)}")
    if any(not unit.clip > 0.0 for unit in units):
        raise PrivacyError("the clip of a privacy unit is a number above 0")
    if units and not losses.requires_grad:
        raise PrivacyError(
            "the losses of private examples are not attached to a graph",
            help="compute the losses outside `torch.no_grad`, and pass them before any `detach`",
        )
