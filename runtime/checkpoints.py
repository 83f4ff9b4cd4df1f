"""Saves a model's weights so that the ledger can name them: safetensors, and the SHA-256 of the file."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors.torch import save_model
from torch import nn

from gradwarden.runtime.digests import file_digest
from gradwarden.runtime.errors import RuntimeGovernanceError


def save_checkpoint(model: nn.Module, path: Path) -> str:
    """Write the weights durably (tied tensors once) and return the hex SHA-256 of the file.

    The file appears whole or not at all. Raises RuntimeGovernanceError where it cannot be written.
    """
    draft = path.with_name(f".{path.name}.partial")
    try:
        save_model(model, str(draft))
        digest = file_digest(draft)
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise RuntimeGovernanceError(f"cannot write the checkpoint `{path}`: {error}") from error
    return digest
