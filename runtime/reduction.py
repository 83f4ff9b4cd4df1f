"""How the gradients of the processes that train one model become one.

Three ways, by what the governor is given:
- a plain model: gradients are summed when all backward passes are over (`LateReduction`, here);
- a model in DistributedDataParallel, whose reducer works while the last one runs (`replicas`);
- a model under `fully_shard`, whose parameters are scattered over the processes (`sharding`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradwarden.runtime.data_parallel import Ranks, ranks_of
from gradwarden.runtime.gates import ForeignWatch
from gradwarden.runtime.masks.passes import Passes
from gradwarden.runtime.replicas import ReplicaReduction

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Reduction(Protocol):
    """A model's way of reducing gradients, and what a step must do for it.

    module: the model without its wrapper. ranks: the processes. passes: for the mask engine. share: how many
    times a gradient must be counted on a process so that it counts once in the result: as often as there are
    processes, where the wrapper takes their mean.
    """

    module: nn.Module
    ranks: Ranks
    passes: Passes
    share: int

    def begin(self) -> None:
        """Prepare for the forward passes of a step."""

    def last(self) -> None:
        """Say that the next backward pass is the step's last one on this process."""

    def finish(self, ready: bool) -> None:
        """Let every process know whether this one can let the step through, and reduce what is left.

        Call once when a step is left, if any process has something to learn in it.
        """

    def end(self) -> None:
        """Leave the model as it was before `begin`."""

    def graded(self, parameters: Sequence[nn.Parameter]) -> int:
        """Return a number whose bit i is set where this process has a gradient for parameter i."""

    def settle(self, parameters: Sequence[nn.Parameter], graded: int) -> None:
        """Leave every parameter with the gradient of all processes, and with None where none has one.

        graded: the bits of all processes joined by or.
        """


class LateReduction:
    """Sums gradients after the backward passes; each process may make as many of those as it likes."""

    share = 1

    def __init__(self, module: nn.Module, ranks: Ranks) -> None:
        self.module, self.ranks, self.passes = module, ranks, Passes()

    def begin(self) -> None:
        """Do nothing."""

    def last(self) -> None:
        """Do nothing."""

    def finish(self, ready: bool) -> None:
        """Do nothing: processes hear of each other when the step is left."""

    def end(self) -> None:
        """Do nothing."""

    def graded(self, parameters: Sequence[nn.Parameter]) -> int:
        return sum(1 << i for i, parameter in enumerate(parameters) if parameter.grad is not None)

    def settle(self, parameters: Sequence[nn.Parameter], graded: int) -> None:
        self.ranks.sum_gradients([p for i, p in enumerate(parameters) if graded >> i & 1])


def reduction_of(model: nn.Module, group: ProcessGroup | None, watch: ForeignWatch) -> Reduction:
    """Return a model's way of reducing gradients. watch: notices gradients that come from elsewhere.

    Raises MaskError for a model that is wrapped in a way that cannot be governed.
    """
    if isinstance(model, DistributedDataParallel):
        return ReplicaReduction(model, group, watch)
    return LateReduction(model, ranks_of(group))
