"""Which exact way to run each part of a model is cheapest for a batch, and why.

Per example and position, the forward pass of a layer costs one multiplication per parameter, the gradient of
its input another, and that of its weight a third. What a mask forbids need not be computed, so there are five
ways to run a block (all of them give the same gradients):

scale: every row has a graph; gradients are scaled on their way into the block, and back on their way out.
weigh: every row has a graph; each layer weighs rows on their way into its weight gradient.
slice: the same, but layers compute gradients of the rows that need them only.
split: rows that may shape neither the block nor anything before it go through it without a graph.
stop:  no row may; the block has no backward pass at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from gradwarden.runtime.masks.plan import Plan

Way = Literal["scale", "weigh", "slice", "split", "stop"]

CALL_COST = {"cpu": 2e7, "cuda": 3e10}
"""What a second call of a block costs, in multiplications that take as long: launches, and copies of rows."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How a block, or a band's layers outside of blocks, were run in the last batch.

    rows: how many of the batch's examples have a graph there. work: the share of the backward pass of the
    plain step that is left, estimated by the cost model.
    """

    name: str
    way: Way
    rows: int
    batch: int
    work: float
    reason: str

    def __str__(self) -> str:
        share = f"{self.rows} of {self.batch} examples, {self.work:.0%} of the plain backward pass"
        return f"{self.name}: {self.way} ({share}): {self.reason}"


@dataclass(frozen=True, slots=True)
class BlockCost:
    """What a block costs. size: its number of parameters. positions: per example; device: its kind."""

    size: int
    positions: int
    device: str

    def forward(self, rows: int) -> float:
        """Return the multiplications of a forward pass of so many examples."""
        return float(self.size) * self.positions * rows


def choose(name: str, plan: Plan, own: int, mask: int, cost: BlockCost, fault: str) -> Choice:
    """Return the cheapest way to run a block. own: its bands as a bit mask; mask: and those before it.

    fault: why it cannot be run in parts, empty where it can. Splitting saves the backward pass of rows
    without a graph, input gradients included, and costs a second call.
    """
    call = CALL_COST.get(cost.device, CALL_COST["cuda"])
    return _cheapest(name, plan.reach(mask).count, plan.reach(own).count, plan.batch, cost, fault, call)


@lru_cache(maxsize=4096)
def _cheapest(
    name: str, rows: int, learning: int, batch: int, cost: BlockCost, fault: str, call: float
) -> Choice:
    """Return the same.

    rows: how many examples may shape it or what is before it; learning: how many itself. call: what a second
    call costs.
    """
    if not rows:
        return Choice(name, "stop", 0, batch, 0.0, "no example may shape it or anything before it")
    if rows == batch:
        if learning == batch:
            return Choice(name, "weigh", batch, batch, 1.0, "every example may shape it")
        reason = f"{learning} may shape it, but all may shape something before it"
        return Choice(name, "slice", batch, batch, (batch + learning) / (2 * batch), reason)
    sliced = (rows + learning) / (2 * batch)
    if fault:
        return Choice(name, "slice", batch, batch, sliced, f"it is not run in parts: {fault}")
    saved = cost.forward(batch - rows)
    if saved < call:
        return Choice(name, "slice", batch, batch, sliced, "a second call would cost more than it saves")
    reason = f"{batch - rows} may shape neither it nor anything before it"
    return Choice(name, "split", rows, batch, sliced, reason)


@lru_cache(maxsize=4096)
def scaling(choice: Choice) -> Choice:
    """Return a choice as it is for a block whose gradients are scaled at its border."""
    return replace(choice, way="scale") if choice.way == "weigh" else choice


def band_choices(plan: Plan, names: Sequence[str], bands: Sequence[int]) -> list[Choice]:
    """Return how the layers of bands were run that are in no block. names: of all bands, by number."""
    choices = []
    for band in bands:
        rows = plan.bands[band]
        count, batch = rows.count, plan.batch
        way: Way = "stop" if rows.empty else "weigh" if rows.whole else "slice"
        reason = {
            "stop": "no example may shape it",
            "weigh": "every example may shape it" + (", with one weight" if rows.weights is None else ""),
            "slice": f"{count} examples may shape it",
        }[way]
        choices.append(Choice(f"band {names[band]}", way, count, batch, count / batch, reason))
    return choices
