"""The state of training beside the weights: what a run needs to go on exactly as it did.

The optimizer's state and the global generators (torch on the CPU and on CUDA, `random`, numpy's legacy one),
and how torch was set. Saved by `torch.save` and read with `weights_only`, so that reading runs no code. What
the caller keeps itself (a loader's place, generators of its own) is the caller's to put back.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradwarden.runtime.checkpoints import save_whole
from gradwarden.runtime.digests import file_digest
from gradwarden.runtime.errors import RuntimeGovernanceError

FORMAT = "gradwarden/training-state/1"


def save_training_state(optimizer: torch.optim.Optimizer, path: Path) -> str:
    """Write the state as `save_whole` does; return the hex SHA-256 of the file."""
    name, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    state = {
        "format": FORMAT,
        "optimizer": optimizer.state_dict(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "random": json.dumps(random.getstate()),
        "numpy": json.dumps([name, np.asarray(keys).tolist(), place, has_gauss, cached]),
        "threads": torch.get_num_threads(),
        "version": str(torch.__version__),
    }
    return save_whole(path, "state of training", lambda draft: torch.save(state, draft), file_digest)


class TrainingState:
    """A state that was read. Raises RuntimeGovernanceError for a file that holds none."""

    def __init__(self, path: Path) -> None:
        try:
            found: Any = torch.load(path, map_location="cpu", weights_only=True)
            if found["format"] != FORMAT:
                raise ValueError("it is of another format")
        except Exception as error:
            detail = " ".join(str(error).split())[:200]
            raise RuntimeGovernanceError(f"`{path}` is no state of training: {detail}") from error
        self._state: dict[str, Any] = found
        self.threads: int = found["threads"]
        self.version: str = found["version"]

    def restore(self, optimizer: torch.optim.Optimizer) -> None:
        """Put the optimizer and the generators back."""
        state = self._state
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["torch"])
        if state["cuda"]:
            torch.cuda.set_rng_state_all(state["cuda"])
        version, internal, gauss = json.loads(state["random"])
        random.setstate((version, tuple(internal), gauss))
        name, keys, place, has_gauss, cached = json.loads(state["numpy"])
        np.random.set_state((name, np.array(keys, np.uint32), place, has_gauss, cached))
