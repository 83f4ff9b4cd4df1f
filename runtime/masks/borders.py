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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function

from gradwarden.policy.context import FloatArray
from gradwarden.runtime.masks.blocks import (
    NARROW,
    Block,
    Leaves,
    Signature,
    flatten_call,
    flatten_result,
    unflatten_call,
    unflatten_result,
)
from gradwarden.runtime.masks.call import differentiable_once
from gradwarden.runtime.masks.layout import Layout
from gradwarden.runtime.masks.parts import UnlikePartsError
from gradwarden.runtime.masks.plan import Plan
from gradwarden.runtime.masks.rows import Columns, Rows

LIMIT = 2.0**16
"""How far the weights of a block may be from the factors around it. Gradients times less might underflow."""


class ScaledPlan(Plan):
    """The plan of the same examples inside a block, with factors that suit its parameters.

    outer: the plan around the block. plainly: those of the block's bands whose parameters need no weighing
    inside it, as a bit mask. scale: the factors once more.
    """

    outer: Plan

    def __init__(self, outer: Plan, plainly: int, scale: FloatArray) -> None:
        self.outer, self.plainly, self.scale = outer, plainly, scale
        self.weights, self.mode, self.whole = outer.weights, outer.mode, outer.whole
        self.every, self.rows, self.examples = outer.every, outer.rows, self
        self.classes = None
        self.ways = {}

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
    members = [band for band in range(own.bit_length()) if own >> band & 1]
    shaped = [band for band in members if plan.shaped[band]]
    if not shaped:
        return None
    dearest = max(shaped, key=costs.__getitem__)
    if not plan.near(LIMIT)[dearest]:
        return None
    scale = plan.columns[dearest]
    alike = [band for band in shaped if band == dearest or np.array_equal(plan.columns[band], scale)]
    return ScaledPlan(plan, sum(1 << band for band in alike), scale)


def scalable(block: Block, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether gradients come and go by tensors that hold the batch, in precisions of wide range."""
    leaves, spec = flatten_call(args, kwargs)
    inputs, _ = block.signed(spec)
    if (
        block.changes
        or block.narrow
        or any(
            dim is None and isinstance(leaf, Tensor) and leaf.requires_grad
            for leaf, dim in zip(leaves, inputs.dims, strict=True)
        )
    ):
        return False
    kinds = {leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)}
    if any(torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) in NARROW for kind in kinds):
        return False
    return not any(isinstance(leaf, Tensor) and leaf.dtype in NARROW for leaf in leaves)


@dataclass(frozen=True, slots=True, eq=False)
class Border:
    """Where a tensor's gradient comes from one plan and goes to another.

    came, goes: the plans of the operations after and before the border, None outside of scaled blocks. plan:
    of the examples in the tensor; layout: where they lie. ratios: what their gradients are multiplied by.
    """

    block: Block
    came: ScaledPlan | None
    goes: ScaledPlan | None
    plan: Plan
    layout: Layout
    ratios: FloatArray

    def turned(self, grad: Tensor) -> Tensor:
        """Return the gradient that goes on; in place where nobody else has it, which saves the memory."""
        if self.plan.mode.raw or (self.ratios[0] == 1.0 and (self.ratios == 1.0).all()):
            return grad
        shape = [1] * grad.dim()
        shape[self.layout.dim] = -1
        ratios = torch.from_numpy(self.ratios.reshape(shape)).to(dtype=grad.dtype, device=grad.device)
        own = type(grad) is Tensor and grad.is_contiguous() and holders(grad) <= alone()
        return grad.mul_(ratios) if own else grad * ratios


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
    not tell, it is more than that.
    """
    try:
        storage = torch._C._storage_Use_Count(grad.untyped_storage()._cdata)
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


class Left:
    """The results of the last scaled block, as they were within it.

    The next block takes up from there, so that gradients are multiplied once between the two.
    """

    def __init__(self) -> None:
        self._plan: ScaledPlan | None = None
        self._results: dict[int, tuple[Tensor, int, Tensor]] = {}

    def keep(self, plan: ScaledPlan, outside: Tensor, inside: Tensor) -> None:
        """Remember a result; those of other blocks are forgotten."""
        if self._plan is not plan:
            self.clear()
            self._plan = plan
        self._results[id(outside)] = (outside, outside._version, inside)

    def find(self, plan: ScaledPlan, outside: Tensor) -> tuple[ScaledPlan, Tensor] | None:
        """Return where a tensor has been, and what it was there, if it is a result that is as it was."""
        known = self._results.get(id(outside))
        if known is None or self._plan is None or self._plan.outer is not plan.outer:
            return None
        return (self._plan, known[2]) if known[0] is outside and known[1] == outside._version else None

    def clear(self) -> None:
        """Forget everything, and with it the graphs that it holds."""
        self._plan = None
        self._results.clear()


def _ratios(came: Plan, goes: Plan) -> FloatArray:
    """Return what the gradient of each example is multiplied by on its way from one plan to another."""
    return goes.scale / came.scale


class ChangedInPlaceError(Exception):
    """A block has changed an argument, whose gradient is then no longer that of the tensor it came from."""


def run_scaled(
    block: Block,
    plan: ScaledPlan,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    run: Callable[[Any, Any], Any],
    left: Left,
) -> Any:
    """Run a block between borders; return its result.

    run: runs the block on (args, kwargs), under the plan. Raises ChangedInPlaceError, and UnlikePartsError
    where the result is not what the probe has seen.
    """
    alone()  # counted now, rather than within a backward pass
    leaves, spec = flatten_call(args, kwargs)
    inputs, outputs = block.signed(spec)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    versions = [tensor._version for tensor in tensors]
    entered = _enter(block, plan, leaves, inputs, left)
    results, result_spec = flatten_result(run(*unflatten_call(entered, spec)))
    if versions != [tensor._version for tensor in tensors]:
        raise ChangedInPlaceError
    alike = result_spec is outputs.spec or result_spec == outputs.spec
    if not alike or not outputs.fits(results, plan.batch):
        raise UnlikePartsError
    return unflatten_result(_leave(block, plan, results, outputs, left), result_spec)


def _enter(block: Block, plan: ScaledPlan, leaves: Leaves, inputs: Signature, left: Left) -> Leaves:
    """Return a block's arguments, with a border behind each that is differentiated."""
    found: dict[int, Tensor] = {}
    for leaf, dim in zip(leaves, inputs.dims, strict=True):
        if dim is not None and leaf.requires_grad and id(leaf) not in found:
            goes, inside = left.find(plan, leaf) or (None, leaf)
            border = Border(
                block, plan, goes, plan, Layout(dim, leaf.dim()), _ratios(plan, goes or plan.outer)
            )
            found[id(leaf)] = BorderRows.apply(border, inside)  # type: ignore[no-untyped-call]
    return [found.get(id(leaf), leaf) for leaf in leaves]


def _leave(block: Block, plan: ScaledPlan, results: Leaves, outputs: Signature, left: Left) -> Leaves:
    """Return a block's results, with a border before each that is differentiated."""
    found: dict[int, Tensor] = {}
    for leaf, dim in zip(results, outputs.dims, strict=True):
        if dim is not None and leaf.requires_grad and id(leaf) not in found:
            border = Border(block, None, plan, plan, Layout(dim, leaf.dim()), _ratios(plan.outer, plan))
            found[id(leaf)] = outside = BorderRows.apply(border, leaf)  # type: ignore[no-untyped-call]
            left.keep(plan, outside, leaf)
    return [found.get(id(leaf), leaf) for leaf in results]
