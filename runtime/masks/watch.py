"""Seeing the arguments of a model's forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Callback = Callable[[tuple[Any, ...], dict[str, Any]], None]


class Watch:
    """Calls `callback(args, kwargs)` before each forward pass of a model that records a graph.

    Forward passes that the callback itself causes are not reported. Copies and pickles of the model are not
    watched. first: before all other hooks, such as those of a wrapper that cannot bear a forward pass within
    another.
    """

    def __init__(self, model: nn.Module, callback: Callback, *, first: bool = False) -> None:
        hook = _Hook(callback)
        self._handle = model.register_forward_pre_hook(hook, prepend=first, with_kwargs=True)

    def remove(self) -> None:
        """Stop watching. Safe to repeat."""
        self._handle.remove()


class _Hook:
    """What the model holds."""

    def __init__(self, callback: Callback) -> None:
        self._callback = callback
        self._busy = False
        self._uncompiled = torch.compiler.disable(self._see)  # type: ignore[no-untyped-call]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        see = self._uncompiled if torch.compiler.is_compiling() else self._see
        see(args, kwargs)

    def _see(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._busy or not torch.is_grad_enabled():
            return
        self._busy = True
        try:
            self._callback(args, kwargs)
        finally:
            self._busy = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _nothing

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _no_hook, ()


def _no_hook() -> Callable[..., None]:
    return _nothing


def _nothing(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Stand in for the hook in copies."""
