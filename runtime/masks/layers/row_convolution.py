"""The gradient of a convolution's weight for each example by itself.

It is a product of the output gradient with patches of the input. On a CPU, patches of one example at a time
are laid out, channels last, where they stay in the cache; those of all examples where they are smaller than
the gradients. Elsewhere all examples are taken at once: as one convolution with as many groups, channels of
all examples beside each other (Rochette et al. 2019, arXiv:1912.06015), or, for many channels, by patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gradwarden.runtime.masks.unitwise import Owners, Products, Stacked, Unitwise

_MANY_CHANNELS = 64
"""Above this, patches are faster than groups."""
_LARGE = 1 << 16
"""Gradients of more elements are not kept for all examples."""


def convolution_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, options: Mapping[str, object], wanted: list[bool]
) -> Any:
    """Return the gradients of input, weight and bias, as far as wanted. options: of `torch.convolution`."""
    return torch.ops.aten.convolution_backward(
        grad,
        x,
        weight,
        None,
        options["stride"],
        options["padding"],
        options["dilation"],
        options["transposed"],
        options["output_padding"],
        options["groups"],
        wanted,
    )


def gradients_by_unit(
    grad: Tensor, x: Tensor, weight: Tensor, options: Mapping[str, object], owners: Owners
) -> Unitwise:
    """Return the gradients of the weight by unit.

    grad: [N, out, *]. x: [N, in, *]. options: of `torch.convolution`.
    """
    if not (options["groups"] == 1 and not options["transposed"] and x.dim() == 4):
        return Stacked(_by_groups(grad, x, weight, options), owners)
    if x.device.type == "cpu":
        patches = _patches(grad, x, weight, options)
        if weight.numel() > max(_LARGE, patches[0].numel()):
            by_unit: Unitwise = Products(grad.flatten(2).transpose(1, 2), _rows(patches), owners)
        else:
            by_unit = Stacked(_one_by_one(grad, patches), owners)
        return _ChannelsLast(by_unit, weight.shape)
    if max(weight.shape[:2]) > _MANY_CHANNELS:
        found = torch.bmm(grad.flatten(2), _rows(_patches(grad, x, weight, options)))
        return _ChannelsLast(Stacked(found, owners), weight.shape)
    return Stacked(_by_groups(grad, x, weight, options), owners)


@dataclass(frozen=True, slots=True, eq=False)
class _ChannelsLast:
    """Gradients [out, kernel and in] of a weight of this shape, [out, in, *kernel]."""

    gradients: Unitwise
    shape: torch.Size

    def squares(self) -> list[float]:
        """See `Unitwise`."""
        return self.gradients.squares()

    def add(self, total: Tensor, factors: Sequence[float]) -> None:
        """See `Unitwise`."""
        found = self._none(total)
        self.gradients.add(found, factors)
        total += self._turned(found)

    def clip(self, total: Tensor, others: Sequence[float], bounds: Sequence[float]) -> list[float]:
        """See `Unitwise`."""
        found = self._none(total)
        factors = self.gradients.clip(found, others, bounds)
        total += self._turned(found)
        return factors

    def _none(self, total: Tensor) -> Tensor:
        return total.new_zeros((self.shape[0], self.shape[1:].numel()))

    def _turned(self, found: Tensor) -> Tensor:
        out, channels, *kernel = self.shape
        return found.view(out, *kernel, channels).movedim(-1, 1)


def _by_groups(grad: Tensor, x: Tensor, weight: Tensor, options: Mapping[str, object]) -> Tensor:
    rows, groups = len(x), options["groups"]
    assert isinstance(groups, int)
    side_by_side = {**options, "groups": rows * groups}
    found = convolution_gradients(
        grad.reshape(1, -1, *grad.shape[2:]),
        x.reshape(1, -1, *x.shape[2:]),
        weight.repeat(rows, *[1] * (weight.dim() - 1)),
        side_by_side,
        [False, True, False],
    )[1]
    return found.view(rows, *weight.shape)  # type: ignore[no-any-return]


def _patches(grad: Tensor, x: Tensor, weight: Tensor, options: Mapping[str, Any]) -> Tensor:
    """Return what each element of the gradient has seen of x, as a view: [N, *, *kernel, in]."""
    (down, right), (high, wide), (pad_v, pad_h) = options["stride"], options["dilation"], options["padding"]
    padded = functional.pad(x, (pad_h, pad_h, pad_v, pad_v)).permute(0, 2, 3, 1).contiguous()
    to_row, to_line, to_place, _ = padded.stride()
    return padded.as_strided(
        (len(x), *grad.shape[2:], *weight.shape[2:], x.shape[1]),
        (to_row, to_line * down, to_place * right, to_line * high, to_place * wide, 1),
    )


def _rows(patches: Tensor) -> Tensor:
    """Return patches laid out, [N, places, kernel and channels]."""
    return patches.reshape(len(patches), patches.shape[1:3].numel(), -1)


def _one_by_one(grad: Tensor, patches: Tensor) -> Tensor:
    """Return gradients [N, out, kernel and in], the patches of one example in the memory of the last."""
    memory = patches.new_empty(patches.shape[1:])
    laid_out = memory.view(memory.shape[:2].numel(), -1)
    found = grad.new_empty((len(grad), grad.shape[1], laid_out.shape[1]))
    for own, seen, target in zip(grad.flatten(2).unbind(), patches.unbind(), found.unbind(), strict=True):
        memory.copy_(seen)
        torch.mm(own, laid_out, out=target)
    return found
