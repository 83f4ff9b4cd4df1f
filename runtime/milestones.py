"""What a run records beside its steps: saved weights, what it came from, where it went back, tallies.

Each is recorded between two steps, where the ledger is (`Keeping.lead`). Whether it may be recorded now, and
whether the replicas are still equal, the governor sees to first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from gradwarden.runtime.base_run import describe_base
from gradwarden.runtime.branches import REWOUND, STATE_SUFFIX
from gradwarden.runtime.checkpoints import SavedWeights, gathered, save_checkpoint, save_leaves
from gradwarden.runtime.evidence.supply import KIND as SUPPLIED
from gradwarden.runtime.evidence.supply import read_supply
from gradwarden.runtime.evidence.tally import tally_ledger
from gradwarden.runtime.keeping import Keeping
from gradwarden.runtime.ledger.ledger import Ledger
from gradwarden.runtime.ledger.unwritten import Unwritten
from gradwarden.runtime.recorder import Recorder
from gradwarden.runtime.reexecution.training_state import save_training_state
from gradwarden.runtime.rewinding import going_back
from gradwarden.runtime.wrapping import is_sharded


@dataclass(frozen=True, slots=True)
class Milestones:
    """Records one run's milestones. Holds no count: every method is told the step that comes next."""

    keeping: Keeping
    ledger: Ledger | Unwritten
    recorder: Recorder

    def weights(self, step: int, model: nn.Module, target: Path, *, averaged: bool) -> str:
        """Save the model's weights once, record them, and return the file's digest (hex SHA-256).

        averaged: whether they are an average of what the optimizer made.
        """

        def write() -> SavedWeights:
            saved = save_checkpoint(model, target)
            save_leaves(saved.tree, target)
            return saved

        def record(saved: SavedWeights) -> None:
            self.recorder.checkpoint(step, target.name, saved.digest, saved.tree, averaged=averaged)

        return self.keeping.save(write, record, self.ledger).digest

    def training_state(self, step: int, optimizer: torch.optim.Optimizer, weights: Path) -> None:
        """Save the state of training beside a file of weights, and record it."""
        beside = weights.with_suffix(STATE_SUFFIX)
        found = save_training_state(optimizer, beside)
        body = {"step": step, "file": beside.name, "digest": found, "tensors": None}
        self.recorder.event("checkpoint", body)

    def supply(self, note: bytes) -> None:
        """Record what those who supply the data have signed. Raises NoteError."""
        read_supply(note)
        body = {"note": note.decode()}
        self.keeping.lead("record a supply", lambda: self.recorder.event(SUPPLIED, body))

    def derive(self, base: Path) -> None:
        """Record the run whose weights this one goes on from; `base` is its ledger."""
        self.keeping.lead("name a base", lambda: self.recorder.event("derived", describe_base(base)))

    def rewind(self, step: int, model: nn.Module, checkpoint: Path) -> int:
        """Record that training goes on from a file's weights; return how many steps led to these.

        Raises LedgerError where the ledger does not name the file, or the model holds other weights.
        """

        def record() -> int:
            self.ledger.flush()
            body = going_back(self.ledger.path, step, model, checkpoint)
            self.recorder.event(REWOUND, body)
            self.ledger.flush()
            effective: int = body["effective"]
            return effective

        return self.keeping.lead("go back", record)

    def tally(self) -> None:
        """Record the tally of all examples so far."""

        def record() -> None:
            self.ledger.flush()
            self.recorder.event("tallied", tally_ledger(self.ledger.path).body())

        self.keeping.lead("tally the run", record)


def whole_model(model: nn.Module) -> nn.Module:
    """Return the model with whole weights: gathered, together, from the pieces of a sharded one."""
    return gathered(model) if is_sharded(model) else model
