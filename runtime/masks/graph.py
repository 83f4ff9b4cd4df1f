"""Reading an autograd graph: how parameters are used, and whether rows are moved on the way to the losses."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from gradwarden.runtime.masks.blocks import Block
from gradwarden.runtime.masks.borders import BorderRows, ScaledPlan
from gradwarden.runtime.masks.layers import OPERATIONS
from gradwarden.runtime.masks.narrow import NARROW, narrow_at
from gradwarden.runtime.masks.parts import DivideRows, JoinRows
from gradwarden.runtime.masks.pieces import PieceRows
from gradwarden.runtime.masks.sites import Site
from gradwarden.runtime.masks.trial import tolerance
from gradwarden.runtime.masks.walk import nodes

_FUNCTIONS = (*(operation.function for operation in OPERATIONS), PieceRows)
_PLACED = (*_FUNCTIONS, BorderRows)

_MOVERS = frozenset(
    [
        *("AsStrided", "EmbeddingBag", "Embedding", "GroupedMm", "Put", "SegmentReduce", "SparseAddmm"),
        *("Index", "IndexAdd", "IndexCopy", "IndexPut", "IndexPutImpl", "IndexReduce", "IndexSelect"),
        *("MaskedScatter", "MaskedSelect", "Scatter", "ScatterAdd", "ScatterReduce", "Sort", "Take", "Topk"),
        *("PackPaddedSequence", "CopySlices", "CompiledFunction"),
    ]
)
"""Operations that place rows by the values of a tensor, or may: what was compiled cannot be looked into."""

_PRODUCTS = frozenset(["Addbmm", "Addmm", "Addmv", "Baddbmm", "Bmm", "Mm", "Mv"])
"""Products of matrices, the last two of what they are given. A constant one can be a permutation."""

_DETAILS = {
    "Roll": ("_saved_shifts",),
    "Select": ("_saved_dim", "_saved_index"),
    "Slice": ("_saved_start", "_saved_end"),
    "SplitWithSizes": ("_saved_split_sizes",),
}
"""Operations that place rows by numbers, and the numbers."""

_LAYER, _BORDER, _JOIN, _MOVER, _CAST = "layer", "border", "join", "mover", "cast"
_DIVISION = "division"
"""What nodes are that are more than an operation: see `Uses`."""

_SEAMS = {BorderRows: _BORDER, JoinRows: _JOIN, DivideRows: _DIVISION}
"""What stands where blocks begin and end."""

_roles: dict[type, str] = {}
"""Kinds of nodes seen so far, and what they are; empty for ordinary operations, which nearly all are."""


@dataclass(frozen=True, slots=True, eq=False)
class Uses:
    """What one walk of a graph has found.

    ordinary: ids of the parameters reached by ordinary operations; weighing: of those reached by weighing
    layers, and by whatever operation where their gradients come scaled as they should be; amiss: of those
    of the ordinary ones whose gradients come scaled otherwise. leaves: all other tensors that the graph ends
    in. calls: the nodes of weighing layers and pieces. joins: the nodes where blocks that ran in
    parts were joined. borders: those where gradients are scaled. crossed: whether gradients come into a
    scaled block, or out of it, by another way than those. shared: blocks whose results go to others too than
    the block that has taken their borders for its own. moved: whether rows of a weighing layer's output
    are placed by content before they reach the losses. narrow: whether some part computes in a precision of
    narrow range; strained: whether one does so within a scaled block. sign: equal for graphs of the same
    operations, wired the same way.
    """

    ordinary: set[int]
    weighing: set[int]
    amiss: set[int]
    leaves: Sequence[Tensor]
    calls: Sequence[Any]
    joins: Sequence[Any]
    borders: Sequence[Any]
    crossed: bool
    shared: Sequence[Block | Site]
    moved: bool
    narrow: bool
    strained: bool
    sign: int


def uses(
    losses: Tensor,
    parameters: Mapping[int, int],
    plainly: int = 0,
    still: Collection[Any] = (),
    fixed: Callable[[], Collection[int]] = tuple,
) -> Uses:
    """Walk the whole graph of the losses once. parameters: the bands of those that are asked about, by id.

    plainly: the bands, as a bit mask, that need no weighing outside of scaled blocks. still: the nodes in
    which layers with a frozen weight have ended. fixed: returns the memory of all frozen parameters. Weighing
    layers have their own autograd functions, and scaled blocks their borders; every other edge into a
    parameter is a use whose gradient is not weighed.
    """
    ordinary: set[int] = set()
    weighing: set[int] = set()
    amiss: set[int] = set()
    leaves: list[Tensor] = []
    special: dict[str, list[Any]] = {_LAYER: [], _BORDER: [], _JOIN: [], _MOVER: [], _DIVISION: []}
    sign: list[Any] = []
    crossed = narrow = strained = False
    shared: list[Block | Site] = []
    leaf_kind, roles, new = _leaf_kind(), _roles, object()
    pending: list[Any] = [losses.grad_fn]
    # Every node with the plan by which the gradients are scaled that reach it: None outside of scaled blocks.
    seen: dict[Any, Any] = {None: None, losses.grad_fn: None}
    while pending:
        node = pending.pop()
        inside = seen[node]
        kind = type(node)
        role = roles.get(kind)
        if role is None:
            role = _learn(kind)
        sign.append(kind)
        if (role is _CAST and narrow_at(node)) or (role is _LAYER and _narrow_layer(node)):
            narrow, strained = True, strained or inside is not None
        if role and role is not _CAST:
            if role is _LAYER:
                crossed = crossed or _plan_of(node) is not inside
            elif role is _BORDER:
                border = node.border
                if border.came is not inside and not border.met:
                    crossed = True
                elif border.came is not inside:
                    shared.append(border.block)
                inside = border.goes
            if role is not _MOVER or _moves(node, sign):
                special[role].append(node)
        for following, output in node.next_functions:
            if type(following) is leaf_kind:
                leaf = following.variable
                key = id(leaf)
                band = parameters.get(key)
                if band is None:
                    leaves.append(leaf)
                elif role is _LAYER or (plainly if inside is None else inside.plainly) >> band & 1:
                    weighing.add(key)
                else:
                    ordinary.add(key)
                    if inside is not None:
                        amiss.add(key)
                continue
            sign.append(output)
            known = seen.get(following, new)
            if known is new:
                seen[following] = inside
                pending.append(following)
            elif known is not inside and following is not None:
                border = getattr(following, "border", None)
                if border is not None and border.met:
                    shared.append(border.block)
                else:
                    crossed = True
    movers = _unlike_weights(special[_MOVER], still, special[_JOIN], special[_DIVISION])
    moved = _above_a_layer(_uncontained(_unfixed(movers, fixed), seen, special[_BORDER]))
    calls, joins, borders = special[_LAYER], special[_JOIN], special[_BORDER]
    total = hash(tuple(sign))
    ways = (crossed, shared, moved, narrow, strained)
    return Uses(ordinary, weighing, amiss, leaves, calls, joins, borders, *ways, total)


@contextmanager
def collecting_later() -> Iterator[None]:
    """Inside, the garbage collector does not run, of the whole process, which is for milliseconds.

    A walk holds a Python object for every node, thousands in deep models, and lets go of them at its end.
    Taken for objects that stay, they bring on rounds of the collector, long ones every few steps.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def ends(losses: Tensor, nodes: Collection[Any]) -> list[Any]:
    """Return those of some nodes of a graph from which no way leads on to another one of them."""
    leads: dict[Any, bool] = {None: False}
    pending: list[tuple[Any, bool]] = [(losses.grad_fn, False)]
    found: list[Any] = []
    while pending:
        node, finished = pending.pop()
        if finished:
            leads[node] = any(leads[following] or following in nodes for following, _ in node.next_functions)
            if node in nodes and not leads[node]:
                found.append(node)
        elif node not in leads:
            leads[node] = False
            pending.append((node, True))
            pending += [(following, False) for following, _ in node.next_functions]
    return found


