"""How much one privacy unit may move a step: groups of parameters, and a bound on the norm over each.

The bound C on a unit's whole gradient is divided among groups of parameters, C_g = C / sqrt(number of
groups): clipped to these, the whole is clipped to C. One group is the flat clipping of DP-SGD (Abadi et al.
2016, arXiv:1607.00133, algorithm 1). Groups by band or by layer (McMahan et al. 2018, arXiv:1710.06963) lose
some of the gradient's direction, and can be clipped while the backward pass goes on: a layer's gradients need
not wait for those of the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from gradwarden.policy.errors import did_you_mean
from gradwarden.runtime.errors import PrivacyError

GradientSum: TypeAlias = dict[Tensor, Tensor]
"""A sum of gradients by parameter, float32 or wider."""

Clipping = Literal["flat", "band", "layer"]
"""Over what a unit's gradient is clipped jointly: all that private examples may shape, a band, a layer."""

_WAYS: tuple[str, ...] = get_args(Clipping)


@dataclass(frozen=True, slots=True)
class Unit:
    """The rows of one privacy unit in this batch, and the bound of its contribution."""

    rows: tuple[int, ...]
    clip: float


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Parameters that are clipped jointly. share: by which a unit's bound is multiplied for them."""

    parameters: tuple[Tensor, ...]
    share: float


def clip_groups(
    model: nn.Module, bands: Mapping[int, Sequence[Tensor]], clipping: Clipping = "flat"
) -> tuple[Group, ...]:
    """Divide the trainable parameters of some bands into groups, whose squared shares add up to 1.

    Raises PrivacyError for an unknown way of clipping.
    """
    check_clipping(clipping)
    trainable = [[p for p in members if p.requires_grad] for members in bands.values()]
    if clipping == "flat":
        parts: list[list[Tensor]] = [[p for members in trainable for p in members]]
    elif clipping == "band":
        parts = trainable
    else:
        parts = _by_layer(model, [p for members in trainable for p in members])
    parts = [part for part in parts if part]
    return tuple(Group(tuple(part), 1.0 / math.sqrt(len(parts))) for part in parts)


def check_clipping(clipping: str) -> None:
    """Raise PrivacyError for an unknown way of clipping."""
    if clipping not in _WAYS:
        raise PrivacyError(f"unknown clipping `{clipping}`", help=did_you_mean(clipping, _WAYS))


def zeros(parameters: Iterable[Tensor]) -> GradientSum:
    """Return a sum of nothing, whole for a parameter of which each process has a piece."""
    return {p: unfilled(p).zero_() for p in parameters}


def unfilled(parameter: Tensor) -> Tensor:
    """Return memory for a sum, as in `zeros`."""
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None:
        return torch.empty_like(parameter, dtype=wide(parameter), requires_grad=False)
    return torch.empty(parameter.shape, dtype=wide(parameter), device=mesh.device_type)


def wide(parameter: Tensor) -> torch.dtype:
    """Return the precision of sums: half precision would lose both small units and small noise."""
    return torch.promote_types(parameter.dtype, torch.float32)


def checked_units(units: Sequence[Unit], batch: int) -> None:
    """Raise PrivacyError where a row is in two units or outside the batch, or a clip is not above zero."""
    rows = [row for unit in units for row in unit.rows]
    if len(set(rows)) != len(rows):
        raise PrivacyError("a row belongs to two privacy units")
    if any(not 0 <= row < batch for row in rows):
        raise PrivacyError(f"a privacy unit names a row outside the batch of {batch}")
    if any(not unit.clip > 0.0 for unit in units):
        raise PrivacyError("the clip of a privacy unit is a number above 0")


def _by_layer(model: nn.Module, parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return the parameters by the first module that has them as its own."""
    left = {id(p): p for p in parameters}
    parts = []
    for module in model.modules():
        own = [p for p in module.parameters(recurse=False) if id(p) in left]
        parts.append([left.pop(id(p)) for p in own])
    return parts
