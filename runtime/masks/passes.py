"""How an engine's backward passes are run, and where their gradients go.

An engine takes some gradients apart (one pass for the examples of one weight) and the rest in a joint pass,
the last one over a graph. A model whose wrapper reduces gradients while the backward pass runs (`replicas`,
`sharding`) has passes of its own kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.masks.bands import BandIndex
from gradwarden.runtime.masks.batch import require_graph
from gradwarden.runtime.masks.trial import Trial

Scales = Mapping[nn.Parameter, float]
"""The parameters of a pass, and by what the gradient of each is multiplied."""


T = TypeVar("T", bound=Trial)


class Passes:
    """Backward passes of one process: gradients are returned, and kept by the caller.

    collective: whether all processes must make every pass, forward and backward, together and alike.
    """

    collective = False

    def follow(self, bands: BandIndex) -> None:
        """Tell an index of the parameters that stand in for others in forward passes, from now on."""

    def ready(self) -> bool:
        """Return whether all processes can make the backward passes that this one is about to make."""
        return True

    def largest(self, facts: Tensor) -> Tensor:
        """Return the greatest of each number over all processes. facts: int32 [n] on the CPU, n as on all."""
        return facts

    def most(self, number: int) -> int:
        """Return the greatest of a number over all processes."""
        return int(self.largest(torch.tensor([number], dtype=torch.int32, device="cpu"))[0])

    def common(self, trial: Callable[[], T]) -> T | None:
        """Return the trial that all processes are to make; None where no process has different examples.

        Raises TrialError where none can make one.
        """
        return trial()

    def apart(
        self, losses: Tensor, factors: Tensor, scales: Scales, retain_graph: bool
    ) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield the parameters' gradients of the losses' sum, each loss times its factor.

        A parameter that the losses do not depend on is left out. Nothing is yielded that the pass has itself
        added to `.grad`.
        """
        found = gradients_of(losses, factors, list(scales), retain_graph)
        for (parameter, scale), gradient in zip(scales.items(), found, strict=True):
            if gradient is not None:
                yield parameter, gradient if scale == 1.0 else gradient * scale

    def joint(
        self, losses: Tensor, factors: Tensor, scales: Scales, retain_graph: bool
    ) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Do the same in the last pass over a graph."""
        return self.apart(losses, factors, scales, retain_graph)


def gradients_of(
    losses: Tensor, factors: Tensor, parameters: Sequence[Tensor] | Sequence[GradientEdge], retain_graph: bool
) -> tuple[Tensor | None, ...]:
    """Return the gradients of the losses' sum, each times its factor; None for a parameter not used."""
    require_graph(losses)
    with _explained():
        return torch.autograd.grad(losses, parameters, factors, retain_graph=retain_graph, allow_unused=True)


def accumulate(
    losses: Tensor, factors: Tensor, parameters: Sequence[nn.Parameter], retain_graph: bool
) -> None:
    """Add the same gradients to the parameters' `.grad` while the backward pass goes along."""
    require_graph(losses)
    with _explained():
        torch.autograd.backward(losses, factors, retain_graph=retain_graph, inputs=parameters)


@contextmanager
def scaled(scales: Scales) -> Iterator[None]:
    """Inside, the parameters' gradients are multiplied by these numbers before they are accumulated."""
    handles = [
        parameter.register_hook(lambda gradient, scale=scale: gradient * scale)  # type: ignore[no-untyped-call]
        for parameter, scale in scales.items()
        if scale != 1.0
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "donated buffers" in str(error):
            raise MaskError(
                "the compiled model lets a graph be differentiated only once",
                help="set `torch._functorch.config.donated_buffer = False` before it is compiled",
            ) from error
        if "checkpoint" not in str(error):
            raise
        raise MaskError(
            "the model uses reentrant activation checkpointing",
            help="pass `use_reentrant=False` to `torch.utils.checkpoint.checkpoint`",
        ) from error
