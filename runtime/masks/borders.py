"""Blocks that are run plainly, between borders where gradients are scaled.

Where every example has some weight for a block's parameters, the block need not weigh them layer by layer. On
its way into the block, the gradient of each example is multiplied by the example's weight; inside, every
operation is the plain one, whatever it is; on its way out it is divided by the weight again. Gradients are
linear and no example depends on another, so the parameters get weighted gradients and everything before the
block gets the exact ones. From one such block to the next, gradients are multiplied once, by the ratio.

That holds as long as gradients go in and out by the block's arguments and results. The walk through the graph
(`graph`) sees where they do not.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function

from gradwarden.policy.context import FloatArray
from gradwarden.runtime.masks.bands import bands_in
from gradwarden.runtime.masks.blocks import (
    Block,
    Given,
    Leaves,
    Signature,
    flatten_result,
    unflatten_call,
    unflatten_result,
)
from gradwarden.runtime.masks.call import differentiable_once
from gradwarden.runtime.masks.layout import Layout
from gradwarden.runtime.masks.narrow import NARROW
from gradwarden.runtime.masks.parts import Run, UnlikePartsError
from gradwarden.runtime.masks.plan import Plan
from gradwarden.runtime.masks.rows import LIMIT, Columns, Rows
from gradwarden.runtime.masks.sites import Site
from gradwarden.runtime.masks.transfer import queue, send


class ScaledPlan(Plan):
    """The plan of the same examples inside a block, with factors that suit its parameters.

    outer: the plan around the block. plainly: those of the block's bands whose parameters need no weighing
    inside it, as a bit mask. band: the one whose weights are the factors.
    """

    outer: Plan
    even = False

    def __init__(self, outer: Plan, plainly: int, band: int) -> None:
        self.outer, self.plainly, self.band = outer, plainly, band
        self.weights, self.mode, self._whole = outer.weights, outer.mode, outer.whole
        self.every, self.rows = outer.every, outer.rows
        self.classes = None
        self.ways = {}

    @cached_property
    def scale(self) -> FloatArray:
        scale: FloatArray = self.outer.columns[self.band]
        return scale

    @cached_property
    def factors(self) -> Tensor:  # type: ignore[override]  # made where it is needed only
        return torch.from_numpy(self.scale)

    @cached_property
    def bands(self) -> Columns:  # type: ignore[override]
        return Columns(self.weights, self.factors)

    @property
    def _step(self) -> Columns:  # type: ignore[override]
        return self.bands

    def reach(self, mask: int) -> Rows:  # what may be reached does not depend on factors
        return self.outer.reach(mask)

    def flow(self, band: int, mask: int) -> Rows:
        return self.outer.flow(band, mask)


def scaled(plan: Plan, own: int, costs: Sequence[float]) -> ScaledPlan | None:
    """Return the plan inside a block of these bands (a bit mask), None where factors cannot suit it.

    costs: the price of weighing each band. Factors are the weights of the dearest band that every example may
    shape.
    """
    if plan.classes is not None or plan.whole.examples is not plan.whole:
        return None
    shaped = [band for band in bands_in(own) if plan.shaped[band]]
    if not shaped:
        return None
    dearest = max(shaped, key=costs.__getitem__)
    if not plan.near(LIMIT)[dearest]:
        return None
    if len(shaped) == 1:
        return ScaledPlan(plan, 1 << dearest, dearest)
    scale = plan.columns[dearest]
    alike = [band for band in shaped if band == dearest or np.array_equal(plan.columns[band], scale)]
    return ScaledPlan(plan, sum(1 << band for band in alike), dearest)


def scalable(block: Block, given: Given) -> bool:
    """Return whether gradients come and go by tensors that hold the batch, in precisions of wide range."""
    if block.changes or block.narrow:
        return False
    for leaf, dim in zip(given.leaves, given.inputs.dims, strict=True):
        if isinstance(leaf, Tensor) and (_narrow(leaf) or (dim is None and leaf.requires_grad)):
            return False
    return True


Between = tuple[int, int]
"""The bands whose weights are the factors on either side of a border; -1: the plan's factors."""


