"""Modules differentiated as one piece: exact masks for any module, without knowing what it computes.

Where rows of a module's outputs belong to examples, and none depends on another example, the weighted
gradient of its parameters is its vector-Jacobian product with the *weighted* output gradient: the product is
linear, and an example's rows depend on that example alone. So the module is run on inputs that are cut off
from the graph, and differentiated by itself in the backward pass: for its inputs, with the gradient as it
comes, and again for the parameters of each band whose weights differ between examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from gradwarden.runtime.masks.call import differentiable_once
from gradwarden.runtime.masks.layout import Layout
from gradwarden.runtime.masks.narrow import narrows_within
from gradwarden.runtime.masks.plan import Plan
from gradwarden.runtime.masks.rows import Rows
from gradwarden.runtime.masks.sink import Gauge
from gradwarden.runtime.masks.unitwise import squared_norm
from gradwarden.runtime.masks.walk import nodes

if TYPE_CHECKING:
    from gradwarden.runtime.masks.blocks import Block

LayerGradients = Callable[[Any, Tensor, Tensor], Mapping[str, Tensor]]
"""A user's rule for a class of layers that take one tensor and return one.

Given a layer, its input and the gradient of its output, returns the gradients of its own parameters by name.
The output gradient has its rows weighted already, so the rule must be linear in it, as gradients are.
"""


@dataclass(slots=True, eq=False)
class Piece:
    """One module that is differentiated as a whole, everything in it included.

    own: the bands of its parameters, as a bit mask. rule: the user's, for its parameters. before: the bands
    of all layers called before it, as far as seen; grows only. layouts: where the examples lie in
    floating-point outputs, by their number and rank. shared: those outputs [1, …] that are the same for all
    examples (relative positions); they are expanded so that rows belong to examples. block: the one it is
    part of.
    """

    name: str
    module: nn.Module
    own: int
    rule: LayerGradients | None = None
    before: int = 0
    layouts: dict[tuple[int, int], Layout] = field(default_factory=dict)
    shared: set[tuple[int, int]] = field(default_factory=set)
    block: Block | None = None

    def stock(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module as its class defines it."""
        return type(self.module).forward(self.module, *args, **kwargs)

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """Every parameter in the module."""
        return tuple(self.module.parameters())

    def expanded(self, number: int, output: Tensor, batch: int) -> Tensor:
        """Return an output that is common to all examples once for each of them; others as they are."""
        common = (number, output.dim()) in self.shared and output.shape[0] == 1
        return output.expand(batch, *output.shape[1:]) if common else output

    def layout(self, number: int, output: Tensor, batch: int) -> Layout | None:
        """Return where the examples lie in an output; None where that is not known."""
        found = self.layouts.get((number, output.dim()))
        return found if found is not None and found.fits(output.shape, batch) else None


_top_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
"""What replaces saved tensors at the moment, if anything. Older releases cannot tell."""


def floating_outputs(result: Any) -> list[Tensor]:
    """Return the floating-point tensors in a module's result, in order."""
    return [leaf for leaf in _flatten(result)[0] if _floating(leaf)]


