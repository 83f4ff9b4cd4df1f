"""The digest of weights that a model holds, as `tree` has it of a file."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import torch
from safetensors.torch import _TYPES
from torch import Tensor, nn

from gradwarden.runtime.weights.tree import CHUNK, TensorDigest, data_root, default_threads, weights_root

_NAMES = {dtype: name for name, dtype in _TYPES.items()}
"""What safetensors calls each type."""


def held_root(model: nn.Module, names: Sequence[str]) -> str | None:
    """Return the root (hex) over some tensors of a model; None where it lacks one, or cannot store it."""
    state = model.state_dict()
    held = {name: state.get(name) for name in sorted(names)}
    tensors = {name: t for name, t in held.items() if isinstance(t, Tensor) and t.dtype in _NAMES}
    if len(tensors) < len(names):
        return None
    with ThreadPoolExecutor(default_threads()) as pool:
        digests = pool.map(_digest, tensors, tensors.values())
        return weights_root(tuple(digests)).hex()


def _digest(name: str, tensor: Tensor) -> TensorDigest:
    data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
    leaves = b"".join([_leaf(data[at : at + CHUNK]) for at in range(0, len(data), CHUNK)])
    return TensorDigest(name, _NAMES[tensor.dtype], tuple(tensor.shape), data_root(leaves))


def _leaf(chunk: memoryview) -> bytes:
    found = sha256(b"\x00")
    found.update(chunk)
    return found.digest()
