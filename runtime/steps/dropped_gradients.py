"""Notices a loop that throws away, by `zero_grad`, gradients which `backward` has left in the step.

That sets them to None, or writes zeros over them with `set_to_none=False`. Tensors count how often they were
written, so only the numbers of those that were are looked at. What is written through `.data` is not counted.
Gradients that were zero of themselves and are scaled look the same: to know what they were before would take
a look at all of them in every step.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from gradwarden.runtime.steps.gates import Finding

GONE = "gradients were dropped in the step: leave `zero_grad` out"
ZERO = (
    "gradients were written in the step and all of those are zero: leave `zero_grad` out, and scale none "
    "that are zero"
)


class DroppedGradients:
    """The gradients of one step on this process, and whether any were dropped."""

    def __init__(self) -> None:
        self._left: list[tuple[Tensor, int]] = []
        """The parameters that have a gradient, and how often that was written."""
        self._seen: str | None = None
        """What shows that gradients were dropped."""

    def look(self) -> None:
        """See whether gradients were dropped since `remember`: before more are added, they still show it."""
        if self._seen is not None:
            return
        if any(parameter.grad is None for parameter, _ in self._left):
            self._seen = GONE
        elif _zeroed(p.grad for p, count in self._left if p.grad is not None and p.grad._version != count):
            self._seen = ZERO

    def remember(self, parameters: Iterable[Tensor]) -> None:
        """Note the gradients that `backward` has left."""
        self._left = [(p, p.grad._version) for p in parameters if p.grad is not None]

    def finding(self) -> Finding | None:
        """Return a finding where gradients were dropped."""
        self.look()
        return None if self._seen is None else Finding("gradient", "no_gradient", self._seen)


def _zeroed(written: Iterable[Tensor]) -> bool:
    """Return whether all of these gradients are zero now, at least one: whoever scales them leaves some."""
    pieces = [gradient.to_local() if hasattr(gradient, "to_local") else gradient for gradient in written]
    held = [piece for piece in pieces if piece.numel()]
    return bool(held) and not any(bool(_values(piece).any()) for piece in held)


def _values(piece: Tensor) -> Tensor:
    return piece.coalesce().values() if piece.is_sparse else piece
