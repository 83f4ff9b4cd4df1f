"""What is fixed when a run begins and stays so until it ends: its ledger, its secret, its terms."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradwarden.runtime.commitments import SIZE, Committer
from gradwarden.runtime.errors import LedgerError
from gradwarden.runtime.ledger.ledger import Ledger
from gradwarden.runtime.ledger.unwritten import Unwritten
from gradwarden.runtime.ranks.data_parallel import ROOT


@dataclass(frozen=True, slots=True)
class RunTerms:
    """The terms of a run, as its ledger's opening records them.

    normaliser: None where gradients are divided by the size of each batch. clip_norm: the greatest norm of a
    step's whole gradient, None where there is none. privacy: the plan of each rule.
    dataset: the salted digest and the count of the examples known beforehand, None where there are none.
    """

    secret_commitment: str
    normaliser: float | None
    clip_norm: float | None
    privacy: list[dict[str, str]]
    dataset: dict[str, Any] | None = None

    def opening(self, ledger: Ledger | Unwritten, engine: str) -> dict[str, Any]:
        """Return a new run's own fields of the `opened` entry."""
        return {
            "run": secrets.token_hex(16),
            "origin": ledger.origin,
            "dataset": self.dataset,
            "keys": list(ledger.vkeys),
            "engine": engine,
            "normaliser": _text(self.normaliser),
            "clip_norm": _text(self.clip_norm),
            "secret_commitment": self.secret_commitment,
            "privacy": self.privacy,
        }

    def check_against(self, opened: Mapping[str, Any]) -> None:
        """Raise LedgerError where a ledger was opened under other terms."""
        if opened["secret_commitment"] != self.secret_commitment:
            raise LedgerError(
                "the secret does not belong to this ledger",
                help="pass `secret=` with the file that was written beside the ledger when the run began",
            )
        for name, value in (("normaliser", self.normaliser), ("clip_norm", self.clip_norm)):
            if opened[name] != _text(value):
                raise LedgerError(
                    f"the ledger was opened with the {name.replace('_', ' ')} `{opened[name]}`",
                    help=f"pass the same `{name}=`; it cannot change within a run",
                )
        if opened["privacy"] != self.privacy:
            raise LedgerError(
                "the privacy plan is not the one that the ledger was opened with",
                help="make the plan as before: its terms, sampling rate and noise cannot change within a run",
            )

        if opened["dataset"] not in (None, self.dataset):
            raise LedgerError(
                "the data set is not the one that the ledger was opened with",
                help="pass `dataset=` with the same examples and metadata as when the run began",
            )


def _text(value: float | None) -> str | None:
    return None if value is None else repr(float(value))


def ledger_of(ledger: Ledger | None, rank: int) -> Ledger | Unwritten:
    """Return where a rank writes. Raises LedgerError unless rank 0, and no other, was given a ledger."""
    if rank != ROOT:
        if ledger is not None:
            raise LedgerError(
                f"rank {rank} was given a ledger",
                help="pass `ledger=None` on every rank but 0, which writes for all",
            )
        return Unwritten()
    if ledger is None:
        raise LedgerError("the run has no ledger", help="pass `ledger=`; of several processes, rank 0 has it")
    return ledger


def committer_of(ledger: Ledger | Unwritten, secret: Path | None) -> Committer:
    """Return the run's committer; a ledger with entries has its secret already.

    secret: the file with the secret; None: `<ledger path>.secret`. What is not written needs no secret that
    lasts. Raises KeyFileError.
    """
    if isinstance(ledger, Unwritten):
        return Committer(secrets.token_bytes(SIZE))
    path = secret or Path(f"{ledger.path}.secret")
    return Committer.load(path) if ledger.entries_on_open else Committer.load_or_create(path)
