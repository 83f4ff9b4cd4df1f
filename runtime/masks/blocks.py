"""Repeated blocks of a model, and what the probe learns of how they are called.

A block whose arguments and results are known, and where they hold the batch, can be run in parts (`parts`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gradwarden.runtime.masks.bands import BandIndex
from gradwarden.runtime.masks.layers.convolution import ConvolutionRows
from gradwarden.runtime.masks.layout import Layout
from gradwarden.runtime.masks.narrow import NARROW, narrows_within
from gradwarden.runtime.masks.planner import BlockCost
from gradwarden.runtime.masks.sites import Site
from gradwarden.runtime.masks.trial import differ, random_states

Leaves = list[Any]

_CONSTANTS = (type(None), bool, int, float, str, torch.dtype, torch.device)
"""Arguments that mean the same for any part of a batch."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What the arguments, or the results, of a block's call look like.

    spec: the tree that holds them. dims: for each leaf, the dimension that holds the batch; None where the
    leaf is the same for any part of the batch.
    """

    spec: Any
    dims: tuple[int | None, ...]

    def fits(self, leaves: Leaves, batch: int) -> bool:
        """Return whether leaves of this tree have the batch where it was found."""
        for leaf, dim in zip(leaves, self.dims, strict=True):
            if not (_constant(leaf) if dim is None else holds(leaf, dim, batch)):
                return False
        return True


@dataclass(slots=True, eq=False)
class Given:
    """What a block is called with, looked at once for all who run it.

    leaves, spec: of the arguments. signatures: of arguments and results, where such a call is known. fault:
    why it cannot be run in parts, empty where it can.
    """

    leaves: Leaves
    spec: Any
    signatures: tuple[Signature, Signature] | None
    fault: str

    @property
    def inputs(self) -> Signature:
        """What the arguments of a call look like that is known."""
        assert self.signatures is not None
        return self.signatures[0]

    @property
    def outputs(self) -> Signature:
        """What its results look like."""
        assert self.signatures is not None
        return self.signatures[1]

    def cost(self, block: Block) -> BlockCost:
        """Return what the block costs that is called."""
        if self.fault:
            return BlockCost(block.size, 1, "cpu")
        largest = _largest(self.leaves, self.inputs.dims)
        positions = round(_positions(largest) * block.thinning)
        return BlockCost(block.size, positions, largest.device.type, block.convolves)


@dataclass(slots=True, eq=False)
class Block:
    """One repeated block.

    own: the bands of its parameters, as a bit mask. before: those of all layers called before it, as far as
    seen; grows only. size: how many numbers its `parameters` have. inputs: how it may be called, with the
    signature of its results; learned by the probe. fault: why it cannot be run in parts, empty where it can.
    random: whether it draws random numbers; changes: whether it changes an argument in place; narrow: whether
    it has parameters of a precision in `NARROW` or computes in one; recomputed: whether layers within it have
    been recomputed in a backward pass. convolves: whether convolutions are among its layers. thinning:
    how many positions its results have for each of its arguments; below 1 where it makes pictures smaller.
    """

    name: str
    module: nn.Module
    own: int
    size: int
    parameters: tuple[nn.Parameter, ...] = ()
    before: int = 0
    inputs: dict[Any, tuple[Signature, Signature]] = field(default_factory=dict)
    fault: str = "it was not called while the model was probed"
    random: bool = False
    changes: bool = False
    narrow: bool = False
    recomputed: bool = False
    shares: bool = False
    convolves: bool = False
    thinning: float = 1.0
    _last: tuple[Any, Any, tuple[Signature, Signature] | None] | None = None

    def given(self, args: tuple[Any, ...], kwargs: dict[str, Any], batch: int) -> Given:
        """Return what the block is called with, and what is known of such calls."""
        leaves, spec = flatten_call(args, kwargs)
        known = self._signatures(spec)
        fault = ""
        if known is None or not known[0].fits(leaves, batch):
            fault = self.fault or "it is called otherwise than when the model was probed"
        return Given(leaves, spec, known, fault)

    def _signatures(self, spec: Any) -> tuple[Signature, Signature] | None:
        """Return what arguments of this tree, and the results of such a call, look like, if that is known.

        The tree of the last call is known by its identity: to hash one takes longer than all else here.
        """
        if self._last is None or self._last[0] is not spec or self._last[1] is not self.inputs:
            self._last = (spec, self.inputs, self.inputs.get(spec))
        return self._last[2]

    def give_up(self, fault: str) -> None:
        """Run the block in one piece from now on."""
        self.fault = fault
        self.inputs = {}

    def stock(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block as its class defines it."""
        return type(self.module).forward(self.module, *args, **kwargs)


