"""Which weights a run that is resumed may go on with, by what its ledger says of those that it saved.

A ledger names weights where they were saved, and where the run went back to them. Until a step moves the
model these are the *present* ones. All others that it names are earlier: a run that holds such weights when
it is resumed has gone back, and must say so (`Governor.rewind`). Which weights it had after further steps the
ledger does not say; any that it does not name may be those.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.errors import LedgerError
from gradwarden.runtime.records.branches import REWOUND, STATE_SUFFIX
from gradwarden.runtime.weights.record import KIND as TENSORS

BACK = (
    "call `Governor.rewind` with that file first: it marks the steps since as abandoned; or load the weights "
    "that the run had last"
)
MAY_HAVE_MOVED = "a step since has no outcome in this ledger, so it may have moved the model"


@frozen
class _Named:
    """Weights that a ledger names. step: the next one then. root: over their tensors (hex)."""

    step: int
    file: str
    root: str


class KnownWeights:
    """A fold over the entries of one ledger. names: of the tensors that were saved last."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self._listed: list[str] = []
        self._by_root: dict[str, _Named] = {}
        self._by_digest: dict[str, _Named] = {}
        self._present: set[str] = set()
        """Roots of the present weights, and of averages that were saved beside them."""
        self._trained: _Named | None = None
        """The present weights. An average is put in the model to be saved alone: training holds others."""
        self._step = 0
        self._open = False
        """Whether a step has no outcome yet."""
        self._unsure = False
        """Whether an earlier step has none here, so that it may have moved the model."""

    def apply(self, kind: str, body: Mapping[str, Any]) -> None:
        """Advance by one entry. Kinds that say nothing of weights are ignored."""
        match kind:
            case _ if kind == TENSORS:
                begun = [] if body["part"] == 0 else self._listed
                self._listed = [*begun, *(name for name, *_ in body["tensors"])]
            case "checkpoint" if _is_listed(body) and not body["file"].endswith(STATE_SUFFIX):
                named = _Named(body["step"], body["file"], body["tensors"]["root"])
                self.names = tuple(self._listed)
                self._by_digest[body["digest"]] = self._by_root[named.root] = named
                if self._unsure:
                    self._leave()
                self._present.add(named.root)
                if body["tensors"]["of"] == "model":
                    self._trained = named
            case _ if kind == REWOUND:
                self._leave()
                self._trained = self._by_digest.get(body["checkpoint"]["digest"])
                if self._trained is not None:
                    self._present = {self._trained.root}
            case "step":
                self._open, self._step = True, body["step"] + 1
            case "skipped":
                self._unsure, self._step = True, body["until"]
            case "refused":
                self._open = False
            case "committed":
                self._open = False
                if body["active"]:
                    self._leave()
            case "resumed" if self._open:
                self._open, self._unsure = False, True

    def _leave(self) -> None:
        """Know of no weights that they are the present ones."""
        self._present, self._trained, self._unsure = set(), None, False

    def check(self, root: str, step: int) -> None:
        """Hold the weights of a run that is resumed against what is known. root: over their tensors (hex).

        step: the one that comes next; in a job, other ranks may have begun steps of which this ledger has
        nothing. Raises LedgerError for earlier weights. Warns where it is known which they should be, and
        they are others that were never saved: the loop may have loaded none.
        """
        unsure = self._unsure or self._open or step > self._step
        if root in self._present and not unsure:
            return
        earlier = self._by_root.get(root)
        if earlier is not None:
            raise LedgerError(
                f"the model holds the weights that were saved before step {earlier.step} (`{earlier.file}`), "
                f"and {MAY_HAVE_MOVED if root in self._present else 'the run has moved on since'}",
                help=BACK,
            )
        if self._trained is not None and not unsure:
            warnings.warn(
                "gradwarden: the model does not hold the weights that were saved last "
                f"(`{self._trained.file}`), and no step has moved it since: were they loaded?",
                stacklevel=2,
            )


def _is_listed(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether the tensors of a checkpoint were listed; the first form of the format did not."""
    return type((checkpoint["tensors"] or {}).get("count")) is int
