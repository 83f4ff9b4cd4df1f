"""Why an example is decided as it is: every rule with its conditions, the values they read, and the effect.

The explanation is plain data (`to_json`) and prints as text without colour (`render`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

from gradwarden.policy.context import Context
from gradwarden.policy.decision import Decision, Problem
from gradwarden.policy.evaluation.evaluate import Facts, decide, holds, read_facts
from gradwarden.policy.evaluation.partition import reads_of
from gradwarden.policy.evaluation.phrasing import Phrasing, maintenance_terms, share
from gradwarden.policy.evaluation.values import day_text, decode_signal, decode_value
from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import Assertion, Clause, Condition, Level, Limit, Program

Role = Literal["grants", "limits", "scales", "waives", "asserts"]
State = Literal["enforced", "advisory", "waived", "silent"]
"""silent: nothing of the rule matches, or the assertion holds."""


@frozen
class ConditionTrace:
    """One condition of a rule: its text, its truth, what a true one does, and the values that it reads."""

    text: str
    holds: bool
    effect: str
    values: Mapping[str, str]


@frozen
class RuleTrace:
    """One rule of the program as it bears on the example."""

    name: str
    role: Role
    kind: str
    state: State
    because: str
    conditions: tuple[ConditionTrace, ...]


@frozen
class MaintainedBands:
    """A `maintain` rule in force, with those of its bands that the example shapes."""

    name: str
    bands: tuple[str, ...]
    terms: str
    level: Level
    because: str


@frozen
class Explanation:
    """A decision and the rules behind it, in the order of the program; none where there are problems.

    maintained: what holds the bands that the example shapes near their anchor; it changes no decision.
    """

    program: str
    version: int
    decision: Decision
    rules: tuple[RuleTrace, ...]
    problems: tuple[Problem, ...]
    maintained: tuple[MaintainedBands, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the explanation as JSON data."""
        return {
            "policy": {"name": self.program, "version": self.version},
            "decision": self.decision.to_json(),
            "rules": [asdict(rule) for rule in self.rules],
            "maintained": [asdict(rule) for rule in self.maintained],
        }

    def render(self, *, every_rule: bool = False) -> str:
        """Return the explanation as text; rules that do not bear on the example only where asked for."""
        shown = [rule for rule in self.rules if every_rule or rule.state != "silent"]
        lines = [f"{self.decision.verdict}: {weights_text(self.decision)}", *self._reason()]
        lines += [f"  problem: {problem.attribute}: {problem.detail}" for problem in self.problems]
        for rule in shown:
            lines += ["", *_render_rule(rule)]
        lines += [f"maintain {x.name}: {', '.join(x.bands)}: {x.terms} ({x.level})" for x in self.maintained]
        return "\n".join(lines)

    def _reason(self) -> Iterator[str]:
        if self.decision.stage == "schema":
            yield "  the metadata do not fit the schema; nothing is learned from this example"
        elif self.decision.verdict == "defer":
            yield f"  nothing yet: `{self.decision.stage}` rules close every band for now"
        elif self.decision.stage == "depth":
            yield "  no `depth` rule grants anything, and without a grant nothing is learned"
        elif self.decision.stage is not None:
            yield f"  nothing is left after the `{self.decision.stage}` rules"
        for obligation in self.decision.obligations:
            yield f"  obligation: {obligation.kind} ({obligation.rule})"


def explain(program: Program, metadata: Mapping[str, object], context: Context) -> Explanation:
    """Explain the decision for one example. Raises ContextError as `decide` does."""
    decision = decide(program, metadata, context)
    facts, problems = read_facts(program, metadata, context)
    if problems:
        return Explanation(program.name, program.version, decision, (), problems)
    unchecked = decide(replace(program, assertions=()), metadata, context)
    rules = tuple(_Tracer(program, facts, decision, unchecked.micro).rules())
    held = tuple(_maintained(program, decision, context.step))
    return Explanation(program.name, program.version, decision, rules, problems, held)


def _maintained(program: Program, decision: Decision, step: int) -> Iterator[MaintainedBands]:
    for rule in program.maintained:
        bands = tuple(band for band in rule.bands if decision.weights[band])
        if bands and rule.start <= step:
            yield MaintainedBands(rule.name, bands, maintenance_terms(rule), rule.level, rule.because)


