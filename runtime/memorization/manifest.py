"""The memorization manifest: what guards flagged, what was done, what risk is left; from a ledger alone.

Nothing in it tells an id or a text: an example is its commitment. What is left of the risk is told by class:

    stopped     flagged by a guard in force; nothing was learned from it since
    limited     flagged by a guard in force; something was learned from it since, as far as guards let it
    noted       flagged, but by nothing in force: advisory or waived guards alone
    unflagged   no guard ever flagged it

Exposures *before* are those up to the step that first flagged the example (a guard flags before anything is
learned); exposures *after* are those from that step on. How deep an example reached is the last band, in the
policy's order, that it may have shaped; `quarantine` counts as deep only where it reached nothing else.

The published JSON Schema is `runtime/schemas/memorization.schema.json`. Memory grows with the number of
examples. No torch.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gradwarden.runtime.memorization.sightings import QUARANTINE, Guard, Sighting, sightings

FORMAT = "gradwarden/memorization/1"

Risk = Literal["stopped", "limited", "noted", "unflagged"]

RISKS: tuple[Risk, ...] = ("stopped", "limited", "noted", "unflagged")

REPETITIONS = (0, 1, 2, 4, 8, 16, 32, 64, 128)
"""Exposures are told in ranges that begin with these; the last has no end."""


@dataclass(slots=True)
class Trace:
    """What a ledger says of one example, all its steps together.

    flags: steps in which a guard flagged it; first_flag, last_flag: the first and the last of them.
    held_out: exposures with some tokens held out, by the rules `holding`. deepest, deepest_after: how deep it
    reached, in all and from the first flag on; None: nowhere.
    """

    exposures: int = 0
    after: int = 0
    held_out: int = 0
    flags: int = 0
    first_flag: int | None = None
    last_flag: int | None = None
    acted: set[str] = field(default_factory=set)
    noted: set[str] = field(default_factory=set)
    holding: set[str] = field(default_factory=set)
    granted: tuple[str, ...] = ()
    deepest: str | None = None
    deepest_after: str | None = None

    def see(self, sighting: Sighting) -> None:
        """Take the example's next step."""
        self.granted = sighting.granted or self.granted
        if sighting.acted or sighting.noted:
            self.flags += 1
            self.first_flag = sighting.step if self.first_flag is None else self.first_flag
            self.last_flag = sighting.step
            self.acted.update(sighting.acted)
            self.noted.update(sighting.noted)
        self.holding.update(sighting.holding)
        if sighting.learned:
            bands = sighting.terms.bands
            self.exposures += 1
            self.held_out += bool(sighting.holding)
            self.deepest = deepest([self.deepest, *sighting.reached], bands)
            if self.first_flag is not None:
                self.after += 1
                self.deepest_after = deepest([self.deepest_after, *sighting.reached], bands)

    @property
    def risk(self) -> Risk:
        if self.acted:
            return "limited" if self.after else "stopped"
        return "noted" if self.noted else "unflagged"

    def to_json(self) -> dict[str, Any]:
        return {
            "risk": self.risk,
            "guards": sorted(self.acted),
            "noted_by": sorted(self.noted),
            "flags": self.flags,
            "first_flag": self.first_flag,
            "last_flag": self.last_flag,
            "exposures": {"before": self.exposures - self.after, "after": self.after},
            "held_out": self.held_out,
            "deepest": self.deepest,
            "deepest_after": self.deepest_after,
        }