def _plan_of(node: Any) -> ScaledPlan | None:
    """Return the plan of the scaled block that a weighing layer or a piece has been run in."""
    plan = (getattr(node, "call", None) or node.run).plan
    return plan if isinstance(plan, ScaledPlan) else None


def _narrow_layer(node: Any) -> bool:
    """Return whether a layer or a piece has an output of a narrow precision, or is narrow within."""
    if node._input_metadata[0].dtype in NARROW:
        return True
    run = getattr(node, "run", None)
    return run is not None and bool(run.narrow)


def narrows(losses: Tensor) -> bool:
    """Return whether some part of a graph without weighing layers computes in a precision of narrow range."""
    return any(narrow_at(node) for node in nodes([losses.grad_fn]) if _name(type(node)) == "ToCopy")


def coarsest(losses: Tensor) -> float:
    """Return the relative error that rounding may cause in the gradients of losses, by their precisions.

    A model may run a part of itself in a lower precision than its parameters and losses have.
    """
    found = tolerance(losses.dtype)
    for node in nodes([losses.grad_fn], pieces=True):
        kinds = [meta.dtype for meta in node._input_metadata if meta is not None]
        found = max(found, *(tolerance(kind) for kind in kinds if kind.is_floating_point))
    return found


@cache
def _leaf_kind() -> Any:
    """Return the kind of the nodes in which a graph ends at tensors that are differentiated."""
    with torch.inference_mode(False), torch.enable_grad():
        end = torch.ones(1, requires_grad=True, device="cpu").expand(1)
    assert end.grad_fn is not None
    return type(end.grad_fn.next_functions[0][0])


