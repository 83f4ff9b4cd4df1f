"""Checks from a run's ledger that its maintained bands were anchored, measured and kept within their bounds.

Before the first step at which a rule is in force, an `anchored` entry for each of its bands must name the
anchor and the policy's own terms. A band that stays maintained over a change of policy, with the same
parameters, keeps its anchor. Every committed step that reaches a maintained band must say how far that has
drifted (`maintained`, before the step is committed), and no further than a hard rule allows. It must also
have rehearsed what a hard rule demands, which its decisions tell. The codes of what is found: `wrong_anchor`,
`wrong_drift`, `wrong_rehearsal`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from math import inf
from typing import Any

from gradwarden.policy.decimals import unscaled
from gradwarden.policy.evaluation.phrasing import percent
from gradwarden.policy.evaluation.rehearsal import demands, shortfall
from gradwarden.policy.program import Maintenance, Program
from gradwarden.runtime.verification.drift_measure import AnchoredBand
from gradwarden.runtime.verification.violation import ViolationError, names, number


class MaintenanceAudit:
    """Follows one run's anchors and drifts. Every method raises ViolationError."""

    def __init__(self) -> None:
        self._program: Program | None = None
        self._rules: dict[str, Maintenance] = {}
        self._parameters: dict[str, tuple[str, ...]] = {}
        self._kept: dict[str, tuple[tuple[str, ...], str]] = {}
        """Per band, its parameters and the digest of its anchor, from programs before the one in force."""
        self._anchors: dict[str, Mapping[str, Any]] = {}
        self._measured: Mapping[str, Any] | None = None
        self.drift: dict[str, str] = {}
        """How far each maintained band had drifted after the last committed step that moved it."""

    def take_program(self, program: Program) -> None:
        """Take the program that is in force from now on."""
        self._kept |= {b: (self._parameters[b], body["digest"]) for b, body in self._anchors.items()}
        self._anchors = {}
        self._program = program
        self._rules = {band: rule for rule in program.maintained for band in rule.bands}
        self._parameters = {band.name: band.parameters for band in program.bands}

    @property
    def program(self) -> Program | None:
        """The program that is in force."""
        return self._program

    def check_anchor(self, body: Mapping[str, Any], due: int, *, within_step: bool) -> None:
        """Check an `anchored` entry. due: the next step."""
        band, rule = body["band"], self._rules.get(body["band"])
        if rule is None or rule.name != body["rule"]:
            raise _anchor(f"`{body['rule']}` does not maintain the band `{band}`")
        if (body["strength"], body["drift"]) != (rule.strength, rule.drift):
            raise _anchor(f"the band `{band}` was anchored under other terms than those of `{rule.name}`")
        if within_step or body["step"] != due or due < rule.start or band in self._anchors:
            raise _anchor(f"the band `{band}` was anchored at another time than when `{rule.name}` began")
        parameters, digest = self._kept.get(band, ((), ""))
        if digest and parameters == self._parameters[band] and digest != body["digest"]:
            raise _anchor(f"the band `{band}` stayed maintained, and got another anchor")
        self._anchors[band] = body

    def standing(self) -> tuple[AnchoredBand, ...]:
        """Return the bands that are maintained now, with their anchors."""
        return tuple(
            AnchoredBand(band, self._parameters[band], self._rules[band], body["file"], body["digest"])
            for band, body in self._anchors.items()
        )

    def check_step(self, step: int) -> None:
        """Check that all is anchored that is to be maintained in a step."""
        for band, rule in self._rules.items():
            if rule.start <= step and band not in self._anchors:
                raise _anchor(f"step {step} begins, and the band `{band}` has no anchor for `{rule.name}`")
        self._kept = {}
        self._measured = None

    def check_measured(self, body: Mapping[str, Any]) -> None:
        """Check a `maintained` entry; it stands between a step and its outcome, once."""
        if self._measured is not None:
            raise _drift(f"the drift after step {body['step']} is recorded twice")
        for band, text in body["drift"].items():
            rule = self._rules.get(band)
            if band not in self._anchors or rule is None:
                raise _drift(f"step {body['step']} records the drift of `{band}`, which is not maintained")
            advisory = rule.level == "advisory"
            drift = inf if text == "inf" and advisory else number(text)
            bound = None if rule.drift is None or advisory else unscaled(rule.drift, 6)
            if drift < 0 or (bound is not None and Decimal(text) > bound):
                raise _drift(
                    f"after step {body['step']} the band `{band}` had drifted by {text} of its anchor; "
                    f"`{rule.name}` lets it drift by {percent(rule.drift or 0)}"
                )
            if band in body["held"] and bound is None:
                raise _drift(f"step {body['step']} put `{band}` back, and no rule bounds it")
        stray = sorted(set(body["held"]) - body["drift"].keys())
        if stray:
            raise _drift(
                f"step {body['step']} put {names(stray)} back, and does not say how far that drifted"
            )
        self._measured = body["drift"]

    def check_outcome(self, step: int, active: Sequence[str]) -> None:
        """Check a committed step against what was measured. active: the bands that it moved."""
        due = {band for band in active if band in self._anchors}
        if due != set(self._measured or ()):
            raise _drift(
                f"step {step} moved {names(sorted(due))}, which are maintained; it records other drifts"
            )
        self.drift.update(self._measured or {})
        self._measured = None

    def check_rehearsed(self, body: Mapping[str, Any], decisions: Sequence[Mapping[str, Any]]) -> None:
        """Check that a committed step rehearsed enough. body: of its intent. decisions: all, by number."""
        if self._program is None or not demands(self._program, body["step"]):
            return
        counts = Counter(body["decision"])
        short = shortfall(
            self._program,
            body["step"],
            [(decisions[i]["weights"], decisions[i]["rules"], count) for i, count in counts.items()],
        )
        if short is not None:
            raise ViolationError("wrong_rehearsal", f"step {body['step']} was committed: {short}")

    def check_refused(self, step: int) -> None:
        """Check a refused step, which moves nothing."""
        if self._measured is not None:
            raise _drift(f"step {step} was refused, and records a drift")

    def forget(self) -> None:
        """Take what follows for a resumed run: a step that lost its outcome is over."""
        self._measured = None


def _anchor(message: str) -> ViolationError:
    return ViolationError("wrong_anchor", message)


def _drift(message: str) -> ViolationError:
    return ViolationError("wrong_drift", message)
