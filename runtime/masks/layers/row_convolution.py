"""The gradient of a convolution's weight for each example by itself.

It is a product of the output gradient with patches of the input. On a CPU it is formed for one example at a
time, so that these stay in the cache: windows of each line of the input are laid out, channels last, and
every line of the kernel takes its part of them. Elsewhere all examples are taken at once: by patches, or, for
few channels, as one convolution with as many groups, channels of all examples beside each other (Rochette et
al. 2019, arXiv:1912.06015).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gradwarden.policy.context import FloatArray
from gradwarden.runtime.masks.unitwise import OneByOne, Owners, Stacked, Unitwise

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
        windows = _Windows(grad, x, weight, options)
        large = weight.numel() > _LARGE
        return _Turned(_Large(windows, owners) if large else windows.stacked(owners), weight.shape)
    if max(weight.shape[:2]) > _MANY_CHANNELS:
        ways = {key: options[key] for key in ("stride", "padding", "dilation")}
        patches = functional.unfold(x, weight.shape[2:], **ways)  # type: ignore[arg-type]
        found = torch.bmm(grad.flatten(2), patches.transpose(1, 2))
        return Stacked(found.view(-1, *weight.shape), owners)
    return Stacked(_by_groups(grad, x, weight, options), owners)


class _Windows:
    """Forms gradients [lines of the kernel, out, their places and channels] of one example at a time."""

    def __init__(self, grad: Tensor, x: Tensor, weight: Tensor, options: Mapping[str, Any]) -> None:
        (down, right), (high, wide) = options["stride"], options["dilation"]
        lines, places = grad.shape[2:]
        channels, kernel_v, kernel_h = weight.shape[1:]
        padded = _channels_last(x, options["padding"])
        to_row, to_line, to_place, _ = padded.stride()
        if down == 1:
            # Lines of the kernel share what they see.
            seen = lines + high * (kernel_v - 1)
            sizes: tuple[int, ...] = (seen, places, kernel_h, channels)
            steps: tuple[int, ...] = (to_line, to_place * right, to_place * wide, 1)
        else:
            sizes = (kernel_v, lines, places, kernel_h, channels)
            steps = (to_line * high, to_line * down, to_place * right, to_place * wide, 1)
        self._memory = padded.new_empty(sizes)
        self._seen = padded.as_strided((len(x), *sizes), (to_row, *steps)).unbind()
        parts = (
            self._memory[high * line :][:lines] if down == 1 else self._memory[line]
            for line in range(kernel_v)
        )
        self._parts = [part.view(lines * places, -1) for part in parts]
        self._grads = grad.flatten(2).unbind()
        self.shape = (kernel_v, weight.shape[0], kernel_h * channels)

    def empty(self, *rows: int) -> Tensor:
        """Return memory for the gradients of so many examples, or for one."""
        return self._memory.new_empty((*rows, *self.shape))

    def form(self, row: int, lines: Iterator[Tensor]) -> None:
        """Write the gradient of one example to the next matrices, one for each line of the kernel."""
        self._memory.copy_(self._seen[row])
        own = self._grads[row]
        for part in self._parts:
            torch.mm(own, part, out=next(lines))

    def stacked(self, owners: Owners) -> Stacked:
        """Return the gradients of all examples."""
        found = self.empty(len(self._grads))
        lines = iter(found.flatten(0, 1).unbind())
        for row in range(len(found)):
            self.form(row, lines)
        return Stacked(found, owners)


class _Large(OneByOne):
    """Gradients of which those of one unit at a time are kept."""

    def __init__(self, windows: _Windows, owners: Owners) -> None:
        self._windows, self._owners = windows, owners

    @property
    def _count(self) -> int:
        return self._owners.count

    def _each(self) -> Iterator[tuple[int, Tensor]]:
        memory, other = self._windows.empty(), None
        lines = memory.unbind()
        for unit, (first, *others), (weight, *weights) in self._owners.members:
            self._windows.form(first, iter(lines))
            if weight != 1.0:
                memory.mul_(weight)
            for row, scale in zip(others, weights, strict=True):
                other = self._windows.empty() if other is None else other
                self._windows.form(row, iter(other.unbind()))
                memory.add_(other, alpha=scale)
            yield unit, memory


@dataclass(frozen=True, slots=True, eq=False)
class _Turned:
    """Gradients as `_Windows` forms them, of a weight of this shape, [out, in, *kernel]."""

    gradients: Unitwise
    shape: torch.Size

    def squares(self) -> FloatArray:
        """See `Unitwise`."""
        return self.gradients.squares()

    def add(self, total: Tensor, factors: FloatArray) -> None:
        """See `Unitwise`."""
        found = self._none(total)
        self.gradients.add(found, factors)
        total += self._turned(found)

    def clip(self, total: Tensor, others: FloatArray, bounds: FloatArray) -> FloatArray:
        """See `Unitwise`."""
        found = self._none(total)
        factors = self.gradients.clip(found, others, bounds)
        total += self._turned(found)
        return factors

    def _none(self, total: Tensor) -> Tensor:
        out, channels, kernel_v, kernel_h = self.shape
        return total.new_zeros((kernel_v, out, kernel_h * channels))

    def _turned(self, found: Tensor) -> Tensor:
        out, channels, kernel_v, kernel_h = self.shape
        return found.view(kernel_v, out, kernel_h, channels).permute(1, 3, 0, 2)


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


def _channels_last(x: Tensor, padding: Sequence[int]) -> Tensor:
    """Return x [N, in, lines, places] as [N, lines, places, in], with zeros around it."""
    (rows, channels, lines, places), (pad_v, pad_h) = x.shape, padding
    found = x.new_zeros((rows, lines + 2 * pad_v, places + 2 * pad_h, channels))
    found[:, pad_v : pad_v + lines, pad_h : pad_h + places].copy_(x.permute(0, 2, 3, 1))
    return found
