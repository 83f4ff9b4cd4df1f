"""Keeps the optimizer to the steps that the governor takes.

A loop that was written without a governor calls `optimizer.step()` itself. Left in, that would move the model
past the gates: within a step, before they were passed; after it, once more by the gradient that was taken.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from gradwarden.runtime.errors import MaskError


class OptimizerWatch:
    """Refuses steps that somebody else takes with a governed gradient.

    is_open: whether a step of the governor's is open. An optimizer that is not one of torch's, and knows no
    hooks, is not watched.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, is_open: Callable[[], bool]) -> None:
        self._optimizer = optimizer
        self._is_open = is_open
        self._own = False
        self._taken: tuple[Tensor, weakref.ref[Tensor]] | None = None
        """A parameter and the tensor of the gradient by which the governor has moved it."""
        self._hook: RemovableHandle | None = None
        with suppress(AttributeError):
            self._hook = optimizer.register_step_pre_hook(self._check)

    @contextmanager
    def taking(self) -> Iterator[None]:
        """Inside, the governor itself takes a step."""
        self._own = True
        try:
            yield
        finally:
            self._own = False
        moved = (p for group in self._optimizer.param_groups for p in group["params"])
        graded = next((p for p in moved if p.grad is not None), None)
        self._taken = None if graded is None else (graded, weakref.ref(graded.grad))

    def remove(self) -> None:
        """Stop watching. Safe to repeat."""
        if self._hook is not None:
            self._hook.remove()

    def _check(self, *_: Any) -> None:
        if self._own:
            return
        if self._is_open():
            raise MaskError(
                "`optimizer.step` was called while a step is open: the gates have not been passed",
                help="leave it out: the governor takes the step when the block is left",
            )
        if self._taken is not None and self._taken[0].grad is self._taken[1]() is not None:
            raise MaskError(
                "`optimizer.step` was called after a step, on the gradients that it left: it would take the "
                "same gradient once more, or what was written over it",
                help="leave it out: the governor took the step when the block was left; before a step of "
                "your own, drop the gradients by `zero_grad(set_to_none=True)`",
            )