class _Tracer:
    """`unchecked` are the weights, in millionths, that rules give before assertions are checked."""

    def __init__(
        self, program: Program, facts: Facts, decision: Decision, unchecked: tuple[int, ...]
    ) -> None:
        self._program = program
        self._facts = facts
        self._decision = decision
        self._unchecked = unchecked
        self._phrasing = Phrasing(program)
        self._attributes = {spec.name: spec for spec in program.attributes}
        self._signals = {spec.name: spec for spec in program.signals}

    def rules(self) -> Iterator[RuleTrace]:
        program = self._program
        for grant in program.grants:
            yield self._rule(
                grant.name, "grants", "depth", grant.because, [(grant.when, self._per_band(grant.weights))]
            )
        for limit in program.limits:
            clauses = [
                (clause.when, f"{_words(clause.effect)}: {self._does(limit, clause)}")
                for clause in limit.clauses
            ]
            yield self._rule(limit.name, "limits", limit.kind, limit.because, clauses)
        for modulation in program.modulations:
            effect = ", ".join(
                f"{s.band} by {s.signal} from {share(s.at_low)} to {share(s.at_high)}, "
                f"where {s.signal} is {decode_signal(self._signals[s.signal], self._facts.signals[s.signal])}"
                for s in modulation.scalings
            )
            yield self._rule(
                modulation.name, "scales", "modulate", modulation.because, [(modulation.when, effect)]
            )
        for waiver in program.waivers:
            lifted = f"lifts {waiver.rule}, approved by {waiver.approved_by}"
            yield self._rule(waiver.name, "waives", "waive", waiver.because, [(waiver.when, lifted)])
        for assertion in program.assertions:
            claim = _claim(assertion.form, assertion.band, assertion.bound)
            if assertion.name in (*self._decision.rules, *self._decision.advisory):
                claim += self._breach(assertion)
            parts = [(assertion.when, claim)]
            if assertion.form == "implies":
                parts.append((assertion.then, "must hold"))
            yield self._rule(assertion.name, "asserts", "assert", assertion.because, parts)

    def _breach(self, assertion: Assertion) -> str:
        """Say which weights break an assertion; one that is about metadata alone says so by itself."""
        if assertion.form == "implies":
            return ""
        reached = [
            f"{band} at {share(weight)}"
            for band, weight in zip(self._program.band_names, self._unchecked, strict=True)
            if weight and assertion.band in ("", band)
        ]
        return f"; without it: {', '.join(reached)}" if reached else ""

    def _rule(
        self, name: str, role: Role, kind: str, because: str, parts: Sequence[tuple[Condition, str]]
    ) -> RuleTrace:
        conditions = tuple(self._condition(condition, effect) for condition, effect in parts)
        return RuleTrace(name, role, kind, self._state(name, role, conditions), because, conditions)

    def _state(self, name: str, role: Role, conditions: tuple[ConditionTrace, ...]) -> State:
        if name in self._decision.waived:
            return "waived"
        if name in self._decision.advisory:
            return "advisory"
        active = role == "waives" and conditions[0].holds
        return "enforced" if active or name in self._decision.rules else "silent"

    def _condition(self, condition: Condition, effect: str) -> ConditionTrace:
        return ConditionTrace(
            self._phrasing.condition(condition),
            holds(condition, self._facts),
            effect,
            dict(self._values(condition)),
        )

    def _values(self, condition: Condition) -> Iterator[tuple[str, str]]:
        reads, facts = reads_of(condition), self._facts
        for name in sorted(reads.attributes):
            value = facts.values.get(name)
            yield name, "absent" if value is None else decode_value(self._attributes[name], value)
        for name in sorted(reads.signals):
            yield name, decode_signal(self._signals[name], facts.signals[name])
        for name in sorted(reads.clocks):
            yield name, self._clock(name)

    def _clock(self, name: str) -> str:
        if name == "spent":
            return ", ".join(sorted(self._facts.spent)) or "none"
        value: int = getattr(self._facts, name)
        return day_text(value) if name == "today" else str(value)

    def _per_band(self, weights: tuple[int, ...]) -> str:
        parts = [
            f"{band} at {share(weight)}"
            for band, weight in zip(self._program.band_names, weights, strict=True)
            if weight
        ]
        return f"reach {', '.join(parts)}" if parts else "reach nothing"

    def _does(self, limit: Limit, clause: Clause) -> str:
        return f"1 in {limit.hold_out} tokens" if limit.hold_out else self._caps(clause.caps)

    def _caps(self, caps: tuple[int, ...]) -> str:
        if not any(caps):
            return "every band closed"
        parts = [
            f"{band} at most {share(cap)}"
            for band, cap in zip(self._program.band_names, caps, strict=True)
            if cap < self._program.max_weight
        ]
        return ", ".join(parts) or "no band capped"


def _render_rule(rule: RuleTrace) -> Iterator[str]:
    yield f"{rule.kind} {rule.name}: {rule.state}" + (f" (because {rule.because})" if rule.because else "")
    for condition in rule.conditions:
        mark = "yes" if condition.holds else "no "
        yield f"  {mark}  when {condition.text}"
        if condition.values:
            values = ", ".join(f"{name} = {value}" for name, value in condition.values.items())
            yield f"       with {values}"
        if condition.holds:
            yield f"       -> {condition.effect}"


def weights_text(decision: Decision) -> str:
    """Return the weight per band in words: `shallow 1, deep 0.5`."""
    shares = zip(decision.bands, decision.micro, strict=True)
    return ", ".join(f"{band} {share(weight)}" for band, weight in shares)


def _claim(form: str, band: str, bound: int) -> str:
    match form:
        case "never_reach":
            return f"never reach {band}"
        case "at_most":
            return f"at most {share(bound)} in {band}"
        case "implies":
            return "then the next must hold"
        case _:
            return form.replace("_", " ")


def _words(effect: str) -> str:
    return effect.replace("_", " ")
