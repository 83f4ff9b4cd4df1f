"""The gradient of a convolution's weight for each example by itself.

It is a product of the output gradient with patches of the input. On a CPU it is formed for a few examples at
a time, so that these stay in the cache: windows of each line of the input are laid out, channels last, and
every line of the kernel takes its part of them. Where places are few, it is not formed (`place_norms`).

Elsewhere all examples are taken at once: by patches, or, for few channels, as one convolution with as many
groups, channels of all examples beside each other (Rochette et al. 2019, arXiv:1912.06015).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gradwarden.policy.context import FloatArray
from gradwarden.runtime.masks.few import Few, at_once, weighed
from gradwarden.runtime.masks.layers import place_norms
from gradwarden.runtime.masks.unitwise import (
    Numbers,
    Owners,
    Stacked,
    Unitwise,
    clip_and_add,
    put,
    silenced,
    stretch,
    wide,
)
from gradwarden.runtime.native.kernels import (
    Window,
    clip_convolution,
    square_convolution,
    usable,
)

_MANY_CHANNELS = 64
"""Above this, patches are faster than groups."""
_CLIPPING = 30.0
"""What measuring an element of a gradient and adding it to the sum cost, in multiplications."""
_NATIVE_CLIPPING = 4.0
"""The same in a kernel that keeps what it forms."""
_WINDOWS, _FEWEST = 1 << 18, 2
"""Elements of windows that each thread lays out at once, so that they stay in its core's cache; and the
fewest examples that this is done for."""


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
        # What is measured in one way and summed in another must not be rounded to half precision in between.
        return _Convolved(wide(grad), wide(x), wide(weight), options, owners)
    if max(weight.shape[:2]) > _MANY_CHANNELS:
        ways = {key: options[key] for key in ("stride", "padding", "dilation")}
        patches = functional.unfold(x, weight.shape[2:], **ways)  # type: ignore[arg-type]
        found = torch.bmm(grad.flatten(2), patches.transpose(1, 2))
        return Stacked(found.view(-1, *weight.shape), owners)
    return Stacked(_by_groups(grad, x, weight, options), owners)


@dataclass(frozen=True, slots=True, eq=False)
class _Convolved:
    """Gradients that are formed, or measured by products between places and summed by the stock kernel."""

    grad: Tensor
    x: Tensor
    weight: Tensor
    options: Mapping[str, Any]
    owners: Owners

    def squares(self) -> FloatArray:
        """See `Unitwise`."""
        if self._measuring() < self.grad.shape[2:].numel() * self.weight.numel():
            return self.owners.per_unit(place_norms.norms(self.grad, self.x, self.weight, self.options))
        if usable(self.grad, self.x):
            members = self.owners.listed[1]
            return self.owners.of_all(square_convolution(self.grad, self.x, self._window(), members))
        return self._windows().squares()

    def add(self, total: Tensor, factors: FloatArray, begun: bool) -> None:
        """See `Unitwise`."""
        scales = self.owners.per_row(factors, self.grad)
        grad, x = silenced(self.grad, scales, factors), silenced(self.x, scales, factors)
        grad = grad * scales.view(-1, *[1] * (grad.dim() - 1))
        put(total, convolution_gradients(grad, x, self.weight, self.options, [False, True, False])[1], begun)

    def clip(self, total: Tensor, others: FloatArray, bounds: FloatArray, begun: bool) -> FloatArray:
        """See `Unitwise`. The sum costs as much as to form the gradients, so that is for nothing."""
        native = usable(self.grad, self.x, total)
        if self._measuring() < (_NATIVE_CLIPPING if native else _CLIPPING) * self.weight.numel():
            return clip_and_add(self, total, others, bounds, begun)
        if native:
            numbers, members = self.owners.listed
            limits = others[numbers], bounds[numbers]
            found, some = clip_convolution(self.grad, self.x, self._window(), members, *limits)
            put(total, found, begun)
            return self.owners.of_all(some)
        out, channels, kernel_v, kernel_h = self.weight.shape
        found = total.new_empty((kernel_v, out, kernel_h, channels))
        factors = self._windows().clip(found, others, bounds, begun=False)
        put(total, found.permute(1, 3, 0, 2), begun)
        return factors

    def _window(self) -> Window:
        down, across = self.weight.shape[2:]
        stride, dilation, padding = (tuple(self.options[name]) for name in ("stride", "dilation", "padding"))
        return Window((down, across), stride, dilation, padding)

    def _measuring(self) -> float:
        """Return what norms from products between places cost for an example, in multiplications."""
        if not self.owners.single:
            return math.inf
        return place_norms.work(self.grad, self.x, self.weight, self.options)

    def _windows(self) -> _Windows:
        return _Windows(self.grad, self.x, self.weight, self.options, self.owners)


class _Windows(Few):
    """Gradients in pieces, one for each line of the kernel: [out, its places and channels]."""

    def __init__(
        self, grad: Tensor, x: Tensor, weight: Tensor, options: Mapping[str, Any], owners: Owners
    ) -> None:
        super().__init__(owners)
        (down, right), (high, across) = options["stride"], options["dilation"]
        lines, places = grad.shape[2:]
        channels, kernel_v, kernel_h = weight.shape[1:]
        self._x = x.permute(0, 2, 3, 1)
        windows = kernel_h * channels * places * (lines + kernel_v - 1 if down == 1 else lines * kernel_v)
        threads = torch.get_num_threads()
        few = max(_FEWEST, threads, threads * _WINDOWS // max(windows, 1))
        few = min(few - few % _FEWEST, len(x))
        padded, self._inner = _channels_last(x, few, options["padding"])
        to_row, to_line, to_place, _ = padded.stride()
        if down == 1:
            # Lines of the kernel share what they see.
            seen = lines + high * (kernel_v - 1)
            sizes: tuple[int, ...] = (seen, places, kernel_h, channels)
            steps: tuple[int, ...] = (to_line, to_place * right, to_place * across, 1)
        else:
            sizes = (kernel_v, lines, places, kernel_h, channels)
            steps = (to_line * high, to_line * down, to_place * right, to_place * across, 1)
        self._memory = padded.new_empty((few, *sizes))
        self._seen = padded.as_strided((few, *sizes), (to_row, *steps))
        self._parts = [
            (self._memory[:, high * line :][:, :lines] if down == 1 else self._memory[:, line])
            .flatten(1, 2)
            .flatten(2)
            for line in range(kernel_v)
        ]
        self._grads = grad.flatten(2)
        self._shape = (kernel_v, weight.shape[0], kernel_h * channels)

    def _each(self) -> Iterator[tuple[Numbers, Tensor]]:
        owners, most = self._owners, at_once(math.prod(self._shape), len(self._grads))
        memory = self._memory.new_empty(most * math.prod(self._shape))
        if owners.single:
            for portion in owners.portions(most):
                yield portion.units, weighed(self._form(portion.rows, memory), portion.weights)
            return
        for unit, rows, weights in owners.members:
            parts = (
                weighed(self._form(rows[start:end], memory), weights[start:end]).sum(1, keepdim=True)
                for start, end in _portions(len(rows), most)
            )
            yield [unit], reduce(torch.add, parts)

    def _form(self, rows: list[int], memory: Tensor) -> Tensor:
        """Return the gradients of some examples, [pieces, rows, out, places and channels], in memory."""
        pieces, *shape = self._shape
        found = memory[: len(rows) * math.prod(self._shape)].view(pieces, len(rows), *shape)
        for start, end in _portions(len(rows), len(self._memory)):
            own = stretch(rows[start:end])
            self._inner[: end - start].copy_(self._x[own])
            self._memory[: end - start].copy_(self._seen[: end - start])
            grads = self._grads[own]
            for part, line in zip(self._parts, found, strict=True):
                torch.bmm(grads, part[: end - start], out=line[start:end])
        return found


def _portions(count: int, most: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + most, count)) for start in range(0, count, most))


def _by_groups(grad: Tensor, x: Tensor, weight: Tensor, options: Mapping[str, object]) -> Tensor:
    rows, groups = len(x), options["groups"]
    assert isinstance(groups, int)
    side_by_side = {**options, "groups": rows * groups}
    found = convolution_gradients(
        _beside(grad),
        _beside(x),
        weight.repeat(rows, *[1] * (weight.dim() - 1)),
        side_by_side,
        [False, True, False],
    )[1]
    return found.view(rows, *weight.shape)  # type: ignore[no-any-return]


def _beside(tensor: Tensor) -> Tensor:
    """Return the channels of all examples beside each other, [1, N * channels, *].

    By way of one dimension, so that no stride is left over of one of size 1: it would be taken for another
    format, which kernels refuse.
    """
    return tensor.flatten().view(1, -1, *tensor.shape[2:])


def _channels_last(x: Tensor, rows: int, padding: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return memory for rows of x [N, in, lines, places], channels last, and its part within the padding.

    The padding is zeros.
    """
    (_, channels, lines, places), (pad_v, pad_h) = x.shape, padding
    found = x.new_zeros((rows, lines + 2 * pad_v, places + 2 * pad_h, channels))
    return found, found[:, pad_v : pad_v + lines, pad_h : pad_h + places]