def find_blocks(model: nn.Module, sites: Sequence[Site], bands: BandIndex) -> Iterator[Block]:
    """Yield the elements of the model's repeated containers that hold at least two supported layers.

    Of blocks within blocks the outer one counts, unless it spans several bands and the inner ones are finer.
    """
    weighing = {id(site.module) for site in sites}
    convolving = {id(site.module) for site in sites if site.operation.function is ConvolutionRows}
    found: dict[str, nn.Module] = {}
    for name, container in model.named_modules():
        if isinstance(container, nn.ModuleList | nn.Sequential) and len(container) > 1:
            for key, module in container.named_children():
                layers = sum(id(inner) in weighing for inner in module.modules())
                if layers > 1 and "forward" not in module.__dict__:
                    found.setdefault(f"{name}.{key}" if name else key, module)
    seen: set[int] = set()
    for name, module in found.items():
        own = _own_bands(module, bands)
        inner = any(other.startswith(name + ".") for other in found)
        outer = any(
            name.startswith(other + ".") and _kept(other, found, bands) for other in found if other != name
        )
        if outer or (inner and own.bit_count() > 1) or id(module) in seen:
            continue
        seen.add(id(module))
        parameters = tuple(module.parameters())
        convolves = any(id(inner) in convolving for inner in module.modules())
        size = sum(p.numel() for p in parameters)
        yield Block(name, module, own, size, parameters, convolves=convolves)


def _kept(name: str, found: dict[str, nn.Module], bands: BandIndex) -> bool:
    inner = any(other.startswith(name + ".") for other in found)
    return not (inner and _own_bands(found[name], bands).bit_count() > 1)


def _own_bands(module: nn.Module, bands: BandIndex) -> int:
    own = {bands.home[id(p)] for p in module.parameters() if id(p) in bands.home}
    return sum(1 << band for band in own)


# --- what calls look like -----------------------------------------------------------------------------------

_ONE, _ALONE = pytree.tree_flatten(((None,), {}))[1], pytree.tree_flatten(None)[1]


def flatten_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Leaves, Any]:
    """Return the leaves of a call's arguments and their tree; a single tensor needs no search."""
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
        return [args[0]], _ONE
    return pytree.tree_flatten((args, kwargs))


def flatten_result(result: Any) -> tuple[Leaves, Any]:
    """Return the leaves of a call's result and their tree."""
    return ([result], _ALONE) if isinstance(result, Tensor) else pytree.tree_flatten(result)


