"""Saves a model's weights so that the ledger can name them: as safetensors, with the SHA-256 of the file and
the digest of its tensors (`weights.tree`).

A model that is sharded over processes is saved whole: the file is the one that the same model would give in a
single process, so that any number of processes can go on from it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file
from safetensors.torch import save_model
from torch import Tensor, nn

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.digests import file_digest
from gradwarden.runtime.errors import RuntimeGovernanceError
from gradwarden.runtime.ledger.durable import put_in_place
from gradwarden.runtime.weights.leaves import LEAVES_SUFFIX, leaf_tensors
from gradwarden.runtime.weights.stored import StoredWeights
from gradwarden.runtime.weights.tree import WeightTree, hash_weights

T = TypeVar("T")

_WRITABLE = "name a file in a folder that exists, can be written, and has room"


@frozen
class SavedWeights:
    """Weights that were saved. digest: the hex SHA-256 of the file. tree: the digest of its tensors."""

    digest: str
    tree: WeightTree


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


def holds_weights(model: nn.Module) -> bool:
    """Whether what was gathered, or a whole model, has its weights in this process."""
    return not isinstance(model, _Weights) or bool(model.state_dict())


class _Weights(nn.Module):
    """A state dict in the place of a model."""

    def __init__(self, state: dict[str, Any]) -> None:
        super().__init__()
        self._state = state

    def state_dict(self) -> dict[str, Any]:  # type: ignore[override]  # safetensors gives no arguments
        return self._state


def save_checkpoint(model: nn.Module, path: Path) -> SavedWeights:
    """Write the weights (tied tensors once) as `save_whole` does, and hash them."""
    return save_whole(path, "checkpoint", lambda draft: save_model(model, str(draft)), measure_weights)


def measure_weights(path: Path, threads: int | None = None) -> SavedWeights:
    """Hash a file of weights, as it is and tensor by tensor at once. threads: as of `hash_weights`."""
    with StoredWeights([path]) as weights, ThreadPoolExecutor(1) as beside:
        digest = beside.submit(file_digest, path)
        tree = hash_weights(weights, threads)
        return SavedWeights(digest.result(), tree)


def save_leaves(tree: WeightTree, weights: Path) -> None:
    """Write the hashes of all chunks beside a file of weights (`weights.leaves`), as `save_whole` does."""
    found = {
        name: np.frombuffer(hashes, np.uint8).reshape(rows, width)
        for name, (rows, width, hashes) in leaf_tensors(tree.leaves).items()
    }
    path = weights.with_suffix(LEAVES_SUFFIX)
    save_whole(path, "hashes of the checkpoint", lambda draft: save_file(found, draft), lambda _: None)


def save_whole(
    path: Path,
    what: str,
    write: Callable[[Path], object],
    measure: Callable[[Path], T],
    named: Callable[[T], Path] | None = None,
) -> T:
    """Write a file durably and return what measuring it gives. It appears whole or not at all.

    what: it is, in words. write: writes the draft. named: gives the file's path where that depends on what
    was measured. Raises RuntimeGovernanceError where it cannot be written.
    """
    draft = path.with_name(f".{path.name}.partial")
    try:
        draft.touch()
        mode = draft.stat().st_mode
        write(draft)
        draft.chmod(mode)  # that of any new file; safetensors would let nobody else read it
        measured = measure(draft)
        put_in_place(draft, path if named is None else named(measured))
    except (OSError, SafetensorError) as error:
        draft.unlink(missing_ok=True)
        told = error.strerror if isinstance(error, OSError) else str(error)
        raise RuntimeGovernanceError(f"cannot write the {what} `{path}`: {told}", help=_WRITABLE) from error
    return measured
