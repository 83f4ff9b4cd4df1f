"""What the ranks of a job tell each other before they run a sharded model: by what examples are weighed.

Under `fully_shard` all processes make the same backward passes over the same blocks. Which these are follows
from the distinct weights of the examples of all, which no rank of a job knows. So each tells the others the
distinct weights of its own part: no id, no class, no decision. That is one gather of a few numbers beside the
parameters that the forward pass gathers anyway. It is made again with more room where one needs more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradwarden.policy.context import IntArray
from gradwarden.runtime.errors import RankError
from gradwarden.runtime.ranks.data_parallel import Ranks

_HEADER = 5
"""Numbers before those of parts: whether the rank leaves, its step, epoch, parts, most distinct weights."""

ROOM = 4
"""Distinct weights of a part for which there is room at first."""


@dataclass(frozen=True, slots=True)
class RankPart:
    """A part of a step that all ranks run together.

    weights: int64 [N, bands], of its examples, in millionths. private: whether some of them are clipped.
    """

    weights: IntArray
    private: bool


class Meeting:
    """Where the ranks meet. The numbers are as many on all: they grow together."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._parts, self._room = 1, ROOM

    def hold(self, step: int, epoch: int, bands: int, parts: Sequence[RankPart]) -> list[RankPart]:
        """Return the distinct weights of all ranks in each part; parts that a rank lacks are empty for it.

        Raises RankError where a rank leaves, or is at another point.
        """
        own = [(np.unique(part.weights, axis=0), part.private) for part in parts]
        most = max((len(weights) for weights, _ in own), default=0)
        header = [0, step, epoch, len(own), most]
        while True:
            told = self._gather(step, header, own, bands)
            self._check(told[:, :_HEADER], step, epoch)
            count, room = (int(told[:, place].max()) for place in (3, 4))
            if count <= self._parts and room <= self._room:
                return self._joined(told[:, _HEADER:], count, bands)
            self._parts, self._room = max(count, self._parts), max(room, self._room)

    def leave(self, step: int, epoch: int, bands: int) -> None:
        """Tell the others, who are about to meet, that this rank goes no further. Raises RankError."""
        self._gather(step, [1, step, epoch, 0, 0], (), bands)

    def _gather(
        self, step: int, header: Sequence[int], own: Sequence[tuple[IntArray, bool]], bands: int
    ) -> Tensor:
        """Return what all ranks say: int64 [ranks, numbers]. What there is no room for is left out."""
        body = np.full((self._parts, 1 + self._room * bands), -1, dtype=np.int64)
        for row, (weights, private) in zip(body, own, strict=False):
            row[0] = private
            flat = weights[: self._room].ravel()
            row[1 : 1 + len(flat)] = flat
        numbers = torch.tensor([*header, *body.ravel().tolist()], dtype=torch.int64, device="cpu")
        return self._ranks.gather(f"run step {step}", numbers)

    def _check(self, headers: Tensor, step: int, epoch: int) -> None:
        leaving = headers[:, 0].nonzero().flatten().tolist()
        if leaving:
            who = f"rank {leaving[0]}" if len(leaving) == 1 else f"{len(leaving)} ranks"
            raise RankError(f"{who} left step {step}, and the run", help="see what the other ranks printed")
        if not bool((headers[:, 1:3] == torch.tensor([step, epoch])).all()):
            raise RankError(
                f"the ranks are not at the same point: rank {self._ranks.rank} is in step {step} of epoch "
                f"{epoch}",
                help="call the governor alike on every rank; a rank without examples proposes an empty list",
            )

    def _joined(self, told: Tensor, count: int, bands: int) -> list[RankPart]:
        table = told.numpy().reshape(len(told), self._parts, -1)
        found = []
        for part in range(count):
            rows = table[:, part, 1:].reshape(-1, bands)
            found.append(
                RankPart(np.unique(rows[rows[:, 0] >= 0], axis=0), bool((table[:, part, 0] > 0).any()))
            )
        return found