def deepest(reached: Iterable[str | None], bands: tuple[str, ...]) -> str | None:
    """Return the deepest of some bands, by the policy's order; `quarantine` only where there is no other."""
    named = {band for band in reached if band is not None}
    ordered = [band for band in bands if band in named and band != QUARANTINE]
    # A band that only an earlier policy of the run had is told rather than forgotten.
    return max(ordered or sorted(named), key=bands.index if ordered else str, default=None)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a run's guards found and did. traces: by commitment. guards: every one that was in force, by name.

    flags: by guard and step, how many examples it flagged, or held out tokens of.
    """

    steps: int
    traces: Mapping[bytes, Trace]
    guards: Mapping[str, Guard]
    flags: Mapping[str, Mapping[int, int]]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Manifest:
        """Make the manifest of a ledger, whose links are checked on the way; `verify` checks the rest.

        Raises LedgerError, LedgerDamaged.
        """
        return cls.of(sightings(path))

    @classmethod
    def of(cls, seen: Iterable[Sighting]) -> Manifest:
        """Make the manifest of all sightings of a run."""
        traces: dict[bytes, Trace] = {}
        guards: dict[str, Guard] = {}
        flags: dict[str, Counter[int]] = {}
        steps = 0
        for sighting in seen:
            steps = sighting.step + 1
            guards.update(sighting.terms.guards)
            traces.setdefault(sighting.commitment, Trace()).see(sighting)
            for rule in (*sighting.acted, *sighting.noted, *sighting.holding):
                flags.setdefault(rule, Counter())[sighting.step] += 1
        return cls(steps, traces, guards, flags)

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as JSON data; flagged examples are listed by commitment, first flag first."""
        flagged = [(commitment, trace) for commitment, trace in self.traces.items() if trace.flags]
        flagged.sort(key=lambda item: (item[1].first_flag, item[0]))
        return {
            "format": FORMAT,
            "steps": self.steps,
            "examples": len(self.traces),
            "exposures": sum(trace.exposures for trace in self.traces.values()),
            "guards": [self._guard(guard) for _, guard in sorted(self.guards.items())],
            "risk": [_group(risk, self._by_risk(risk)) for risk in RISKS],
            "granted_by": self._by_grant(),
            "flagged": [{"commitment": c.hex(), **trace.to_json()} for c, trace in flagged],
        }

    def _guard(self, guard: Guard) -> dict[str, Any]:
        flags = self.flags.get(guard.rule, {})
        own = [t for t in self.traces.values() if guard.rule in t.acted | t.noted | t.holding]
        return {
            "rule": guard.rule,
            "kind": guard.kind,
            "level": guard.level,
            "effects": list(guard.effects),
            "because": guard.because,
            "flags": sum(flags.values()),
            "first_step": min(flags, default=None),
            "last_step": max(flags, default=None),
            **_totals(own),
        }

    def _by_risk(self, risk: Risk) -> list[Trace]:
        return [trace for trace in self.traces.values() if trace.risk == risk]

    def _by_grant(self) -> list[dict[str, Any]]:
        """Return how many examples are in each class of risk, by the `depth` rules that last let them in."""
        counts: dict[tuple[str, ...], Counter[Risk]] = {}
        for trace in self.traces.values():
            counts.setdefault(trace.granted, Counter())[trace.risk] += 1
        return [
            {"rules": list(rules), **{risk: counts[rules][risk] for risk in RISKS}}
            for rules in sorted(counts)
        ]


def _group(risk: Risk, traces: list[Trace]) -> dict[str, Any]:
    ranges = Counter(bisect_right(REPETITIONS, trace.exposures) - 1 for trace in traces)
    repeated = [{"from": REPETITIONS[place], "examples": ranges[place]} for place in sorted(ranges)]
    return {"class": risk, **_totals(traces), "repeated": repeated}


def _totals(traces: list[Trace]) -> dict[str, Any]:
    """Return how many examples there are, how often they were learned from, and how deep they reached."""
    reached = Counter(trace.deepest for trace in traces if trace.deepest is not None)
    after = Counter(trace.deepest_after for trace in traces if trace.deepest_after is not None)
    return {
        "examples": len(traces),
        "exposures": {
            "before": sum(trace.exposures - trace.after for trace in traces),
            "after": sum(trace.after for trace in traces),
        },
        "held_out": sum(trace.held_out for trace in traces),
        "deepest": dict(sorted(reached.items())),
        "deepest_after": dict(sorted(after.items())),
    }
