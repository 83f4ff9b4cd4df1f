"""What a supported layer must provide."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from torch import Tensor, nn
from torch.autograd import Function

from gradwarden.runtime.masks.call import Call
from gradwarden.runtime.masks.layout import Layout


class Operation(Protocol):
    """One family of layers.

    function: the autograd function. adds_rank: by how much the rank of the output exceeds that of the input.
    """

    adds_rank: ClassVar[int]
    function: ClassVar[type[Function]]

    @staticmethod
    def covers(module: nn.Module) -> bool:
        """Return whether a module is of this family and computes what its class defines."""

    @staticmethod
    def accepts(module: Any, layout: Layout) -> bool:
        """Return whether the layer can be run with the batch in this place."""

    @staticmethod
    def run(module: Any, call: Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output, recording the weighted backward pass."""


def stock_forward(module: nn.Module, classes: tuple[type[nn.Module], ...]) -> bool:
    """Return whether a module's class keeps the `forward` of one of these classes."""
    return any(type(module).forward is stock.forward for stock in classes)


def stock_forward_named(module: nn.Module, package: str, name: str) -> bool:
    """Return whether a module's class keeps the `forward` of a class known by where it is defined."""
    return any(
        (kind.__module__, kind.__qualname__) == (package, name) and type(module).forward is kind.forward
        for kind in type(module).__mro__
        if issubclass(kind, nn.Module)
    )