@dataclass(eq=False)
class Run:
    """One run of a piece by itself.

    inputs: those that need a gradient, cut off from the graph. parameters: those that some row counts for;
    rows: which. outputs: those that can be differentiated; layouts: where their examples lie, None where that
    is not known. given: what the user's rule is to be given. narrow: whether it computes in a precision of
    narrow range. homes: the band of each parameter, where a gauge looks on.
    """

    piece: Piece
    plan: Plan
    inputs: Sequence[Tensor]
    parameters: Sequence[nn.Parameter]
    rows: Sequence[Rows]
    outputs: Sequence[Tensor]
    layouts: Sequence[Layout | None]
    given: Tensor | None
    narrow: bool = False
    homes: Sequence[int | None] = ()

    @property
    def placed(self) -> bool:
        """Whether it is known whose every row of the outputs is."""
        return None not in self.layouts

    def gradients(self, grads: Sequence[Tensor | None], needed: Sequence[bool]) -> list[Tensor | None]:
        """Return the gradients of the inputs, then of the parameters, from those of the outputs."""
        gauge = self.plan.mode.gauge
        if gauge is not None and self.placed:
            self._show(gauge, grads)
        keep = _keeps_graph()
        found: dict[int, Tensor | None] = {}
        parts = list(self._parts(grads, needed))
        for number, (wanted, part, scale) in enumerate(parts):
            retain = keep or number + 1 < len(parts)
            for place, gradient in zip(wanted, self._differentiate(wanted, part, retain), strict=True):
                if gradient is None:
                    continue
                if place >= len(self.inputs) and scale != 1.0:
                    gradient = gradient * scale
                before = found.get(place)
                found[place] = gradient if before is None else before + gradient
        if not keep:
            self.outputs = ()
        return [found.get(place) for place in range(len(needed))]

    def _show(self, gauge: Gauge, grads: Sequence[Tensor | None]) -> None:
        """Show a gauge the gradient of each example, which is differentiated by itself."""
        first = len(self.inputs)
        own = [
            (place, home, rows)
            for place, (p, home, rows) in enumerate(zip(self.parameters, self.homes, self.rows, strict=True))
            if home is not None and gauge.wants(id(p))
        ]
        every = self.plan.examples_of(torch.arange(self.plan.batch, device="cpu"))
        for example in sorted(set(every.tolist()) - {-1}):
            alone = Rows((every == example).double())
            chosen = [
                (place, home) for place, home, rows in own if bool((every[rows.chosen] == example).any())
            ]
            if not chosen:
                continue
            part = [
                grad if grad is None or layout is None else _weighed(grad, alone, layout)
                for grad, layout in zip(grads, self.layouts, strict=True)
            ]
            found = self._differentiate([first + place for place, _ in chosen], part, retain=True)
            for (_, home), gradient in zip(chosen, found, strict=True):
                if gradient is not None:
                    gauge.note(example, home, squared_norm(gradient))

    def _parts(
        self, grads: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> Iterable[tuple[list[int], list[Tensor | None], float]]:
        """Yield which gradients are taken together (numbers of inputs, then parameters), and from what.

        With it goes what those of parameters are to be times. Those of the inputs go with those of parameters
        for which all rows count alike. Rows of unlike weights are taken apart where the range is narrow.
        """
        first = len(self.inputs)
        together = [place for place in range(first) if needed[place]]
        apart: dict[int, tuple[Rows, list[int]]] = {}
        common: Rows | None = None
        for place, (parameter, rows) in enumerate(zip(self.parameters, self.rows, strict=True), first):
            if not needed[place] or not self.plan.wants(id(parameter)):
                continue
            if self.plan.mode.raw or not self.placed:
                rows = self.plan.every
            if _alike(rows) and self.piece.rule is None and common in (None, rows):
                common = rows
                together.append(place)
            else:
                apart.setdefault(id(rows), (rows, []))[1].append(place)
        if together:
            yield together, list(grads), 1.0 if common is None else common.factor
        for rows, places in apart.values():
            for scale, some in rows.octaves if self.narrow else [(rows.factor, rows)]:
                weighed = [
                    grad if grad is None or layout is None else _weighed(grad, some, layout)
                    for grad, layout in zip(grads, self.layouts, strict=True)
                ]
                yield places, weighed, scale

    def _differentiate(
        self, wanted: Sequence[int], grads: Sequence[Tensor | None], retain: bool
    ) -> Sequence[Tensor | None]:
        targets = [*self.inputs, *self.parameters]
        given, rule = self.given, self.piece.rule
        if rule is not None and given is not None and grads[0] is not None and wanted[0] >= len(self.inputs):
            with torch.no_grad():
                by_name = rule(self.piece.module, given, grads[0])
            names = {id(p): name for name, p in self.piece.module.named_parameters()}
            return [by_name.get(names[id(targets[place])]) for place in wanted]
        pairs = [(y, g) for y, g in zip(self.outputs, grads, strict=True) if g is not None]
        outputs, gradients = zip(*pairs, strict=True)
        chosen = [targets[place] for place in wanted]
        with _without_hooks(chosen):
            return torch.autograd.grad(outputs, chosen, gradients, retain_graph=retain, allow_unused=True)


class PieceRows(Function):
    """The inputs and parameters of a run -> its differentiable outputs."""

    @staticmethod
    def forward(ctx: Any, run: Run, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.run = run
        ctx.set_materialize_grads(False)
        return tuple(output.detach() for output in run.outputs)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *ctx.run.gradients(grads, ctx.needs_input_grad[1:])


class UnplacedRows(PieceRows):
    """The same, where it is not known whose rows are whose: to the engine, an ordinary operation."""


def run_piece(
    piece: Piece,
    plan: Plan,
    counting: Mapping[nn.Parameter, Rows],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    cut: MutableMapping[int, Tensor],
    homes: Sequence[int | None] = (),
) -> Any:
    """Run a piece by itself, and return its result with a graph whose backward pass weighs rows.

    counting: the parameters that some row counts for, with these rows. cut: is given every input that is cut
    off, by its id. homes: the bands of those parameters, where a gauge looks on.
    """
    leaves, spec = _flatten((args, kwargs))
    outer = {id(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad}
    if not counting:
        with torch.set_grad_enabled(bool(outer)):
            return piece.stock(*args, **kwargs)
    inner = {key: tensor.detach().requires_grad_() for key, tensor in outer.items()}
    cut.update((id(tensor), tensor) for tensor in inner.values())
    local_args, local_kwargs = pytree.tree_unflatten([inner.get(id(leaf), leaf) for leaf in leaves], spec)
    result = _run_apart(piece, local_args, local_kwargs)
    results, result_spec = _flatten(result)
    floating = [place for place, leaf in enumerate(results) if _floating(leaf)]
    for number, place in enumerate(floating):
        results[place] = piece.expanded(number, results[place], plan.batch)
    places = [place for place in floating if results[place].requires_grad]
    outputs = [results[place] for place in places]
    if not outputs:
        return result
    if not _self_contained(outputs, {*map(id, inner.values()), *map(id, piece.parameters)}):
        return piece.stock(*args, **kwargs)
    narrow = narrows_within(output.grad_fn for output in outputs)
    layouts = [piece.layout(floating.index(place), results[place], plan.batch) for place in places]
    alone = len(leaves) == len(args) == len(results) == 1 and isinstance(leaves[0], Tensor)
    given = leaves[0].detach() if alone else None
    rows = tuple(counting.values())
    run = Run(
        piece, plan, tuple(inner.values()), tuple(counting), rows, outputs, layouts, given, narrow, homes
    )
    function = PieceRows if run.placed else UnplacedRows
    attached = function.apply(run, *outer.values(), *counting)  # type: ignore[no-untyped-call]
    for place, output in zip(places, attached, strict=True):
        results[place] = output
    return pytree.tree_unflatten(results, result_spec)


def _run_apart(piece: Piece, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a piece on cut-off inputs.

    Within activation checkpointing, and wherever else saved tensors are replaced, each of the piece's own
    backward passes would have the whole surroundings recomputed. There the piece keeps its inputs, and
    recomputes itself alone.
    """
    if _top_hooks is None or _top_hooks(True) is None:
        return piece.stock(*args, **kwargs)
    tensors = [leaf for leaf in _flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        # The tensors only say on which devices random numbers are drawn: given as arguments of the function,
        # one that is passed twice would come back as two.
        return checkpoint(lambda *_: piece.stock(*args, **kwargs), *tensors, use_reentrant=False)


def _self_contained(outputs: Sequence[Tensor], leaves: set[int]) -> bool:
    """Return whether nothing but these leaves can have a gradient from the outputs."""
    ends = (getattr(node, "variable", None) for node in nodes(output.grad_fn for output in outputs))
    return all(leaf is None or id(leaf) in leaves for leaf in ends)


@contextmanager
def _without_hooks(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Inside, gradients of tensors are taken without their hooks, which are for the model's gradients."""
    hooks = [(tensor, tensor._backward_hooks) for tensor in tensors if tensor._backward_hooks]
    for tensor, _ in hooks:
        tensor._backward_hooks = None
    try:
        yield
    finally:
        for tensor, hook in hooks:
            tensor._backward_hooks = hook


def _alike(rows: Rows) -> bool:
    return rows.whole and rows.weights is None


def _weighed(grad: Tensor, rows: Rows, layout: Layout) -> Tensor:
    """Return a gradient with its rows weighted, and zero where they do not count; `factor` is left out."""
    if _alike(rows):
        return grad
    weighed = torch.zeros_like(grad)
    rows.place(weighed, rows.weigh(rows.pick(grad, layout), layout), layout)
    return weighed


def _keeps_graph() -> bool:
    """Return whether the backward pass at hand keeps its graph for another one."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())


def _flatten(tree: Any) -> tuple[list[Any], Any]:
    """Return the leaves in tuples, lists and dictionaries; other containers (caches) are leaves."""
    return pytree.tree_flatten(tree, is_leaf=lambda node: not isinstance(node, (tuple, list, dict)))


def _floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
