"""Running a block in parts of the batch, as who may shape what allows.

An example that may shape neither a block nor anything before it needs no gradient there: its rows go through
the block without a graph. An example that may not shape the block, but something before it, needs the block's
input gradients alone: its rows go through the block with the parameters frozen. The others go through the
block as it is. The results are put together in the batch's order.

The gradients are those of the whole batch in one piece. What is saved is the backward pass of everything in
the block for rows without a graph, attention and activations included, and its memory; for rows with frozen
parameters it is the gradients of these, with no gathering of rows layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function

from gradwarden.runtime.masks.blocks import (
    Block,
    Given,
    Leaves,
    Signature,
    flatten_result,
    holds,
    unflatten_result,
)
from gradwarden.runtime.masks.call import differentiable_once
from gradwarden.runtime.masks.layout import Layout
from gradwarden.runtime.masks.plan import Partition, Plan
from gradwarden.runtime.masks.rows import Rows

Run: TypeAlias = Callable[[tuple[Any, ...], dict[str, Any]], Any]
"""Runs a block on the arguments of some rows."""

RunGiven: TypeAlias = Callable[[Given], Any]
"""Does so with what is known of them."""


class UnlikePartsError(Exception):
    """The parts of a block's result do not fit together."""


class DivideRows(Function):
    """x -> some parts of its rows. The gradient of the others is zero."""

    @staticmethod
    def forward(ctx: Any, parts: Sequence[Rows], layout: Layout, x: Tensor) -> tuple[Tensor, ...]:
        ctx.parts, ctx.layout, ctx.shape = parts, layout, x.shape
        ctx.set_materialize_grads(False)
        picked = (rows.pick(x, layout) for rows in parts)
        # A view of an input could not be changed in place by the block.
        return tuple(part if part._base is None else part.clone() for part in picked)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        given = [(rows, grad) for rows, grad in zip(ctx.parts, grads, strict=True) if grad is not None]
        if not given:
            return None, None, None
        some = given[0][1]
        every = sum(rows.count for rows, _ in given) == given[0][0].batch
        whole = some.new_empty(ctx.shape) if every else some.new_zeros(ctx.shape)
        for rows, grad in given:
            rows.place(whole, grad, ctx.layout)
        return None, None, whole


class JoinRows(Function):
    """Parts of a batch -> all rows in order. Gradients go to those parts that have a graph."""

    @staticmethod
    def forward(ctx: Any, join: Join, *parts: Tensor) -> Tensor:
        ctx.join = join
        return join.join(parts)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        join = ctx.join
        return None, *(
            rows.pick(grad, join.layout) if wanted else None
            for rows, wanted in zip(join.partition.rows, ctx.needs_input_grad[1:], strict=True)
        )


@dataclass(frozen=True, slots=True, eq=False)
class Join:
    """Which rows of a joined tensor come from where."""

    partition: Partition
    block: Block
    layout: Layout

    @property
    def plan(self) -> Plan:
        """The plan of the whole batch."""
        return self.partition.plan

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Return all rows in the batch's order: in one go where the parts follow on one another."""
        spans = [rows.span for rows in self.partition.rows]
        order = sorted((span[0], number) for number, span in enumerate(spans) if span is not None)
        if len(order) == len(parts):
            return torch.cat([parts[number] for _, number in order], self.layout.dim)
        shape = list(parts[0].shape)
        shape[self.layout.dim] = self.plan.batch
        result = parts[0].new_empty(shape)
        for rows, part in zip(self.partition.rows, parts, strict=True):
            rows.place(result, part, self.layout)
        return result


@dataclass(slots=True, eq=False)
class Joined:
    """The last joined tensors of a batch and their parts, so that the next block need not take them apart."""

    partition: Partition | None = None
    parts: dict[int, tuple[Tensor, int, Sequence[Tensor]]] = field(default_factory=dict)

    def keep(self, partition: Partition, whole: Tensor, parts: Sequence[Tensor]) -> None:
        """Remember the parts of a tensor; those joined of other rows are forgotten."""
        if self.partition is not partition:
            self.clear()
            self.partition = partition
        self.parts[id(whole)] = (whole, whole._version, parts)

    def find(self, partition: Partition, whole: Tensor) -> Sequence[Tensor] | None:
        """Return the parts of a tensor, if it is as it was joined from the same rows."""
        known = self.parts.get(id(whole)) if self.partition is partition else None
        if known is None or known[0] is not whole or known[1] != whole._version:
            return None
        return known[2]

    def clear(self) -> None:
        """Forget everything, and with it the graphs that it holds."""
        self.partition = None
        self.parts.clear()


