"""Who else is shown gradients: whoever clips those of private examples, or measures those of any.

What a sink takes never goes into the sum. A gauge changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from gradwarden.runtime.masks.call import Call, Parameters


class Sink(Protocol):
    """Takes the gradients of the private examples of one forward pass.

    Either an engine calls `expect` once and then `take` once for each call of a layer, in its own backward
    pass; or, where some parameter that private examples may shape is not weighed by its layer,
    `differentiate` or `differentiate_together` once before it.
    bands: those that private examples, of whichever process, may reach.
    """

    @property
    def bands(self) -> Collection[int]:
        """See above."""

    def expect(self, calls: Sequence[Call]) -> None:
        """Be told of the calls of layers that private examples may shape."""

    def take(self, call: Call, parameters: Parameters) -> None:
        """Take the gradients of one call, to be computed by `parameters` for any rows, now or later.

        They are those of losses that are scaled by the plan's factors, and by nothing else.
        """

    def differentiate(self, losses: Tensor) -> None:
        """Take the gradients from the graph of losses [B], in which plain autograd gives unweighted ones."""

    def differentiate_together(
        self, losses: Tensor, most: Callable[[int], int], used: Callable[[Tensor], Tensor]
    ) -> None:
        """Do the same where all processes make every backward pass together, whatever units each has.

        most: the greatest of a number over the processes. used: what forward passes use for a parameter.
        """


class Gauge(Protocol):
    """Is shown the gradients of the public examples of one batch while the engine adds them up."""

    def expect(self, factors: Tensor, calls: Sequence[Call], told: Collection[int]) -> None:
        """Be told of the pass in which layers show what they have.

        factors: float64 [B], by what each loss is scaled in it. calls: those of layers that come. told: the
        ids of the parameters that `note` has been told of already.
        """

    def wants(self, parameter: int) -> bool:
        """Return whether the parameter with this id is still to be shown."""

    def take(self, call: Call, parameters: Parameters) -> None:
        """Look at the gradients of one call, to be computed by `parameters` for any rows, now or later."""

    def note(self, row: int, band: int, square: float) -> None:
        """Be told the squared norm of an example's gradient for parameters of a band.

        As `take`, of a loss that is scaled as `expect` has said; by nothing, before it was called.
        """