def _learn(kind: type) -> str:
    """Return what nodes of a kind are, and remember it."""
    own = getattr(kind, "_forward_cls", None)  # of autograd functions in Python
    name = _name(kind)
    if own in _FUNCTIONS:
        role = _LAYER
    elif own in _SEAMS:
        role = _SEAMS[own]
    elif name == "ToCopy":
        role = _CAST
    else:
        watched = name in _MOVERS or name in _PRODUCTS or name in _DETAILS or name == "Gather"
        role = _MOVER if watched or name.startswith("Nested") else ""
    _roles[kind] = role
    return role


def _name(kind: type) -> str:
    """Return the name of an operation."""
    return kind.__name__.split("Backward")[0]


def _moves(node: Any, sign: list[Any]) -> bool:
    """Return whether a node may move rows; add to the graph's sign the numbers by which it does."""
    name, edges = _name(type(node)), node.next_functions
    if name in _DETAILS:
        if getattr(edges[0][0], "variable", None) is None:
            sign.extend(getattr(node, detail) for detail in _DETAILS[name])
        return False
    if name in _PRODUCTS:
        return edges[-2][0] is None or edges[-1][0] is None
    if name == "AsStrided":
        return not _stays(node)
    return name != "Gather" or not _picks_one(node)


def _stays(node: Any) -> bool:
    """Return whether new strides leave a mean where it is: to pool a picture into one place ends in that."""
    before, output = node.next_functions[0]
    if before is None or _name(type(before)) != "Mean":
        return False
    sizes, strides = tuple(node._saved_size), tuple(node._saved_stride)
    step, dense = 1, not node._saved_storage_offset
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        dense = dense and (size == 1 or stride == step)
        step *= size
    return dense and sizes == tuple(before._input_metadata[output].shape)


def _picks_one(node: Any) -> bool:
    """Return whether a gather takes one entry along its dimension, as losses take the target's."""
    shape = node._input_metadata[0].shape
    dim = node._saved_dim
    dim = dim - 2**64 if dim >= 2**63 else dim
    return len(shape) > 1 and shape[dim] == 1


