"""Goes back to weights that a run saved earlier: what is checked before the ledger says so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gradwarden.runtime.digests import file_digest
from gradwarden.runtime.errors import LedgerError
from gradwarden.runtime.records.branches import MOST_REWINDS, Branches

RESTORE = "load the checkpoint into the model first, and the optimizer's state with it"


def going_back(
    branches: Branches, next_step: int, model: nn.Module | None, checkpoint: Path
) -> dict[str, Any]:
    """Return the body of the entry by which a run goes back to the weights in a file.

    branches: the run's, so far. model: None where another process holds the weights that were gathered, and
    compares them. Raises LedgerError where it did not save the file, where it went back too often, or where
    the model holds other weights.
    """
    try:
        digest = file_digest(checkpoint)
    except OSError as error:
        raise LedgerError(f"cannot read the checkpoint `{checkpoint}`: {error.strerror}") from error
    saved = branches.with_digest(digest)
    if saved is None:
        raise LedgerError(
            f"the ledger names no checkpoint with the content of `{checkpoint}`",
            help="a run goes back only to weights that it saved itself (`Governor.checkpoint`)",
        )
    if branches.rewinds >= MOST_REWINDS:
        raise LedgerError(
            f"the run went back {branches.rewinds:,} times already",
            help="begin a new run that is derived from this one (`Governor.derive`)",
        )
    if model is not None:
        _check_weights(model, checkpoint)
    return branches.rewind(saved, next_step)


def _check_weights(model: nn.Module, checkpoint: Path) -> None:
    """Raise LedgerError unless a model holds the weights of a file, bit by bit."""
    try:
        wanted = load_file(checkpoint)
    except (OSError, SafetensorError) as error:
        raise LedgerError(f"cannot read the checkpoint `{checkpoint}`: {error}") from error
    held: Mapping[str, Any] = model.state_dict()
    for name, value in wanted.items():
        own = held.get(name)
        if not isinstance(own, Tensor) or not _same(own.detach().cpu(), value):
            raise LedgerError(f"the model does not hold `{name}` as `{checkpoint}` does", help=RESTORE)


def _same(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    one, other = (tensor.contiguous().view(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(one, other)
