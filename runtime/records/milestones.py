"""What a run records beside its steps: saved weights, what it came from, where it went back, tallies.

Each is recorded between two steps, where the ledger is (`Keeping.lead`). Whether it may be recorded now, and
whether the replicas are still equal, the governor sees to first.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from gradwarden.runtime.checkpoints import (
    SavedWeights,
    gathered,
    holds_weights,
    save_checkpoint,
    save_leaves,
)
from gradwarden.runtime.evidence.supply import KIND as SUPPLIED
from gradwarden.runtime.evidence.supply import read_supply
from gradwarden.runtime.evidence.tally import tally_ledger
from gradwarden.runtime.ledger.ledger import Ledger
from gradwarden.runtime.ledger.unwritten import Unwritten
from gradwarden.runtime.ranks.keeping import Keeping
from gradwarden.runtime.ranks.wrapping import is_sharded
from gradwarden.runtime.records.base_run import describe_base
from gradwarden.runtime.records.branches import REWOUND, STATE_SUFFIX, Branches
from gradwarden.runtime.records.known_weights import KnownWeights
from gradwarden.runtime.records.recorder import Recorder
from gradwarden.runtime.records.rewinding import going_back
from gradwarden.runtime.reexecution.training_state import save_training_state
from gradwarden.runtime.weights.held import held_root


class Milestones:
    """Records one run's milestones. Holds no count: every method is told the step that comes next.

    branches: the weights that the ledger names, and which steps led to them; of a run that is resumed, those
    of its history.
    """

    def __init__(self, keeping: Keeping, ledger: Ledger | Unwritten, recorder: Recorder) -> None:
        self._keeping = keeping
        self._ledger = ledger
        self._recorder = recorder
        self.branches = Branches()
        self._known = KnownWeights()

    def go_on(self, branches: Branches, known: KnownWeights) -> None:
        """Take up where the ledger of a run that is resumed left off."""
        self.branches, self._known = branches, known

    @property
    def names_weights(self) -> bool:
        """Whether that ledger names weights tensor by tensor; False where it is not kept here."""
        return bool(self._known.names)

    def check_resumed(self, step: int, model: nn.Module) -> None:
        """Raise LedgerError where a model holds weights that the run had left when it was resumed."""

        def check() -> None:
            held = held_root(model, self._known.names) if holds_weights(model) else None
            if held is not None:
                self._known.check(held, step)

        self._keeping.lead("go on", check)

    def weights(self, step: int, model: nn.Module, target: Path, *, averaged: bool) -> str:
        """Save the model's weights once, record them, and return the file's digest (hex SHA-256).

        averaged: whether they are an average of what the optimizer made.
        """

        def write() -> SavedWeights:
            saved = save_checkpoint(model, target)
            save_leaves(saved.tree, target)
            return saved

        def record(saved: SavedWeights) -> None:
            self._recorder.checkpoint(step, target.name, saved.digest, saved.tree, averaged=averaged)
            named = {"step": step, "file": target.name, "digest": saved.digest}
            self.branches.apply("checkpoint", named)

        return self._keeping.save(write, record, self._ledger).digest

    def training_state(self, step: int, optimizer: torch.optim.Optimizer, weights: Path) -> None:
        """Save the state of training beside a file of weights, and record it."""
        beside = weights.with_suffix(STATE_SUFFIX)
        found = save_training_state(optimizer, beside)
        body = {"step": step, "file": beside.name, "digest": found, "tensors": None}
        self._recorder.event("checkpoint", body)

    def supply(self, note: bytes) -> None:
        """Record what those who supply the data have signed. Raises NoteError."""
        read_supply(note)
        body = {"note": note.decode()}
        self._keeping.lead("record a supply", lambda: self._recorder.event(SUPPLIED, body))

    def derive(self, base: Path) -> None:
        """Record the run whose weights this one goes on from; `base` is its ledger."""
        self._keeping.lead("name a base", lambda: self._recorder.event("derived", describe_base(base)))

    def rewind(self, step: int, model: nn.Module, checkpoint: Path) -> int:
        """Record that training goes on from a file's weights; return how many steps led to these.

        Raises LedgerError where the ledger does not name the file, or the model holds other weights.
        """

        def record() -> int:
            held = model if holds_weights(model) else None
            body = going_back(self.branches, step, held, checkpoint)
            self._recorder.event(REWOUND, body)
            self._ledger.flush()
            self.branches.apply(REWOUND, body)
            effective: int = body["effective"]
            return effective

        return self._keeping.lead("go back", record)

    def tally(self) -> None:
        """Record the tally of all examples so far."""

        def record() -> None:
            self._ledger.flush()
            self._recorder.event("tallied", tally_ledger(self._ledger.path).body())

        self._keeping.lead("tally the run", record)


def whole_model(model: nn.Module) -> nn.Module:
    """Return the model with whole weights: gathered, together, from the pieces of a sharded one."""
    return gathered(model) if is_sharded(model) else model
