"""Layers that compute their own weight gradients from weighted rows.

Each file has one family: an autograd function with an exact input gradient, and the operation that calls it.
"""

from __future__ import annotations

from gradwarden.runtime.masks.layers.convolution import Convolution, TransposedConvolution
from gradwarden.runtime.masks.layers.embedding import Embedding
from gradwarden.runtime.masks.layers.group_norm import GroupNorm
from gradwarden.runtime.masks.layers.layer_norm import LayerNorm
from gradwarden.runtime.masks.layers.linear import Linear
from gradwarden.runtime.masks.layers.operation import Operation
from gradwarden.runtime.masks.layers.rms_norm import RMSNorm
from gradwarden.runtime.masks.layers.transposed_linear import TransposedLinear

OPERATIONS: tuple[type[Operation], ...] = (
    Linear,
    Embedding,
    LayerNorm,
    RMSNorm,
    GroupNorm,
    Convolution,
    TransposedConvolution,
    TransposedLinear,
)

__all__ = ["OPERATIONS", "Embedding", "Operation"]
