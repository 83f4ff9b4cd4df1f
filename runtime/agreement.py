"""How the ranks of a job agree on a step's outcome: one sum of a few numbers, beside that of the gradients.

Each rank has decided and recorded its own examples, and waited until that is durable. What no rank can know
alone is whether all of them can let the step through, which bands any of them reaches, which parameters have
a gradient anywhere, and how many examples there were. The numbers are as many for any batch and any number of
ranks; nothing of the evidence travels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gradwarden.runtime.data_parallel import Ranks
from gradwarden.runtime.errors import RankError
from gradwarden.runtime.gates import Finding

_FIXED = 8
"""Numbers before those of bands and parameters."""


@dataclass(frozen=True, slots=True)
class Stance:
    """What one rank brings to the end of a step.

    step, epoch: where it is. examples: how many it proposed. active: whether it reaches each band. graded:
    bit i is set where it has a gradient for parameter i, of `parameters`. finding: why it cannot let the step
    through. leaving: whether it goes no further, whatever the others do.
    """

    step: int
    epoch: int
    examples: int
    active: Sequence[bool]
    graded: int
    parameters: int
    finding: Finding | None
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the ranks have come to. finding: why the step is refused, on all alike but for the words."""

    examples: int
    active: tuple[bool, ...]
    graded: int
    finding: Finding | None


def agree(ranks: Ranks, stance: Stance) -> Agreement:
    """Meet the other ranks at the end of a step. Raises RankError, on all, where they cannot go on."""
    refuses, leaves = stance.finding is not None, stance.leaving
    numbers = [
        int(refuses),
        ranks.rank * refuses,
        int(leaves),
        ranks.rank * leaves,
        stance.examples,
        stance.step,
        stance.step**2,
        stance.epoch,
    ]
    graded = [stance.graded >> place & 1 for place in range(stance.parameters)]
    told = torch.tensor([*numbers, *map(int, stance.active), *graded], dtype=torch.int64)
    found: list[int] = ranks.sum(f"end step {stance.step}", told).tolist()
    refusing, refuser, leaving, leaver, examples, steps, squares, epochs = found[:_FIXED]
    # Equal numbers, and only they, have the least sum of squares for their sum (Cauchy-Schwarz).
    if squares * ranks.size != steps**2 or epochs != stance.epoch * ranks.size:
        raise RankError(
            f"the ranks are not at the same point: rank {ranks.rank} is in step {stance.step} of epoch "
            f"{stance.epoch}",
            help="call the governor alike on every rank; a rank without examples proposes an empty list",
        )
    if leaving:
        who = f"rank {leaver}" if leaving == 1 else f"{leaving} ranks"
        raise RankError(
            f"{who} left step {stance.step}, and the run", help="see what the other ranks printed"
        )
    bands = found[_FIXED : _FIXED + len(stance.active)]
    places = found[_FIXED + len(stance.active) :]
    return Agreement(
        examples,
        tuple(map(bool, bands)),
        sum(1 << place for place, count in enumerate(places) if count),
        _finding(stance, refusing, refuser, any(bands)),
    )


def _finding(stance: Stance, refusing: int, refuser: int, reached: bool) -> Finding | None:
    if stance.finding is not None:
        return stance.finding
    if refusing:
        who = f"rank {refuser}" if refusing == 1 else f"{refusing} ranks"
        return Finding("gradient", "other_rank", f"{who} could not let the step through")
    if not reached:
        return Finding("admission", "nothing_admitted", "no example of the batch may shape any band")
    return None