class Ratios:
    """What gradients are multiplied by at the borders of one plan's blocks, made for all of them at once.

    crossings: all that a gradient may meet, as forward passes have made them.
    """

    def __init__(self, plan: Plan) -> None:
        self.crossings: list[Border] = []
        self._plan = plan
        self._made: dict[tuple[object, ...], dict[Between, Tensor | None]] = {}

    def between(self, ends: Between, grad: Tensor, dim: int) -> Tensor | None:
        """Return the ratios for a gradient with the batch in this dimension; None where all are 1.

        For one in bfloat16 they are in float32. Rounded, they would not cancel from one block to the next:
        what they are off would grow with the depth, to 5 % after 24 blocks.
        """
        key = (grad.dtype, queue(grad.device), grad.dim(), dim)
        made = self._made.get(key)
        if made is None or ends not in made:
            made = self._made[key] = self._make(ends, grad, dim)
        return made[ends]

    def _make(self, ends: Between, grad: Tensor, dim: int) -> dict[Between, Tensor | None]:
        pairs = list({ends, *(border.between for border in self.crossings)})
        scales = np.concatenate([self._plan.columns, self._plan.scale[None]])
        came, goes = zip(*pairs, strict=True)
        ratios = scales[list(goes)] / scales[list(came)]
        uneven = np.flatnonzero((ratios != 1.0).any(axis=1))
        made: dict[Between, Tensor | None] = dict.fromkeys(pairs)
        if len(uneven):
            shape = [len(uneven), *[1] * grad.dim()]
            shape[dim + 1] = -1
            dtype = torch.float32 if grad.dtype == torch.bfloat16 else grad.dtype
            sent = send(torch.from_numpy(ratios[uneven].reshape(shape)), grad.device, dtype)
            made.update(zip([pairs[number] for number in uneven], sent.unbind(), strict=True))
        return made


def ratios_of(plan: Plan) -> Ratios:
    """Return the ratios of a plan's blocks."""
    if plan.ratios is None:
        plan.ratios = Ratios(plan)
    return plan.ratios


@dataclass(slots=True, eq=False)
class Border:
    """Where a tensor's gradient comes from one plan and goes to another.

    block: what lies within; a single layer may as well. came, goes: the plans of the operations after and
    before the border, None outside of scaled blocks. plan: of the examples in the tensor; layout: where they
    lie. met: whether it was that of a block's result to the outside, and the next block has made it its own.
    """

    block: Block | Site
    came: ScaledPlan | None
    goes: ScaledPlan | None
    plan: ScaledPlan
    layout: Layout
    met: bool = False

    @property
    def between(self) -> Between:
        """Whose factors gradients come with, and go with: bands, -1 for those outside of blocks."""
        return (-1 if self.came is None else self.came.band, -1 if self.goes is None else self.goes.band)

    def turned(self, grad: Tensor) -> Tensor:
        """Return the gradient that goes on; in place where nobody else has it, which saves the memory."""
        if self.plan.mode.raw:
            return grad
        scale = ratios_of(self.plan.outer).between(self.between, grad, self.layout.dim)
        if scale is None:
            return grad
        own = type(grad) is Tensor and grad.is_contiguous() and holders(grad) <= alone()
        if scale.dtype != grad.dtype:
            return _multiplied(grad if own else grad.clone(), scale, self.layout.dim)
        return grad.mul_(scale) if own else grad * scale


def _multiplied(grad: Tensor, scale: Tensor, dim: int) -> Tensor:
    """Return a gradient multiplied in place by numbers of a wider precision, one for each example.

    On a CPU a product of two precisions takes ten times as long as one by a number.
    """
    if grad.device.type != "cpu":
        return grad.mul_(scale)
    for part, number in zip(grad.unbind(dim), scale.flatten().tolist(), strict=True):
        if number != 1.0:
            part.mul_(number)
    return grad


class BorderRows(Function):
    """x -> x. Its gradient is scaled by example."""

    @staticmethod
    def forward(ctx: Any, border: Border, x: Tensor) -> Tensor:
        ctx.border = border
        # Not a view to autograd, which would not let it be changed in place. It shares x's version.
        return x.detach()

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, ctx.border.turned(grad)


def holders(grad: Tensor) -> int:
    """Return how many references there are to a gradient, from Python and C++, and to its memory.

    It is compared with what it is for a gradient that is the caller's alone. Where this version of torch does
    not tell, it is more than that. To ask for `untyped_storage()` would itself hold the memory for as long as
    there is the gradient, and then nothing can be added to it in place.
    """
    try:
        storage = torch._C._storage_Use_Count(torch._C._storage_address(grad))  # type: ignore[attr-defined]
        return sys.getrefcount(grad) + int(grad._use_count()) + int(storage)  # type: ignore[attr-defined]
    except AttributeError:
        return sys.maxsize


class _Counter:
    """Stands in for a border, to count what holds a gradient that nobody else has."""

    def __init__(self) -> None:
        self.found = 0

    def turned(self, grad: Tensor) -> Tensor:
        self.found = holders(grad)
        return grad


@cache
def alone() -> int:
    """Return how many references there are, in a border, to a gradient that nobody else has."""
    counter = _Counter()
    with torch.enable_grad():
        x = torch.ones(1, requires_grad=True, device="cpu")
        y = BorderRows.apply(counter, x + 1.0)  # type: ignore[no-untyped-call]
        torch.autograd.grad(y * 2.0, x)
    return counter.found if counter.found < sys.maxsize else 0


class Result(NamedTuple):
    """A result of a scaled block, outside of the border and inside; version: of it then."""

    border: Border
    outside: Tensor
    inside: Tensor
    version: int


