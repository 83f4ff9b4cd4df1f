"""How the ranks of a job agree on a step's outcome: one sum of a few numbers, beside that of the gradients.

Each rank has decided and recorded its own examples, and waited until that is durable. What no rank can know
alone is whether all of them can let the step through, which bands any of them reaches, and with what weight
together, which parameters have a gradient anywhere, and how many examples there were (with what locates a
share that is recorded wrongly: `jobs.shares`). The numbers are as many for any batch and any number of ranks;
no evidence travels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gradwarden.runtime.errors import RankError
from gradwarden.runtime.jobs.shares import PRIME, WholeBatch, weighted
from gradwarden.runtime.ranks.data_parallel import Ranks
from gradwarden.runtime.steps.gates import Finding

_FIXED = 12
"""Numbers before those of bands, two of each, and of parameters."""


@dataclass(frozen=True, slots=True)
class Stance:
    """What one rank brings to the end of a step.

    step, epoch: where it is. examples: how many it recorded. active: whether it reaches each band. weights:
    what these examples weigh in each band together, in millionths. graded: bit i is set where it has a
    gradient for parameter i, of `parameters`. finding: why it cannot let the step through. leaving: whether
    it goes no further, whatever the others do. draw: a number below 2^20 for the private examples that the
    sampler drew for all ranks, another one for most other draws.
    """

    step: int
    epoch: int
    examples: int
    active: Sequence[bool]
    weights: Sequence[int]
    graded: int
    parameters: int
    finding: Finding | None
    leaving: bool = False
    draw: int = 0


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the ranks have come to. finding: why the step is refused, on all alike but for the words.

    whole: the batch of all; None where one ledger has it. weights: of all of its examples, as of `Stance`.
    """

    whole: WholeBatch | None
    active: tuple[bool, ...]
    weights: tuple[int, ...]
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
        *weighted(ranks.rank, stance.examples),
        stance.step,
        stance.step**2,
        stance.epoch,
        stance.draw,
        stance.draw**2,
    ]
    graded = [stance.graded >> place & 1 for place in range(stance.parameters)]
    told = torch.tensor([*numbers, *map(int, stance.active), *stance.weights, *graded], dtype=torch.int64)
    found: list[int] = ranks.sum(f"end step {stance.step}", told).tolist()
    refusing, refuser, leaving, leaver, *shares, steps, squares, epochs, draws, draws_squared = found[:_FIXED]
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
    if draws_squared * ranks.size != draws**2:
        raise RankError(
            f"the ranks have drawn other private examples for step {stance.step} than each other",
            help="give every rank a sampler of the same seed, in the same state; `renew(seed)` alike on all",
        )
    width = len(stance.active)
    bands, weights = found[_FIXED : _FIXED + width], found[_FIXED + width : _FIXED + 2 * width]
    places = found[_FIXED + 2 * width :]
    examples, *sums = shares
    return Agreement(
        WholeBatch(examples, (sums[0] % PRIME, sums[1] % PRIME)),
        tuple(map(bool, bands)),
        tuple(weights),
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
