"""The norm of each example's gradient with respect to the model's outputs, from the backward pass as it runs.

|dl_i / do_i|, over all tensors o that the model returns with the examples in their first dimension. It is no
gradient of parameters; for logits under cross entropy it is that of the bias that the last layer has or could
have, before it is summed over positions. A hook on each output reads the gradient that passes by, and one on
the losses the factor that it is scaled by, so that masks, loss scaling and normalisers do not show.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gradwarden.policy.context import FloatArray


class OutputGradients:
    """Watches one model. Between `begin` and `norms` lie a forward pass and its backward passes."""

    def __init__(self, model: nn.Module) -> None:
        self._count: int | None = None
        self._factors: Tensor | None = None
        self._squares: Tensor | None = None
        self._handle = model.register_forward_hook(self._returned)

    def begin(self, count: int | None) -> None:
        """Expect a batch of so many examples; None: one that cannot be measured."""
        self._count, self._factors, self._squares = count, None, None

    def follow(self, losses: Tensor) -> None:
        """Take the losses [count] that will be differentiated."""
        if self._count is not None and losses.requires_grad:
            losses.register_hook(self._started)  # type: ignore[no-untyped-call]

    def norms(self) -> FloatArray | None:
        """Return the norms, float64 [count]; NaN for examples that were not differentiated.

        None where no output was. The watch is then over.
        """
        squares, self._squares, self._factors = self._squares, None, None
        return None if squares is None else squares.sqrt().double().cpu().numpy()

    def remove(self) -> None:
        """Give the model back as it was."""
        self._handle.remove()

    def _returned(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._count is None or not torch.is_grad_enabled():
            return
        for leaf in pytree.tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf.requires_grad and leaf.shape[:1] == (self._count,):
                leaf.register_hook(self._passed)  # type: ignore[no-untyped-call]

    def _started(self, gradient: Tensor) -> None:
        """Begin a pass in which each loss counts with some factor; it replaces what earlier ones measured."""
        factors = gradient.detach().abs().to(_wide(gradient))
        live = factors > 0
        if self._squares is None:
            self._squares = torch.full_like(factors, torch.nan)
        self._squares = torch.where(live, 0.0, self._squares)
        self._factors = torch.where(live, factors, torch.inf)

    def _passed(self, gradient: Tensor) -> None:
        if self._factors is None or self._squares is None or gradient.shape[:1] != self._factors.shape:
            return
        # Over the dimensions as they lie: flattening copies a transposed gradient, and takes tenfold.
        own = gradient.detach().unsqueeze(-1)
        norms = torch.linalg.vector_norm(own, dim=tuple(range(1, own.dim())), dtype=_wide(gradient))
        self._squares = self._squares + (norms.to(self._factors.device) / self._factors).square()


def _wide(tensor: Tensor) -> torch.dtype:
    """Return the precision in which norms are taken: at least single."""
    return torch.promote_types(tensor.dtype, torch.float32)
