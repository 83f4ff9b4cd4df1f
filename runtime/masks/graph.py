"""Reading an autograd graph: which parameters are used by something other than a weighing layer."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor

from gradwarden.runtime.masks.layers import OPERATIONS

_FUNCTIONS = tuple(operation.function for operation in OPERATIONS)


def uses(losses: Tensor, parameters: Collection[int]) -> tuple[set[int], set[int]]:
    """Return which parameters (by `id`) the losses reach by ordinary operations, and which by layers.

    Weighing layers have their own autograd functions; every other edge into a parameter is a use whose
    gradient is not weighed. Walks the whole graph once.
    """
    ordinary: set[int] = set()
    weighing: set[int] = set()
    pending: list[Any] = [losses.grad_fn]
    seen: set[Any] = {None, losses.grad_fn}
    while pending:
        node = pending.pop()
        weighs = getattr(node, "_forward_cls", None) in _FUNCTIONS
        for following, _ in node.next_functions:
            leaf = getattr(following, "variable", None)
            if leaf is not None:
                if id(leaf) in parameters:
                    (weighing if weighs else ordinary).add(id(leaf))
            elif following not in seen:
                seen.add(following)
                pending.append(following)
    return ordinary, weighing
