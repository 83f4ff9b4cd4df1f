"""What a supported layer must provide."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from torch import Tensor, nn
from torch.autograd import Function

from gradwarden.runtime.masks.call import Call
from gradwarden.runtime.masks.layout import Layout


class Operation(Protocol):
    """One family of layers.

    classes: the module classes, whose `forward` must be the stock one. function: the autograd function.
    adds_rank: by how much the rank of the output exceeds that of the input.
    """

    classes: ClassVar[tuple[type[nn.Module], ...]]
    adds_rank: ClassVar[int]
    function: ClassVar[type[Function]]

    @staticmethod
    def accepts(module: Any, layout: Layout) -> bool:
        """Return whether the layer can be run with the batch in this place."""

    @staticmethod
    def run(module: Any, call: Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output, recording the weighted backward pass."""
