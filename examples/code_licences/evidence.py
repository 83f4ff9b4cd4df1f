"""What the model learned from what, read back from the ledger of the run.

The ledger names no file. Whoever holds the run's secret can compute the commitment of each file and so find
it again; without the secret the same entries say only how many examples were treated how.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gradwarden.policy.program import SCALE
from gradwarden.runtime.ledger.entries import Entry
from gradwarden.runtime.records.history import History


@dataclass(slots=True)
class Influence:
    """How one group of files was treated: examples per verdict and rule, and the weight each band took."""

    verdicts: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    weights: Counter[str] = field(default_factory=Counter)

    @property
    def examples(self) -> int:
        return self.verdicts.total()

    def add(self, bands: Iterable[str], decision: Mapping[str, Any]) -> None:
        """Count one example that a committed step treated by `decision` (as the ledger records it)."""
        self.verdicts[decision["verdict"]] += 1
        self.rules.update(decision["rules"])
        self.weights.update(dict(zip(bands, decision["weights"], strict=True)))


@dataclass(slots=True)
class Evidence:
    """Influence by group, summed over the committed steps; a refused step influenced nothing."""

    bands: tuple[str, ...] = ()
    groups: dict[str, Influence] = field(default_factory=dict)
    committed: int = 0
    refused: int = 0

    def share(self, group: str, band: str) -> float:
        """Return the part of all weight in `band` that came from `group`; 0.0 where the band got none."""
        total = sum(influence.weights[band] for influence in self.groups.values())
        return self.groups[group].weights[band] / total if total else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the sums as JSON data; weights are in whole examples."""
        return {
            name: {
                "examples": influence.examples,
                "verdicts": dict(sorted(influence.verdicts.items())),
                "rules": dict(sorted(influence.rules.items())),
                "weights": {band: influence.weights[band] / SCALE for band in self.bands},
                "shares": {band: round(self.share(name, band), 6) for band in self.bands},
            }
            for name, influence in sorted(self.groups.items())
        }


def gather(entries: Iterable[Entry], groups: Mapping[bytes, str]) -> Evidence:
    """Sum the influence of each group of examples; `groups` names the group of each commitment.

    Raises KeyError for an example that belongs to no group: then the ledger is of other data.
    """
    evidence, history = Evidence(), History()
    for entry in entries:
        step = history.pending
        history.apply(entry.kind, entry.body)
        match entry.kind:
            case "opened":
                evidence.bands = tuple(entry.body["bands"])
            case "committed" if step is not None:
                evidence.committed += 1
                for commitment, number in zip(step.commitments, step.body["decision"], strict=True):
                    influence = evidence.groups.setdefault(groups[commitment], Influence())
                    influence.add(evidence.bands, history.decisions[number])
            case "refused":
                evidence.refused += 1
    return evidence
