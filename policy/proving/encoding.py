"""A compiled program as z3 expressions over symbolic inputs: exactly what `policy/combine.py` says.

The weight of a band is not computed but asked about: whether min(grant, cap) reaches a level is a question
about conditions alone, and only the levels that occur in the program matter. So most of an encoding is
propositional. Where modulations scale a band, the factor is an integer in millionths, floor division
included.

Rules can be given switches, to ask what a decision rests on: a rule whose switch is off takes no part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from gradwarden.policy.combine import QUARANTINE
from gradwarden.policy.decision import Verdict
from gradwarden.policy.program import SCALE, Assertion, Clause, Limit, Program, Scaling, SignalSpec
from gradwarden.policy.proving.inputs import Inputs
from gradwarden.policy.proving.smt import FALSE, TRUE, Truth, Whole, conjunction, disjunction, negation, z3
from gradwarden.policy.proving.views import View

Obliged = tuple[str, str]
"""The kind of an obligation and the rule that imposes it."""


@dataclass(frozen=True, slots=True)
class _Grant:
    active: Truth
    weights: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Cap:
    """One clause of a hard limit: `active` where it is in force."""

    active: Truth
    limit: Limit
    clause: Clause


class Encoding:
    """What a program decides, as expressions. Assert `inputs.domain` before asking about any of them.

    valid: the metadata fit the schema; always so where the inputs are the program's own. truth: the truth of
    every condition, in the order of `Program.conditions`; it means something where the metadata are valid.
    Everything else is false, and weights are 0, where they are not.
    matched, advised, waived: by the name of a rule, whether `Decision.rules`, `.advisory` and `.waived` list
    it. obligations: by kind and rule. private: a hard privacy rule applies. failed: by the name of an
    assertion, whether it does not hold of the unchecked weights.

    Weights are in millionths, one per band. unchecked: those that rules give, before assertions; weights:
    those of the decision, all 0 where a hard assertion failed or the metadata are invalid. refused: the
    verdict is `refuse`; nothing: all weights are 0, whatever the verdict.
    """

    def __init__(
        self,
        program: Program,
        inputs: Inputs,
        *,
        switches: Mapping[str, Truth] | None = None,
        everything: Truth = FALSE,
    ) -> None:
        """Encode a program.

        `switches` maps names of rules to whether they are in force; assertions cannot be switched.
        `everything` is whether a grant of the greatest weight to every band for every example is added.
        """
        self.program = program
        self.inputs = inputs
        self.view = View(program, inputs)
        self.valid = self.view.valid()
        self.truth: tuple[Truth, ...] = tuple(map(self.view.truth, program.conditions()))
        self._switches = switches or {}
        self.matched: dict[str, Truth] = {}
        self.advised: dict[str, Truth] = {}
        self.waived: dict[str, Truth] = {}
        # Rules say nothing about an example that breaks the schema.
        known = iter([conjunction((self.valid, truth)) for truth in self.truth])
        self._grants = [
            _Grant(conjunction((self.valid, everything)), (program.max_weight,) * len(program.bands))
        ]
        self._grants += [
            _Grant(self._on(grant.name, grant.level == "hard", next(known)), grant.weights)
            for grant in program.grants
        ]
        clauses = [(limit, list(islice(known, len(limit.clauses)))) for limit in program.limits]
        self._scalings: dict[str, list[tuple[Truth, Scaling]]] = {}
        for modulation in program.modulations:
            active = self._on(modulation.name, modulation.level == "hard", next(known))
            for scaling in modulation.scalings:
                self._scalings.setdefault(scaling.band, []).append((active, scaling))
        lifted: dict[str, list[Truth]] = {}
        for waiver in program.waivers:
            lifted.setdefault(waiver.rule, []).append(conjunction((self._switch(waiver.name), next(known))))
        self._caps = [
            cap for limit, truths in clauses for cap in self._limit(limit, truths, lifted.get(limit.name, []))
        ]
        self._factors = {band: self._factor(scalings) for band, scalings in self._scalings.items()}
        self.obligations = self._obligations()
        self.private = disjunction(
            truth for (kind, _), truth in self.obligations.items() if kind == "privacy"
        )
        self.failed = {}
        for assertion in program.assertions:
            when = next(known)
            then = next(known) if assertion.form == "implies" else TRUE
            self.failed[assertion.name] = self.breach(assertion, when, then)
            self._on(assertion.name, assertion.level == "hard", self.failed[assertion.name])
        self.broken = disjunction(self.failed[a.name] for a in program.assertions if a.level == "hard")

    # --- rules ----------------------------------------------------------------------------------------------

    def _switch(self, rule: str) -> Truth:
        return self._switches.get(rule, TRUE)

    def _on(self, rule: str, hard: bool, truth: Truth) -> Truth:
        """Note where a rule is listed; return where it is in force."""
        matched = conjunction((self._switch(rule), truth))
        self.matched[rule] = matched if hard else FALSE
        self.advised[rule] = FALSE if hard else matched
        return self.matched[rule]

    def _limit(self, limit: Limit, truths: list[Truth], lifted: list[Truth]) -> list[_Cap]:
        waived = disjunction(lifted)
        some = self._on(limit.name, limit.level == "hard", disjunction(truths))
        advised = self.advised[limit.name]
        self.waived[limit.name] = conjunction((self._switch(limit.name), disjunction(truths), waived))
        self.matched[limit.name] = conjunction((some, negation(waived)))
        self.advised[limit.name] = conjunction((advised, negation(waived)))
        if limit.level != "hard":
            return []
        inforce = conjunction((self._switch(limit.name), negation(waived)))
        return [
            _Cap(conjunction((inforce, truth)), limit, clause)
            for clause, truth in zip(limit.clauses, truths, strict=True)
        ]

    def _obligations(self) -> dict[Obliged, Truth]:
        found: dict[Obliged, list[Truth]] = {}
        for cap in self._caps:
            if cap.clause.effect == "confined":
                found.setdefault(("privacy", cap.limit.name), []).append(cap.active)
            elif cap.clause.effect == "quarantined":
                found.setdefault(("quarantine", cap.limit.name), []).append(cap.active)
            elif cap.clause.effect == "held_out":
                found.setdefault(("hold_out", cap.limit.name), []).append(cap.active)
        return {key: disjunction(truths) for key, truths in found.items()}

    # --- weights --------------------------------------------------------------------------------------------

    def _factor(self, scalings: Iterable[tuple[Truth, Scaling]]) -> Whole:
        specs = {spec.name: spec for spec in self.program.signals}
        factor = z3.IntVal(SCALE)
        for active, scaling in scalings:
            own = self._scaled(scaling, specs[scaling.signal])
            factor = z3.If(z3.And(active, own < factor), own, factor)
        return factor

    def _scaled(self, scaling: Scaling, spec: SignalSpec) -> Whole:
        if spec.hi == spec.lo:
            return z3.IntVal(min(scaling.at_low, scaling.at_high))
        slope = (scaling.at_high - scaling.at_low) * (self.view.signal(spec.name) - spec.lo)
        return scaling.at_low + slope / (spec.hi - spec.lo)  # z3 divides integers as Python's // does

    @cached_property
    def _levels(self) -> list[list[int]]:
        """The weights above 0 that min(grant, cap) can have, per band, ascending."""
        greatest = self.program.max_weight
        found = []
        for band in range(len(self.program.bands)):
            levels = {greatest} | {grant.weights[band] for grant in self._grants}
            levels |= {cap.clause.caps[band] for cap in self._caps}
            found.append(sorted(level for level in levels if 0 < level <= greatest))
        return found

    def _reaches(self, band: int, level: int, *, lasting: bool = False) -> Truth:
        """Return whether min(grant, cap) is at least a level; `lasting` leaves out limits that time lifts."""
        granted = disjunction(grant.active for grant in self._grants if grant.weights[band] >= level)
        if granted is FALSE:
            return FALSE
        return conjunction(
            [granted]
            + [
                negation(cap.active)
                for cap in self._caps
                if cap.clause.caps[band] < level and not (lasting and cap.clause.defers)
            ]
        )

    def exceeds(self, band: str, bound: int, *, lasting: bool = False) -> Truth:
        """Return whether the unchecked weight of a band is above `bound` millionths.

        `lasting`: as if the limits that time lifts were over.
        """
        index = self.program.band_names.index(band)
        above = [level for level in self._levels[index] if level > bound]
        factor = self._factors.get(band)
        if factor is None:
            return self._reaches(index, above[0], lasting=lasting) if above else FALSE
        return disjunction(
            conjunction((self._reaches(index, level, lasting=lasting), level * factor >= (bound + 1) * SCALE))
            for level in above
        )

    def _weight(self, index: int) -> Whole:
        factor = self._factors.get(self.program.band_names[index])
        weight = z3.IntVal(0)
        for level in self._levels[index]:
            reached = self._reaches(index, level)
            if reached is not FALSE:
                value = z3.IntVal(level) if factor is None else level * factor / SCALE
                weight = z3.If(reached, value, weight)
        return weight

    @cached_property
    def unchecked(self) -> tuple[Whole, ...]:
        return tuple(self._weight(index) for index in range(len(self.program.bands)))

    @cached_property
    def _decided(self) -> Truth:
        return conjunction((self.valid, negation(self.broken)))

    @cached_property
    def weights(self) -> tuple[Whole, ...]:
        zero = z3.IntVal(0)
        if self._decided is TRUE:
            return self.unchecked
        return tuple(z3.If(self._decided, weight, zero) for weight in self.unchecked)

    @cached_property
    def learned(self) -> Truth:
        """Whether some band's unchecked weight is above 0."""
        return disjunction(self.exceeds(band, 0) for band in self.program.band_names)

    def above(self, band: str, bound: int) -> Truth:
        """Return whether the weight of a band, assertions checked, is above `bound` millionths."""
        return conjunction((self._decided, self.exceeds(band, bound)))

    # --- verdicts -------------------------------------------------------------------------------------------

    @cached_property
    def nothing(self) -> Truth:
        return negation(conjunction((self._decided, self.learned)))

    @cached_property
    def refused(self) -> Truth:
        return self.verdicts["refuse"]

    @cached_property
    def verdicts(self) -> dict[Verdict, Truth]:
        """The truth of each verdict; exactly one holds."""
        waits = conjunction(
            (
                negation(self.broken),
                disjunction(cap.active for cap in self._caps if cap.clause.defers),
                disjunction(self.exceeds(band, 0, lasting=True) for band in self.program.band_names),
            )
        )
        full = conjunction(
            self.exceeds(band, SCALE - 1) for band in self.program.band_names if band != QUARANTINE
        )
        something = negation(self.nothing)
        return {
            "admit": conjunction((something, full)),
            "limit": conjunction((something, negation(full))),
            "defer": conjunction((self.valid, self.nothing, waits)),
            "refuse": conjunction((self.valid, self.nothing, negation(waits))),
            "invalid": negation(self.valid),
        }

    # --- assertions -----------------------------------------------------------------------------------------

    def breach(self, assertion: Assertion, when: Truth, then: Truth) -> Truth:
        """Return where an assertion does not hold of what the other rules decide."""
        match assertion.form:
            case "implies":
                wrong = negation(then)
            case "always_refuse":
                wrong = self.learned
            case "always_private":
                wrong = conjunction((self.learned, negation(self.private)))
            case "never_reach":
                wrong = self.exceeds(assertion.band, 0)
            case "at_most":
                wrong = self.exceeds(assertion.band, assertion.bound)
        return conjunction((when, wrong))
