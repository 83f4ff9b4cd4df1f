"""What a ledger says of one example: was it flagged, which steps saw it, how deep did it go? No torch.

An example is asked for by its commitment. Who has the run's secret can work it out from an id; who was given
an id's salt, from that id alone; and nobody else. Without one of the two the ledger confirms no guess.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gradwarden.runtime.commitments import Committer
from gradwarden.runtime.errors import LedgerError
from gradwarden.runtime.ledger.reader import read_entries
from gradwarden.runtime.memorization.manifest import Trace
from gradwarden.runtime.memorization.sightings import Sighting, sightings


@dataclass(frozen=True, slots=True)
class Dossier:
    """All steps of a ledger that one example was in; none where it was in none."""

    commitment: bytes
    seen: tuple[Sighting, ...]

    @property
    def trace(self) -> Trace:
        trace = Trace()
        for sighting in self.seen:
            trace.see(sighting)
        return trace

    @property
    def learned(self) -> list[int]:
        """The steps in which the model may have learned from it."""
        return [sighting.step for sighting in self.seen if sighting.learned]

    def bands(self) -> dict[str, list[int]]:
        """Return the steps in which it may have shaped each band that it reached."""
        steps: dict[str, list[int]] = {}
        for sighting in self.seen:
            for band in sighting.reached:
                steps.setdefault(band, []).append(sighting.step)
        return steps

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON data. Weights are by band, as shares."""
        return {
            "commitment": self.commitment.hex(),
            "known": bool(self.seen),
            **self.trace.to_json(),
            "steps": [
                {
                    "step": one.step,
                    "outcome": one.outcome,
                    "verdict": one.verdict,
                    "weights": {
                        band: weight / 1_000_000
                        for band, weight in zip(one.terms.bands, one.weights, strict=True)
                    },
                    "guards": list(one.acted),
                    "noted_by": list(one.noted),
                }
                for one in self.seen
            ],
        }


def dossiers(path: str | os.PathLike[str], commitments: Iterable[bytes]) -> list[Dossier]:
    """Return what a ledger says of some examples, in one reading. Raises LedgerError, LedgerDamaged."""
    wanted: dict[bytes, list[Sighting]] = {commitment: [] for commitment in commitments}
    for sighting in sightings(path):
        if sighting.commitment in wanted:
            wanted[sighting.commitment].append(sighting)
    return [Dossier(commitment, tuple(seen)) for commitment, seen in wanted.items()]


def check_secret(path: str | os.PathLike[str], committer: Committer) -> None:
    """Raise LedgerError where a secret is not the one of the ledger's run.

    Under another secret every id would seem unknown.
    """
    first = next(iter(read_entries(os.fspath(path))), None)
    named = None if first is None else first.body.get("secret_commitment")
    if named != committer.secret_commitment:
        raise LedgerError(
            f"this secret is not the one under which `{os.fspath(path)}` was written",
            help="give the file that was written beside the ledger when the run began, `<ledger>.secret`",
        )
