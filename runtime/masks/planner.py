"""Which exact way to run each part of a model is cheapest for a batch, and why.

Per example and position, the forward pass of a layer costs one multiplication per parameter, the gradient of
its input another, and that of its weight a third. What a mask forbids need not be computed, so there are six
ways to run a block (all of them give the same gradients):

scale: every row has a graph; gradients are scaled on their way into the block, and back on their way out.
weigh: every row has a graph; each layer weighs rows on their way into its weight gradient.
slice: the same, but layers compute gradients of the rows that need them only.
freeze: rows that may shape something before the block, but not itself, go through it by themselves, with its
    parameters frozen.
split: rows that may shape neither the block nor anything before it go through it without a graph.
stop:  no row may; the block has no backward pass at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf
from typing import Literal

from gradwarden.runtime.masks.plan import Plan

Way = Literal["scale", "weigh", "slice", "freeze", "split", "stop"]

CALL_COST = {"cpu": 2e7, "cuda": 3e10}
"""What a second call of a block costs, in multiplications that take as long: launches, and copies of rows.

Beyond what slicing costs instead. Forward and backward pass of a GPT of 24 blocks, so small that next to
nothing is computed, took 1.6 times as long split as plainly, and 1.7 times sliced: on an accelerator,
launches are no reason to slice.
"""

FREEZING_COST = {"cpu": 1e9, "cuda": 2e12}
"""What it costs to pass a batch through a block by parts with a graph, beyond what layers' own work costs.

In multiplications of the weight gradients that are not taken. On one busy core, a GPT of 24 blocks of width
192 with 8 sequences of 64 (1e8) took 2 to 4% longer by parts, and a residual network of 9 blocks with 32
pictures (3e8) longer too; a GPT of 6 blocks of width 384 with 16 sequences of 128 (1.6e9) took as long either
way, and less memory by parts.

An accelerator has to be kept busy besides. For a random mask the same small GPT took 2.5 times as long by
parts as plainly, and 1.9 times with its layers sliced: where a plain block takes the host 2 ms, 1.3 ms more.
All that is saved is to gather rows. If that takes a tenth of what the weight gradients do, of which an H200
was seen to do 1.6e14 multiplications per second, parts pay from 2e12 on.
"""

CONVOLVED = {"cpu": 0.3}
"""What share of `FREEZING_COST` it is for blocks with convolutions; 1 where nothing is said.

Products of matrices take stretches of rows where they lie; to leave rows out of a convolution's weight
gradient, those of its input and output are copied together, and it no longer comes with the gradient of the
input. On two cores, a step under a random mask of a residual network of 4 blocks of 32 channels with 64
pictures took 1.11 of the plain one with parts from 1e9 multiplications on, and 0.94 with parts from 3e8 on;
networks of 12 and 24 blocks of 24 channels with 24 pictures, where a block saves 1.3e8, took 3 to 8%
longer by parts.
"""


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
    """What a block costs.

    size: its number of parameters. positions: per example; device: its kind. convolves: whether it has
    convolutions.
    """

    size: int
    positions: int
    device: str
    convolves: bool = False

    def forward(self, rows: int) -> float:
        """Return the multiplications of a forward pass of so many examples."""
        return float(self.size) * self.positions * rows


def choose(
    name: str, plan: Plan, own: int, mask: int, cost: BlockCost, fault: str, freezes: bool = False
) -> Choice:
    """Return the cheapest way to run a block. own: its bands as a bit mask; mask: and those before it.

    fault: why it cannot be run in parts, empty where it can. freezes: whether rows can go through it with its
    parameters frozen. Splitting saves the backward pass of rows without a graph, input gradients included,
    freezing that of the parameters. Either costs a second call.
    """
    call = CALL_COST.get(cost.device, CALL_COST["cuda"])
    parts = FREEZING_COST.get(cost.device, FREEZING_COST["cuda"]) if freezes and not fault else inf
    if cost.convolves:
        parts *= CONVOLVED.get(cost.device, 1.0)
    counts = (plan.reach(mask).count, plan.reach(own).count, plan.batch)
    return _cheapest(name, *counts, cost, fault, call, parts)


@lru_cache(maxsize=4096)
def _cheapest(
    name: str, rows: int, learning: int, batch: int, cost: BlockCost, fault: str, call: float, parts: float
) -> Choice:
    """Return the same.

    rows: how many examples may shape it or what is before it; learning: how many itself. call: what a second
    call costs; parts: what two with a graph cost.
    """
    if not rows:
        return Choice(name, "stop", 0, batch, 0.0, "no example may shape it or anything before it")
    if learning == batch:
        return everybody(name, batch, fault=fault)
    left = (rows + learning) / (2 * batch)
    neither = f"{batch - rows} may shape neither it nor anything before it"
    if rows > learning and cost.forward(rows - learning) >= parts:
        reason = f"{rows - learning} may shape something before it, but not itself"
        return Choice(name, "freeze", rows, batch, left, reason if rows == batch else f"{reason}; {neither}")
    if rows == batch:
        reason = f"{learning} may shape it, but all may shape something before it"
        return Choice(name, "slice", batch, batch, left, reason)
    if fault:
        return Choice(name, "slice", batch, batch, left, f"it is not run in parts: {fault}")
    if cost.forward(batch - rows) < call:
        return Choice(name, "slice", batch, batch, left, "a second call would cost more than it saves")
    return Choice(name, "split", rows, batch, left, neither)


@lru_cache(maxsize=4096)
def everybody(name: str, batch: int, scaled: bool = False, fault: str = "") -> Choice:
    """Return the same where every example may shape everything. scaled: see `scaling`."""
    way: Way = "scale" if scaled else "weigh"
    reason = "every example may shape it"
    return Choice(name, way, batch, batch, 1.0, f"{reason}; not scaled: {fault}" if fault else reason)


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
