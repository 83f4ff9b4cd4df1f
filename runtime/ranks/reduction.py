"""How the gradients of the processes that train one model become one.

Three ways, by what the governor is given (`wrapping`):
- a plain model: gradients are summed when all backward passes are over (here);
- a model in DistributedDataParallel, whose reducer works while the last one runs (`replicas`);
- a model under `fully_shard`, whose parameters are scattered over the processes (`sharding`).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from gradwarden.runtime.masks.passes import Passes
from gradwarden.runtime.ranks.data_parallel import Ranks


class Reduction:
    """Sums gradients after the backward passes, of which each process may make as many as it likes.

    module: the model without its wrapper. ranks: the processes. passes: for the mask engine. share: how many
    times a gradient must be counted on a process so that it counts once in the result: as often as there are
    processes, where the wrapper takes their mean. whole: whether each process holds whole parameters.
    replicated: whether another holds the same ones. copies: how many processes hold the same numbers; copy:
    which of them this one is, from 0.
    """

    def __init__(self, module: nn.Module, ranks: Ranks, passes: Passes | None = None, share: int = 1) -> None:
        self.module = module
        self.ranks = ranks
        self.passes = passes or Passes()
        self.share = share
        self.whole = self.replicated = True
        self.copies, self.copy = ranks.size, ranks.rank

    def watched(self, parameters: Sequence[nn.Parameter]) -> Sequence[nn.Parameter]:
        """Return those whose gradients nobody but the masks may accumulate."""
        return parameters

    def rest(self) -> None:
        """Leave the model as it is between steps, whatever forward passes the caller has made."""

    def begin(self) -> None:
        """Prepare for a step. Raises MaskError where the model was changed so that it cannot be reduced."""

    def expect(self, parts: int) -> None:
        """Say in how many parts, each with a backward pass, the step's examples come on every process."""

    def last(self) -> None:
        """Say that the next backward pass is the step's last one on this process."""

    def decline(self) -> None:
        """Say that this process will not make the backward pass that is due, but stays in the step."""

    @property
    def declined(self) -> bool:
        """Whether the last backward pass was not made, because another process stops the step."""
        return False

    @property
    def astray(self) -> bool:
        """Whether the others are in a forward pass that this process has left, or did not come to."""
        return False

    def finish(self, ready: bool) -> None:
        """Let every process know whether this one can let the step through, and reduce what is left.

        Called once when a step is left in which any process has something to learn.
        """

    def end(self) -> None:
        """Leave the model as it was before `begin`."""

    def graded(self, parameters: Sequence[nn.Parameter]) -> int:
        """Return a number whose bit i is set where this process has a gradient for parameter i."""
        return sum(1 << i for i, parameter in enumerate(parameters) if parameter.grad is not None)

    def settle(self, parameters: Sequence[nn.Parameter], graded: int) -> None:
        """Leave every parameter with the gradient of all processes, and with None where none has one.

        graded: the bits of all processes joined by or.
        """
        self.ranks.sum_gradients([p for i, p in enumerate(parameters) if graded >> i & 1])

    def total(self, squares: Tensor) -> Tensor:
        """Return sums over whole gradients, given those over what this process holds of each."""
        return squares

    def origin(self, key: int) -> int:
        """Return the id of the parameter that the one with this id stands in for, or is."""
        return key

    def scatter(self, parameter: Tensor, total: Tensor) -> Tensor:
        """Return what this process holds of a number for each element of a parameter.

        Where a parameter lies in pieces, that is summed over the processes that hold the other pieces, which
        all call this alike. `merge` then sums it over the copies.
        """
        return total

    def merge(self, held: Sequence[Tensor]) -> None:
        """Turn what is held of parameters into its sum over all copies, in place."""
        self.ranks.add_up(held)

    def close(self) -> None:
        """Take everything off the model. Safe to repeat."""
