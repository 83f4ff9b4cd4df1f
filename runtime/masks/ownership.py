"""Whether the rows that layers credit to examples are theirs, on the batch at hand.

The probe learns where rows lie from a few examples of one batch. A model that moves rows by what the
examples hold may place them otherwise in the next. So each loss is scaled by a number of its own: in a row of
a layer's output that belongs to example i, the gradient must then be scaled by the number of example i.
Examples without weight count with 0, so their rows must have no gradient at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from gradwarden.runtime.masks.graph import coarsest, ends
from gradwarden.runtime.masks.layout import Layout
from gradwarden.runtime.masks.passes import Passes, gradients_of
from gradwarden.runtime.masks.plan import Plan

_SEED = 31
_ROOM = 12
"""Up to which power of two gradients are raised, to see them apart from what a narrow range cuts off."""
_SIGNS = 4096
"""How many shapes of graph are remembered."""


class Schedule:
    """When to look: at batches 1, 2, 4, 8, …, at graphs of a new shape, and always where rows are moved.

    first: how many batches are all looked at to begin with.
    """

    def __init__(self, first: int = 1) -> None:
        self._first = first
        self._batches = 0
        self._signs: set[tuple[int, int]] = set()

    def due(self, batch: int, moved: bool, sign: int) -> bool:
        """Count one backward pass of a batch of this size; return whether to check it."""
        self._batches += 1
        known = (batch, sign) in self._signs
        if not known:
            if len(self._signs) >= _SIGNS:
                self._signs.clear()
            self._signs.add((batch, sign))
        return moved or not known or self._batches <= self._first or self._batches & (self._batches - 1) == 0


Placed = tuple[Any, int, Plan, Layout]
"""A node, the number of one of its outputs, and the plan and the layout of the rows in that."""


def misplaced(
    plan: Plan, losses: Tensor, nodes: Sequence[Any], normaliser: float, passes: Passes
) -> list[Any]:
    """Return the nodes whose output has rows that are not those of the examples they are credited to.

    nodes: of weighing layers, of pieces, and of the borders and joints of blocks. Two backward passes, in a
    plan that is `raw` and wants no parameter; more where some row looks wrong, on any process of a collective
    run, and with larger losses where the range is narrow. Rows whose gradient is not finite are not compared.
    """
    placed: list[Placed] = [(node, *place) for node in nodes for place in _places(node)]
    placed = [entry for entry in placed if entry[2].whole is plan]
    if not placed:
        return []
    examples = plan.examples
    live = (examples.factors > 0).to(torch.float64) / normaliser
    generator = torch.Generator().manual_seed(_SEED)
    # At most 1: what does not overflow in the first pass may not do so in the second.
    numbers = 0.25 + 0.75 * torch.rand(examples.batch, generator=generator, dtype=torch.float64, device="cpu")
    plain = _digests(losses, live, placed)
    suspects = _unlike(losses, live, numbers, plain, placed)
    if plan.mode.narrow and passes.most(len(suspects)):
        # What the range cuts off is not scaled by any number either. There is room above.
        live = live * _room(plain)
        plain = _digests(losses, live, placed)
        suspects = _unlike(losses, live, numbers, plain, placed)
    rounds = (examples.batch - 1).bit_length() // 3 + 1 if suspects else 0
    rounds = int(passes.largest(torch.tensor([rounds], dtype=torch.int32, device="cpu"))[0])
    # What is nothing but rounding (the gradient of a student that equals its teacher) is not scaled by just
    # any number. By powers of two it is, to the bit. Two examples share one power, but not in every round.
    confirmed: set[Any] = set()
    looked_at = placed if passes.collective else suspects
    for digit in range(rounds):
        powers = 2.0 ** -((torch.arange(examples.batch, device="cpu") >> 3 * digit) % 8).to(torch.float64)
        confirmed |= {node for node, *_ in _unlike(losses, live, powers, plain, looked_at)}
    return [node for node in dict.fromkeys(node for node, *_ in suspects) if node in confirmed]


def _room(digests: Mapping[tuple[Any, int], Digest]) -> float:
    """Return a power of two by which the largest row of some gradients comes well into range."""
    largest = max((float(found.scale) for found in digests.values() if found.scale is not None), default=0.0)
    return max(2.0 ** (_ROOM - math.frexp(largest)[1]), 1.0) if largest else 1.0


def _digests(losses: Tensor, factors: Tensor, placed: Sequence[Placed]) -> dict[tuple[Any, int], Digest]:
    """Return the gradients of outputs that have one, each loss times its factor, by node and number.

    Only the last nodes of every way through the graph are differentiated for. The others are passed on the
    way there, and their gradients digested as they come, so that they need not be held all at once.
    """
    factors = factors.to(device=losses.device, dtype=losses.dtype)
    outputs: dict[Any, list[tuple[int, Layout]]] = {}
    for node, number, _, layout in placed:
        outputs.setdefault(node, []).append((number, layout))
    last = ends(losses, outputs.keys())
    found: dict[tuple[Any, int], Digest] = {}

    def digest(node: Any, grads: Sequence[Tensor | None]) -> None:
        for number, layout in outputs[node]:
            gradient = grads[number]
            if gradient is not None:
                found[node, number] = Digest(gradient, layout)

    passed = [node for node in outputs if node not in last]
    hooks = [node.register_prehook(lambda grads, node=node: digest(node, grads)) for node in passed]
    edges = [(node, number) for node in last for number, _ in outputs[node]]
    try:
        gradients = gradients_of(losses, factors, [GradientEdge(*edge) for edge in edges], retain_graph=True)
    finally:
        for hook in hooks:
            hook.remove()
    layouts = {(node, number): layout for node, number, _, layout in placed}
    for edge, gradient in zip(edges, gradients, strict=True):
        if gradient is not None:
            found[edge] = Digest(gradient, layouts[edge])
    return found


def _unlike(
    losses: Tensor,
    live: Tensor,
    numbers: Tensor,
    plain: dict[tuple[Any, int], Digest],
    placed: Sequence[Placed],
) -> list[Placed]:
    """Return the outputs in which not every row is scaled by its example's number, where losses are."""
    scaled = _digests(losses, live * numbers, placed)
    exact = [factors.to(losses.dtype).double() for factors in (live, live * numbers)]
    ratios = torch.where(exact[0] > 0, exact[1] / exact[0], 0.0)
    allowed = coarsest(losses)
    return [
        (node, number, part, layout)
        for node, number, part, layout in placed
        if (node, number) in plain
        and (node, number) in scaled
        and not _owned(layout, part.per_row(ratios), plain[node, number], scaled[node, number], allowed)
    ]


