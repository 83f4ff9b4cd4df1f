"""Saves a model's weights so that the ledger can name them: safetensors, and the SHA-256 of the file.

A model that is sharded over processes is saved whole: the file is the one that the same model would give in a
single process, so that any number of processes can go on from it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_model
from torch import Tensor, nn

from gradwarden.runtime.digests import file_digest
from gradwarden.runtime.errors import RuntimeGovernanceError


def gathered(model: nn.Module) -> nn.Module:
    """Return something to save in the place of a sharded model: its whole weights, tied ones as such.

    All processes must call this together; the weights are on the first of them only, in its memory.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    # Gathered tensors may be views of a storage that is padded to equal pieces.
    found: dict[str, Any] = get_model_state_dict(model, options=options)
    state = {name: t.clone() if isinstance(t, Tensor) else t for name, t in found.items()}
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        kept = first.setdefault(id(parameter), name)
        if kept != name and name in state:
            state[name] = state[kept]
    return _Weights(state)


class _Weights(nn.Module):
    """A state dict in the place of a model."""

    def __init__(self, state: dict[str, Any]) -> None:
        super().__init__()
        self._state = state

    def state_dict(self) -> dict[str, Any]:  # type: ignore[override]  # safetensors gives no arguments
        return self._state


def save_checkpoint(model: nn.Module, path: Path) -> str:
    """Write the weights (tied tensors once) as `save_whole` does; return the hex SHA-256 of the file."""
    return save_whole(path, "checkpoint", lambda draft: save_model(model, str(draft)))


def save_whole(path: Path, what: str, write: Callable[[Path], object]) -> str:
    """Write a file durably and return its hex SHA-256. It appears whole or not at all.

    what: it is, in words. write: writes the draft. Raises RuntimeGovernanceError where it cannot be written.
    """
    draft = path.with_name(f".{path.name}.partial")
    try:
        write(draft)
        digest = file_digest(draft)
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise RuntimeGovernanceError(f"cannot write the {what} `{path}`: {error}") from error
    return digest
