"""Seeing the arguments of a model's forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Watch:
    """Calls `callback(args, kwargs)` before each forward pass of a model that records a graph.

    Forward passes that the callback itself causes are not reported.
    """

    def __init__(self, model: nn.Module, callback: Callable[[tuple[Any, ...], dict[str, Any]], None]) -> None:
        self._callback = callback
        self._busy = False
        self._handle = model.register_forward_pre_hook(self._before, with_kwargs=True)

    def remove(self) -> None:
        """Stop watching. Safe to repeat."""
        self._handle.remove()

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._busy or not torch.is_grad_enabled():
            return
        self._busy = True
        try:
            self._callback(args, kwargs)
        finally:
            self._busy = False