def _places(node: Any) -> list[tuple[int, Plan, Layout]]:
    """Return the number, the plan and the layout of each output of a node."""
    run = getattr(node, "run", None)
    if run is not None:
        return [(number, run.plan, layout) for number, layout in enumerate(run.layouts)]
    place = getattr(node, "call", None) or getattr(node, "border", None) or node.join
    return [(0, place.plan, place.layout)]


class Digest:
    """A gradient [..., features], with its last dimension condensed by a random direction.

    What does not agree in a row of features disagrees in its product with a random direction as well, and
    gradients of all layers need not be held at once.
    """

    __slots__ = ("finite", "rows", "scale")

    def __init__(self, gradient: Tensor, layout: Layout) -> None:
        wide = gradient if gradient.dtype == torch.float64 else gradient.float()
        wide = wide.unsqueeze(-1) if layout.dim == wide.dim() - 1 else wide
        generator = torch.Generator().manual_seed(_SEED)
        direction = torch.randn(wide.shape[-1], generator=generator, dtype=torch.float64, device="cpu")
        self.rows = wide @ direction.to(wide)
        norms = torch.linalg.vector_norm(wide, dim=-1)
        self.finite = torch.isfinite(norms) & torch.isfinite(self.rows)
        self.scale = torch.where(self.finite, norms, 0.0).amax() if norms.numel() else None


def _owned(layout: Layout, ratios: Tensor, plain: Digest, scaled: Digest, allowed: float) -> bool:
    """Return whether every row of an output is scaled by its example's ratio. ratios: of its examples."""
    if not len(ratios):
        return True
    dim, per_example = layout.dim, plain.rows.shape[layout.dim] // len(ratios)
    owners = ratios.repeat(per_example) if layout.interleaved else ratios.repeat_interleave(per_example)
    shape = [1] * plain.rows.dim()
    shape[dim] = -1
    return proportional(owners.view(shape), plain, scaled, allowed)


def proportional(ratios: Tensor, plain: Digest, scaled: Digest, allowed: float) -> bool:
    """Return whether a gradient is another one times these ratios, which are of the same rank.

    allowed: the error that rounding may cause, relative to the largest row.
    """
    if plain.scale is None:
        return True
    error = (scaled.rows - plain.rows * ratios.to(plain.rows)).abs()
    compared = plain.finite & scaled.finite
    return not bool((compared & (error > allowed * plain.scale)).any())
