"""Whether examples that are packed together, many in one row of a model's input, are independent.

Attention must be block-diagonal by example. That is tried out on a real batch: tokens of some examples are
moved about within them, and the outputs of the rest may not change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.masks.positions import Grid, Placement, placements
from gradwarden.runtime.masks.trial import Trial, TrialError, tolerance, untouched

Located = list[tuple[int, Placement | None]]
"""Which outputs of a model hold examples, and where their positions lie; None: one row for each example."""


class PackedTrial(Trial):
    """Runs of one model on one batch of packed examples. Use inside `untouched`.

    owners: int64 [R * T] on the CPU, the example of each position, -1 for nobody's. count: of the examples.
    """

    def __init__(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], owners: Tensor, count: int
    ) -> None:
        """owners: [R, T]."""
        self.model = model
        self._leaves, self._spec = pytree.tree_flatten((args, kwargs))
        self.grid: Grid = (owners.shape[0], owners.shape[1])
        self.owners, self.count = owners.flatten(), count
        held = (self._place(leaf) for leaf in self._leaves)
        self._moved = {number: place for number, place in enumerate(held) if place is not None}
        self._keep_buffers()
        if not self._moved:
            raise TrialError(
                f"no tensor given to the model holds the {self.grid[0]} rows of {self.grid[1]} positions "
                "whose owners were named"
            )

    def sample(self) -> dict[str, Any]:
        """Return the trial without its model, for other processes. Tensors are on the CPU."""
        leaves = [leaf.detach().cpu() if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        inputs = pytree.tree_unflatten(leaves, self._spec)
        facts = {"grid": self.grid, "owners": self.owners, "count": self.count, "moved": self._moved}
        return {"inputs": inputs, **facts}

    @classmethod
    def of_sample(cls, model: nn.Module, sample: Mapping[str, Any], device: torch.device) -> Self:
        trial = cls.__new__(cls)
        trial.model = model
        leaves, trial._spec = pytree.tree_flatten(sample["inputs"])
        trial._leaves = [leaf.to(device) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        trial.grid, trial.owners, trial.count = sample["grid"], sample["owners"], sample["count"]
        trial._moved = sample["moved"]
        trial._keep_buffers()
        return trial

    def _place(self, leaf: Any) -> Placement | None:
        """Return where an argument holds tokens, or vectors; None for masks and for numbers of positions."""
        if not isinstance(leaf, Tensor) or leaf.dtype == torch.bool:
            return None
        place = next(placements(leaf.shape[:2], self.grid), None)
        if place is None or leaf.is_floating_point() or leaf.dim() > 2:
            return place
        values = place.flatten(leaf.detach().cpu(), self.grid)
        order = torch.argsort(self.owners, stable=True)
        together = self.owners[order].diff() == 0
        return None if bool((values[order].diff()[together] == 1).all()) else place

    @property
    def distinct(self) -> int:
        """How many examples have a position."""
        return len(set(self.owners.tolist()) - {-1})

    def outputs(self, moved: Tensor | None = None) -> list[Tensor]:
        """Return the model's outputs, the tokens of some examples moved about within them.

        moved: bool [examples]; None: the batch as it is.
        """
        if moved is None:
            return self._call(self._leaves, "when it was called once more")
        order = _turned(self.owners, moved)
        leaves = list(self._leaves)
        for number, place in self._moved.items():
            flat = place.flatten(leaves[number].detach(), self.grid)
            leaves[number] = place.restore(flat[order.to(flat.device)], self.grid).contiguous()
        return self._call(leaves, "when tokens of its examples were moved")


def _turned(owners: Tensor, moved: Tensor) -> Tensor:
    """Return an order of the positions [R * T] in which those of each moved example go round by one."""
    by_owner = torch.argsort(owners, stable=True)
    sizes = torch.bincount(owners[by_owner] + 1)
    starts = torch.cumsum(sizes, 0) - sizes
    group = owners[by_owner] + 1
    place = torch.arange(len(owners), device="cpu") - starts[group]
    following = by_owner[starts[group] + (place + 1) % sizes[group]]
    order = torch.arange(len(owners), device="cpu")
    chosen = (owners[by_owner] >= 0) & moved[owners[by_owner]]
    order[by_owner[chosen]] = following[chosen]
    return order


def refuse_crossing(trial: PackedTrial) -> Located:
    """Return where the examples lie in the model's outputs.

    Raises MaskError where an example's output depends on others that it shares a row with, or on other rows;
    TrialError where it cannot be told.
    """
    with untouched(trial), torch.no_grad():
        base = trial.outputs()
        located: list[tuple[int, list[Placement | None]]] = []
        for number, output in enumerate(base):
            found: list[Placement | None] = list(placements(output.shape, trial.grid))
            if not found and output.dim() > 0 and output.shape[0] == trial.count:
                found = [None]
            if found:
                located.append((number, found))
        for moved in _halves(trial.count):
            others = trial.outputs(moved)
            kept = torch.cat([~moved, moved.new_zeros(1)])
            for number, fitting in located:
                fitting[:] = [
                    place
                    for place in fitting
                    if _same(base[number], others[number], place, kept[:-1], kept[trial.owners], trial.grid)
                ]
                if not fitting:
                    raise crossing("the model's output for some example depends on another one")
    if not located:
        raise TrialError("no output of the model has a place for each position, or for each example")
    return [(number, fitting[0]) for number, fitting in located]


def crossing(what: str) -> MaskError:
    """Return the error for examples that are not independent though they are packed together."""
    return MaskError(
        f"{what}, though they are packed together",
        help="use attention that is block-diagonal by example, and losses that cross no border; "
        'a model that moves positions by what they hold needs `engine="split"`',
    )


def _halves(count: int) -> Iterator[Tensor]:
    """Yield sets of examples, bool [count], so that of any two there is a set with one and not the other."""
    numbers = torch.arange(count, device="cpu")
    for bit in range((count - 1).bit_length()):
        ones = (numbers >> bit & 1).bool()
        yield ones
        yield ~ones


def _same(
    one: Tensor, other: Tensor, place: Placement | None, examples: Tensor, positions: Tensor, grid: Grid
) -> bool:
    """Return whether outputs agree for the given examples; what is not finite is not compared."""
    if one.shape != other.shape:
        return False
    kept = examples if place is None else positions
    one, other = (y if place is None else place.flatten(y, grid) for y in (one, other))
    one, other = (y[kept.to(y.device)] for y in (one, other))
    finite = torch.isfinite(one)
    one, other = one[finite], other[finite]
    if not one.numel():
        return True
    return float((one - other).abs().max()) <= tolerance(one.dtype) * max(float(one.abs().max()), 1e-30)