def _unlike_weights(
    movers: Sequence[Any], still: Collection[Any], joins: Sequence[Any], divisions: Sequence[Any]
) -> Sequence[Any]:
    """Return those of the nodes whose constants are no frozen weights. still: see `uses`.

    Where a part of the batch goes through a block with its parameters frozen, all its weights are constants.
    What is one besides shows in the other part, which ran the same block.
    """
    if not movers or not (still or joins):
        return movers
    # Of a layer the product is last, or last but for a change of shape.
    reshaped = ("View", "UnsafeView")
    frozen = {end.next_functions[0][0] if _name(type(end)) in reshaped else end for end in still}
    parts = [node.next_functions[1][0] for node in joins if node.join.partition.graphs > 1]
    frozen.update(nodes(parts, divisions))
    return [node for node in movers if node not in frozen]


_FACTORS = {"Addmm": "mat2", "Mm": "mat2", "Bmm": "mat2", "Addbmm": "batch2", "Baddbmm": "batch2"}
"""What products call their right factor."""


def _unfixed(movers: Sequence[Any], fixed: Callable[[], Collection[int]]) -> Sequence[Any]:
    """Return those of the nodes that do not multiply by a frozen parameter from the right, as layers do.

    fixed: see `uses`; it goes through the whole model, so it is asked for a product alone.
    """
    products = {node: factor for node in movers if (factor := _factor(node)) is not None}
    known = fixed() if products else ()
    return [node for node in movers if products.get(node) not in known]


def _factor(node: Any) -> int | None:
    """Return the memory of a constant that a node multiplies by from the right; None for other nodes."""
    name = _FACTORS.get(_name(type(node)))
    if name is None or node.next_functions[-1][0] is not None or node.next_functions[-2][0] is None:
        return None
    try:
        constant = getattr(node, f"_saved_{name}")
    except RuntimeError:  # written since, or given up
        return None
    return None if constant is None else constant.untyped_storage()._cdata


def _uncontained(movers: Sequence[Any], plans: Mapping[Any, Any], borders: Sequence[Any]) -> Sequence[Any]:
    """Return those of the nodes that may move rows of what goes into a scaled block or comes out of it.

    plans: of every node the scaled block's that it is in. Within one, nothing asks whose rows are whose.
    Where all that it hands out is something that it was given, and more added to it, rows are where they
    were: moved ones would be added to those of other examples.
    """
    within = {plan for node in movers if (plan := plans[node]) is not None}
    adding = {plan for plan in within if _adds(plan, borders)}
    return [node for node in movers if plans[node] not in adding]


def _adds(plan: ScaledPlan, borders: Sequence[Any]) -> bool:
    """Return whether sums alone lead from each result of a block to an argument, and to every one."""
    arguments = {node for node in borders if node.border.came is plan}
    reached = [_summands(node, arguments) for node in borders if node.border.goes is plan]
    return all(reached) and set().union(*reached) == arguments


def _summands(result: Any, arguments: Collection[Any]) -> set[Any]:
    """Return the arguments of a block that one of its results is a sum of, with other things.

    None where a difference is among those, which may take an argument away again.
    """
    shape, found = result._input_metadata[0].shape, set()
    pending = [following for following, _ in result.next_functions]
    while pending:
        node = pending.pop()
        if node is None or node._input_metadata[0].shape != shape:
            continue
        name = _name(type(node))
        if node in arguments:
            found.add(node)
        elif name in ("Neg", "Rsub", "Sub") or getattr(node, "_saved_alpha", 1) != 1:
            return set()
        elif name == "Add":
            pending += [following for following, _ in node.next_functions]
    return found


def _above_a_layer(movers: Sequence[Any]) -> bool:
    """Return whether a weighing layer lies between the model's inputs and any of the nodes."""
    return any(getattr(node, "_forward_cls", None) in _PLACED for node in nodes(movers))