class Left:
    """The results of the last scaled block, as they were within it.

    The next block takes up from there, so that gradients are multiplied once between the two.
    """

    def __init__(self) -> None:
        self._plan: ScaledPlan | None = None
        self._results: dict[int, Result] = {}

    def keep(self, plan: ScaledPlan, result: Result) -> None:
        """Remember a result; those of other blocks are forgotten."""
        if self._plan is not plan:
            self.clear()
            self._plan = plan
        self._results[id(result.outside)] = result

    def find(self, plan: ScaledPlan, outside: Tensor) -> Result | None:
        """Return what a tensor is the outside of, if it is a result that is as it was."""
        known = self._results.get(id(outside))
        if known is None or self._plan is None or self._plan.outer is not plan.outer:
            return None
        return known if known.outside is outside and known.version == outside._version else None

    def clear(self) -> None:
        """Forget everything, and with it the graphs that it holds."""
        self._plan = None
        self._results.clear()


class ChangedInPlaceError(Exception):
    """A block has changed an argument, whose gradient is then no longer that of the tensor it came from."""


def run_scaled(
    block: Block,
    plan: ScaledPlan,
    given: Given,
    run: Run,
    left: Left,
) -> Any:
    """Run a block between borders; return its result.

    run: runs the block, under the plan. Raises ChangedInPlaceError, and UnlikePartsError
    where the result is not what the probe has seen.
    """
    alone()  # counted now, rather than within a backward pass
    leaves, outputs = given.leaves, given.outputs
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    versions = [tensor._version for tensor in tensors]
    entered = _enter(block, plan, leaves, given.inputs, left)
    results, result_spec = flatten_result(run(*unflatten_call(entered, given.spec)))
    if versions != [tensor._version for tensor in tensors]:
        raise ChangedInPlaceError
    alike = result_spec is outputs.spec or result_spec == outputs.spec
    if not alike or not outputs.fits(results, plan.batch):
        raise UnlikePartsError
    return unflatten_result(_leave(block, plan, results, outputs, left), result_spec)


def _enter(block: Block, plan: ScaledPlan, leaves: Leaves, inputs: Signature, left: Left) -> Leaves:
    """Return a block's arguments, with a border behind each that is differentiated.

    A result of the last block has a border already. It becomes that between the two, for as long as nobody
    else is seen to use the result.
    """
    found: dict[int, Tensor] = {}
    for leaf, dim in zip(leaves, inputs.dims, strict=True):
        if dim is None or not leaf.requires_grad or id(leaf) in found:
            continue
        known = left.find(plan, leaf)
        if known is not None and known.border.came is None and not known.border.block.shares:
            known.border.came, known.border.met = plan, True
            found[id(leaf)] = leaf
            continue
        goes, inside = (None, leaf) if known is None else (known.border.goes, known.inside)
        border = Border(block, plan, goes, plan, _layout(dim, leaf.dim()))
        ratios_of(plan.outer).crossings.append(border)
        found[id(leaf)] = BorderRows.apply(border, inside)  # type: ignore[no-untyped-call]
    return [found.get(id(leaf), leaf) for leaf in leaves]


def _leave(block: Block, plan: ScaledPlan, results: Leaves, outputs: Signature, left: Left) -> Leaves:
    """Return a block's results, with a border before each that is differentiated."""
    found: dict[int, Tensor] = {}
    for leaf, dim in zip(results, outputs.dims, strict=True):
        if dim is not None and leaf.requires_grad and id(leaf) not in found:
            found[id(leaf)] = _go_out(block, plan, leaf, _layout(dim, leaf.dim()), left)
    return [found.get(id(leaf), leaf) for leaf in results]


def _go_out(block: Block | Site, plan: ScaledPlan, inside: Tensor, layout: Layout, left: Left) -> Tensor:
    """Return a result as it is outside of the border."""
    border = Border(block, None, plan, plan, layout)
    ratios_of(plan.outer).crossings.append(border)
    outside: Tensor = BorderRows.apply(border, inside)  # type: ignore[no-untyped-call]
    left.keep(plan, Result(border, outside, inside, outside._version))
    return outside


def run_first(site: Site, plan: Plan, x: Tensor, layout: Layout, left: Left) -> Tensor | None:
    """Run a layer whose input needs no gradient as it is, with a border behind it.

    layout: where the examples lie in its output. Returns None where it must weigh rows itself.
    """
    band = site.own.bit_length() - 1
    if site.own != 1 << band or layout.interleaved or not plan.near(LIMIT)[band] or _narrow(x):
        return None
    output = site.stock(x)
    if not output.requires_grad or output.dtype in NARROW or output.shape[layout.dim] != plan.batch:
        return None
    return _go_out(site, ScaledPlan(plan, site.own, band), output, layout, left)


def _narrow(tensor: Tensor) -> bool:
    """Return whether a tensor, or what autocast makes of it, is of a precision in `NARROW`."""
    kind = tensor.device.type
    asked = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) in NARROW
    return asked or tensor.dtype in NARROW


@cache
def _layout(dim: int, rank: int) -> Layout:
    return Layout(dim, rank)