def unflatten_call(leaves: Leaves, spec: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments that leaves stand for."""
    return ((leaves[0],), {}) if spec is _ONE else pytree.tree_unflatten(leaves, spec)


def unflatten_result(leaves: Leaves, spec: Any) -> Any:
    """Return the result that leaves stand for."""
    return leaves[0] if spec is _ALONE else pytree.tree_unflatten(leaves, spec)


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """One call of a block in a plain run.

    random: whether it drew random numbers; kept: whether it left the buffers of the block alone; changes:
    whether it changed an argument in place; narrow: whether it computed in a precision of `NARROW`.
    """

    inputs: Leaves
    inputs_spec: Any
    outputs: Leaves
    outputs_spec: Any
    random: bool
    kept: bool
    changes: bool
    narrow: bool

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that carry gradients into and out of the block."""
        return [x for x in (*self.inputs, *self.outputs) if isinstance(x, Tensor) and x.requires_grad]


def observe(block: Block, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Seen]:
    """Run a block plainly; return its result and what was seen."""
    inputs, inputs_spec = flatten_call(args, kwargs)
    states, versions = random_states(), _versions(block.module)
    before = [leaf._version for leaf in inputs if isinstance(leaf, Tensor)]
    result = block.stock(*args, **kwargs)
    outputs, outputs_spec = flatten_result(result)
    random = differ(states, random_states())
    kept = versions == _versions(block.module)
    changes = before != [leaf._version for leaf in inputs if isinstance(leaf, Tensor)]
    narrow = _narrow_within(inputs, outputs)
    return result, Seen(inputs, inputs_spec, outputs, outputs_spec, random, kept, changes, narrow)


def _narrow_within(inputs: Leaves, outputs: Leaves) -> bool:
    """Return whether a block computes in a precision of `NARROW`, as autocast of its own makes it do."""
    came, goes = (
        [leaf.grad_fn for leaf in leaves if isinstance(leaf, Tensor)] for leaves in (inputs, outputs)
    )
    return narrows_within(goes, stops=came)


def learn(
    block: Block,
    small: Sequence[Seen],
    large: Sequence[Seen],
    sizes: tuple[int, int],
    owned: Callable[[Tensor, Layout], bool],
) -> None:
    """Set how a block may be called from its calls in two runs of different batch size, or its fault.

    owned: tells whether each example's loss touches only that example's rows of a tensor of the larger run.
    """
    block.inputs = {}
    block.random = any(call.random for call in large)
    block.changes = any(call.changes for call in (*small, *large))
    computed = any(call.narrow for call in (*small, *large))
    block.narrow = computed or any(p.dtype in NARROW for p in block.module.parameters())
    block.fault = "" if large else "it was not called while the model was probed"
    if len(small) != len(large):
        block.fault = "it is called more or less often by the size of the batch"
    for few, many in zip(small, large, strict=False):
        fault = _learn_call(block, few, many, sizes, owned)
        if fault:
            block.fault = fault
    if block.fault:
        block.inputs = {}


def _learn_call(
    block: Block, few: Seen, many: Seen, sizes: tuple[int, int], owned: Callable[[Tensor, Layout], bool]
) -> str:
    """Add the signature of one call to a block; return why it cannot be run in parts, if so."""
    if not many.kept:
        return "it changes its own buffers"
    if few.inputs_spec != many.inputs_spec or few.outputs_spec != many.outputs_spec:
        return "its arguments or results have another structure by the size of the batch"
    dims_in = _dims(few.inputs, many.inputs, sizes)
    dims_out = _dims(few.outputs, many.outputs, sizes)
    for what, leaves, dims in (("argument", many.inputs, dims_in), ("result", many.outputs, dims_out)):
        if -1 in dims:
            return f"it is unclear which part of its {what} `{_describe(leaves[dims.index(-1)])}` is whose"
    if None in (dim for leaf, dim in zip(many.outputs, dims_out, strict=True) if isinstance(leaf, Tensor)):
        return "a result of it is no example's"
    if not any(dim is not None for dim in dims_in):
        return "none of its arguments holds the batch"
    for leaf, dim in zip((*many.inputs, *many.outputs), (*dims_in, *dims_out), strict=True):
        if dim is not None and leaf.requires_grad and not owned(leaf, Layout(dim, leaf.dim())):
            return "rows of its arguments or results are not where its shapes suggest"
    came, goes = _largest(many.inputs, dims_in), _largest(many.outputs, dims_out)
    block.thinning = _positions(goes) / max(1, _positions(came)) if came.dim() == goes.dim() else 1.0
    learned = (Signature(many.inputs_spec, dims_in), Signature(many.outputs_spec, dims_out))
    if block.inputs.setdefault(many.inputs_spec, learned) != learned:
        return "it is called in different ways that look the same"
    return ""


def _largest(leaves: Leaves, dims: Sequence[int | None]) -> Tensor:
    """Return the largest tensor that holds the batch."""
    held: list[Tensor] = [leaf for leaf, dim in zip(leaves, dims, strict=True) if dim is not None]
    return held[0] if len(held) == 1 else max(held, key=Tensor.numel)


def _positions(tensor: Tensor) -> int:
    """Return how many positions an example has: [B, T, features] or [B, channels, *].

    Each of them passes through the parameters of a layer.
    """
    return tensor.shape[1] if tensor.dim() == 3 else tensor.shape[2:].numel()


def _dims(few: Leaves, many: Leaves, sizes: tuple[int, int]) -> tuple[int | None, ...]:
    """Return where each leaf holds the batch: None for constants, -1 where that is unclear."""
    return tuple(_dim(one, other, sizes) for one, other in zip(few, many, strict=True))


def _dim(one: Any, other: Any, sizes: tuple[int, int]) -> int | None:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return None if _constant(one) and _constant(other) and one == other else -1
    if one.shape == other.shape:
        return None
    if one.dim() != other.dim():
        return -1
    changed = [dim for dim in range(one.dim()) if one.shape[dim] != other.shape[dim]]
    exact = len(changed) == 1 and (one.shape[changed[0]], other.shape[changed[0]]) == sizes
    return changed[0] if exact else -1


def _constant(leaf: Any) -> bool:
    return isinstance(leaf, (*_CONSTANTS, Tensor))


def holds(leaf: Any, dim: int, batch: int) -> bool:
    """Return whether a dimension of a tensor has this many examples."""
    return isinstance(leaf, Tensor) and leaf.dim() > dim and leaf.shape[dim] == batch


def _describe(leaf: Any) -> str:
    return f"tensor {list(leaf.shape)}" if isinstance(leaf, Tensor) else type(leaf).__name__


def _versions(module: nn.Module) -> list[tuple[int, int]]:
    return [(id(buffer), buffer._version) for buffer in module.buffers()]
