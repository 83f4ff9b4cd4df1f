"""Decisions: what a program says about one example, and why."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import SCALE, PrivacyTerms

Verdict = Literal["admit", "limit", "defer", "refuse", "invalid"]

VERDICTS: tuple[Verdict, ...] = ("admit", "limit", "defer", "refuse", "invalid")
"""Every verdict, from the most to the least that is learned; the index is the code used in arrays.

admit: every band at full weight. limit: something is learned, but some band is masked or attenuated.
defer: nothing yet; time alone (a later stage, the end of an embargo, a band's turn) will lift what stops it.
refuse: nothing. invalid: the metadata break the schema; nothing, and the faults are named.
"""

Stage = Literal[
    "schema",
    "suppress",
    "retain",
    "privacy",
    "memorization",
    "curriculum",
    "pace",
    "depth",
    "modulate",
    "assert",
]


ObligationKind = Literal["privacy", "quarantine", "hold_out"]

OBLIGATIONS: tuple[ObligationKind, ...] = ("privacy", "quarantine", "hold_out")


@frozen
class Problem:
    """One fault of an example's metadata: which attribute, a stable code, and the fault in words.

    Codes: missing, unknown_attribute, wrong_type, out_of_range, unknown_value, too_long, not_finite.
    """

    attribute: str
    code: str
    detail: str


@frozen
class Cause:
    """One rule that lowered a weight, and how (`Effect` of the program, `not_granted` or `assertion`)."""

    rule: str
    effect: str


@frozen
class Obligation:
    """Something the runtime must do for this example beyond its weights.

    privacy: the terms of a privacy rule. one_in: of how many tokens one must be held out.
    """

    kind: ObligationKind
    rule: str
    privacy: PrivacyTerms | None = None
    one_in: int | None = None


@frozen
class Decision:
    """The outcome for one example.

    micro: the weight per band in millionths, in the order of `bands`. rules, advisory, waived: names of the
    rules that matched and were enforced; that matched but only advise; that matched but were lifted; each
    sorted. stage: the first gate at which nothing remained, None where something is learned.
    """

    verdict: Verdict
    bands: tuple[str, ...]
    micro: tuple[int, ...]
    rules: tuple[str, ...] = ()
    advisory: tuple[str, ...] = ()
    waived: tuple[str, ...] = ()
    obligations: tuple[Obligation, ...] = ()
    causes: tuple[Cause, ...] = ()
    stage: Stage | None = None
    problems: tuple[Problem, ...] = ()

    @property
    def weights(self) -> dict[str, float]:
        """The weight per band as floats."""
        return {band: weight / SCALE for band, weight in zip(self.bands, self.micro, strict=True)}

    def to_json(self) -> dict[str, Any]:
        """Return the decision as JSON data; `micro` is left out, `weights` are floats."""
        return {
            "verdict": self.verdict,
            "weights": self.weights,
            "rules": list(self.rules),
            "advisory": list(self.advisory),
            "waived": list(self.waived),
            "obligations": [{"kind": o.kind, "rule": o.rule} for o in self.obligations],
            "causes": [{"rule": c.rule, "effect": c.effect} for c in self.causes],
            "stage": self.stage,
            "problems": [
                {"attribute": p.attribute, "code": p.code, "detail": p.detail} for p in self.problems
            ],
        }


def step_verdict(verdicts: Collection[str]) -> str:
    """Return the verdict of a step from those of its examples: `admit`, `limit` or `refuse`.

    admit: every example at full weight. refuse: no example may shape anything, or there is none.
    """
    if "admit" not in verdicts and "limit" not in verdicts:
        return "refuse"
    return "admit" if set(verdicts) == {"admit"} else "limit"


def invalid(bands: tuple[str, ...], problems: tuple[Problem, ...]) -> Decision:
    """Return the decision for metadata that break the schema."""
    return Decision("invalid", bands, (0,) * len(bands), stage="schema", problems=problems)