def run_in_parts(
    block: Block,
    partition: Partition,
    given: Given,
    runs: Sequence[RunGiven],
    joined: Joined,
) -> Any:
    """Run a block part by part; return the joined result.

    runs: one for each part that has a graph, one for that which has none. Raises UnlikePartsError.
    """
    outputs = given.outputs
    parts = _divide(given.leaves, given.inputs, partition, joined)
    results = []
    for number, part in enumerate(parts):
        own = Given(part, given.spec, given.signatures, given.fault)
        if number < partition.graphs:
            result = runs[number](own)
        else:
            with beside_graph():
                result = runs[-1](own)
        found, found_spec = flatten_result(result)
        if found_spec is not outputs.spec and found_spec != outputs.spec:
            raise UnlikePartsError
        results.append(found)
    whole = [
        same[0] if dim is None else _join(Join(partition, block, Layout(dim, same[0].dim())), same, joined)
        for same, dim in zip(zip(*results, strict=True), outputs.dims, strict=True)
    ]
    return unflatten_result(whole, outputs.spec)


def _divide(leaves: Leaves, inputs: Signature, partition: Partition, joined: Joined) -> list[Leaves]:
    """Return the arguments of each part."""
    divided: list[Sequence[Any]] = []
    for leaf, dim in zip(leaves, inputs.dims, strict=True):
        known = None if dim is None else joined.find(partition, leaf)
        if dim is None:
            divided.append([leaf] * len(partition.rows))
        elif known is not None:
            divided.append(known)
        else:
            divided.append(_parts_of(leaf, Layout(dim, leaf.dim()), partition))
    return [list(part) for part in zip(*divided, strict=True)]


def _parts_of(leaf: Tensor, layout: Layout, partition: Partition) -> list[Tensor]:
    rows, graphs = partition.rows, partition.graphs
    if not leaf.requires_grad:
        return [part.pick(leaf, layout) for part in rows]
    kept: tuple[Tensor, ...] = DivideRows.apply(rows[:graphs], layout, leaf)  # type: ignore[no-untyped-call]
    return [*kept, *(part.pick(leaf.detach(), layout) for part in rows[graphs:])]


def _join(join: Join, parts: Sequence[Any], joined: Joined) -> Tensor:
    dim, first = join.layout.dim, parts[0]
    for rows, part in zip(join.partition.rows, parts, strict=True):
        if not holds(part, dim, rows.count) or part.dtype != first.dtype:
            raise UnlikePartsError
        if _other_sizes(part, dim) != _other_sizes(first, dim):
            raise UnlikePartsError
    if not any(part.requires_grad for part in parts):
        return join.join(parts)
    whole: Tensor = JoinRows.apply(join, *parts)  # type: ignore[no-untyped-call]
    joined.keep(join.partition, whole, parts)
    return whole


def _other_sizes(tensor: Tensor, dim: int) -> tuple[int, ...]:
    return tuple(tensor.shape[:dim]) + tuple(tensor.shape[dim + 1 :])


@contextmanager
def without_graph() -> Iterator[None]:
    """Inside, nothing is recorded, and weights that autocast converts are not kept for later use.

    A converted weight that was kept without a graph would be used again, without one, where a gradient is
    wanted.
    """
    cache = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(cache)


@contextmanager
def beside_graph() -> Iterator[None]:
    """Inside, nothing is recorded of rows whose block has run on others with a graph already.

    Weights that autocast has converted for those serve again. Afterwards it forgets all of them, and so what
    was converted without a graph: some releases of torch would use that where a gradient is wanted.
    """
    try:
        with torch.no_grad():
            yield
    finally:
        torch.clear_autocast_cache()


@contextmanager
def frozen(block: Block) -> Iterator[None]:
    """Inside, no parameter of a block is trained: gradients go to the block's inputs alone."""
    trained = [parameter for parameter in block.parameters if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
