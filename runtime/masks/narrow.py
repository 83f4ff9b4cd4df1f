"""Where a model computes in a precision of narrow range, and what gradients bear there.

Float16 ends at 65504 and at 6e-8. Losses that are scaled by an example's weight before the backward pass
would carry gradients past either end that the plain step keeps. So where some part of a model computes in
float16, losses are scaled by nothing but the normaliser, as in the plain step, and weights are applied where
a parameter's gradient is formed: to rows whose weights are within a factor of two of each other, and by what
remains once the sum is of a wide precision (`Rows.octaves`). Gradients leave the range where those of the
plain step do, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from gradwarden.runtime.masks.walk import nodes

NARROW = (torch.float16,)
"""Precisions whose range leaves no room for scaling gradients."""

_DEVICES = ("cpu", "cuda")


def autocast_narrows() -> bool:
    """Return whether autocast asks for a narrow precision now."""
    return any(
        torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) in NARROW for kind in _DEVICES
    )


def narrows_within(starts: Iterable[Any], stops: Iterable[Any] = ()) -> bool:
    """Return whether anything between nodes of a graph has a gradient of a narrow precision.

    Pieces are gone through, which are differentiated by themselves. What a compiled graph or an autograd
    function of one's own does inside cannot be seen.
    """
    return any(_narrow(meta) for node in nodes(starts, stops, pieces=True) for meta in node._input_metadata)


def narrow_at(node: Any) -> bool:
    """Return whether gradients come to a node, or go on from it, in a narrow precision.

    A graph of wide parameters comes to a narrow precision by conversions alone, or by layers that convert by
    themselves: it need not be asked of other nodes.
    """
    following = node.next_functions[0][0] if node.next_functions else None
    ends = node._input_metadata if following is None else (*node._input_metadata, *following._input_metadata)
    return any(_narrow(meta) for meta in ends)


def _narrow(meta: Any) -> bool:
    return meta is not None and meta.dtype in NARROW
