"""Checks rules and lowers each to a grant, a limit or a modulation of the program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal

from gradwarden.policy.checking.check_conditions import Conditions
from gradwarden.policy.checking.check_schema import whole
from gradwarden.policy.checking.clauses import Clauses, target_weights
from gradwarden.policy.checking.logic import conjunction
from gradwarden.policy.checking.phases import in_phases
from gradwarden.policy.checking.scope import Scope
from gradwarden.policy.checking.types import MAX_COUNT, Checked, day_text
from gradwarden.policy.combine import QUARANTINE
from gradwarden.policy.decimals import decimal_text, scaled
from gradwarden.policy.evaluation.partition import reads_of
from gradwarden.policy.program import (
    SCALE,
    AttributeValue,
    Clause,
    ClockName,
    ClockValue,
    Compare,
    CompareOp,
    Condition,
    Effect,
    Grant,
    Level,
    Limit,
    LimitKind,
    Modulation,
    Number,
    NumericExpr,
    PrivacyTerms,
    Scaling,
    Spent,
    ValueType,
)
from gradwarden.policy.syntax import tree as s

MAX_EPSILON = Decimal(10_000)
MAX_CLIP = Decimal(1_000_000_000)
MAX_NOISE = Decimal(1_000_000_000)
MAX_HELD = 1_000
"""The least share of tokens that a rule may hold out: one in so many."""
MAX_SHOWN = 80
"""The longest condition that a suggestion repeats."""


def check_rule(rule: s.Rule, conditions: Conditions) -> Grant | Limit | Modulation | None:
    """Return what a rule compiles to; None for a waiver, or where nothing can be made of it."""
    check = _RuleCheck(rule, conditions)
    lower = _LOWER.get(rule.kind)
    return lower(check) if lower else None


class _RuleCheck:
    """One rule with its clauses and its condition, which every kind of rule may have."""

    def __init__(self, rule: s.Rule, conditions: Conditions) -> None:
        self.rule = rule
        self.conditions = conditions
        self.scope: Scope = conditions.scope
        self.faults = conditions.faults
        self.clauses = Clauses(rule, self.scope)
        known = self.faults.number
        self.when: Checked = conditions.check(self.clauses.when)
        self.misread = self.faults.cascading or self.faults.number > known
        """Whether the condition has faults of its own, so that nothing can be told from what it tests."""
        self.level: Level = rule.level or "hard"

    # --- parts ----------------------------------------------------------------------------------------------

    @property
    def open(self) -> tuple[int, ...]:
        """Caps that lower nothing."""
        return (self.scope.ceiling,) * len(self.scope.bands)

    @property
    def closed(self) -> tuple[int, ...]:
        return (0,) * len(self.scope.bands)

    def clause(self, effect: Effect, caps: tuple[int, ...], *more: Condition, defers: bool = False) -> Clause:
        return Clause(conjunction(self.when.condition, *more), effect, caps, defers)

    def limit(self, kind: LimitKind, clauses: Iterator[Clause] | list[Clause]) -> Limit:
        return Limit(self.rule.name.text, kind, tuple(clauses), self.level, self.clauses.because)

    def _routed(self, route: s.Route) -> tuple[int, ...]:
        if route.band.text != QUARANTINE:
            self.faults.error(
                "GW463",
                f"nothing can be routed to `{route.band.text}`",
                route.band.span,
                "write `quarantine`",
            )
        elif QUARANTINE not in self.scope.band_names:
            self.faults.warn(
                "GW507",
                "no band `quarantine` is declared, so nothing will be learned from these examples",
                route.band.span,
                'declare it in `model { … }`, for instance `quarantine = names "adapter.*"`',
            )
        return tuple(self.scope.ceiling if band == QUARANTINE else 0 for band in self.scope.band_names)

    def _action(self, refused: Effect) -> Clause | None:
        """Return the effect of `refuse`, `cap` or `route`; at most one may stand. None where none does."""
        kinds = s.Refuse, s.Targets, s.Route, s.AtMost, s.HoldOut
        actions = [c for c in self.clauses.all if isinstance(c, kinds)]
        for extra in actions[1:]:
            self.faults.error("GW459", "a rule has one effect", extra.span, "write two rules")
        match actions[:1]:
            case [s.Targets() as cap]:
                return self.clause("capped", self._caps(cap))
            case [s.Route() as route]:
                return self.clause("quarantined", self._routed(route))
            case [s.Refuse()]:
                return self.clause(refused, self.closed)
            case [s.AtMost() as most]:
                return self._exposures(most)
            case [s.HoldOut()]:
                return self.clause("held_out", self.open)
            case _:
                return None

    def _exposures(self, most: s.AtMost) -> Clause:
        """Return the effect of `at most N exposures` where it caps what a condition picks out."""
        if most.noun == "epochs":
            help = "write `at most N exposures`, or limit epochs by a `retain` rule"
            self.faults.error("GW450", "`at most` counts exposures here", most.span, help)
        count = whole(self.faults, most.count, 1, MAX_COUNT, "the number of exposures") or 1
        return self.clause(
            "exposures_spent", self.closed, Compare("ge", ClockValue("exposures"), Number(count))
        )

    def _caps(self, cap: s.Targets) -> tuple[int, ...]:
        for target in cap.targets:
            if target.weight is None:
                self.faults.error("GW451", "a cap needs a weight", target.span, "write `cap BAND at 0.5`")
        return target_weights(self.scope, cap.targets, self.scope.ceiling, 0)

    # --- kinds ----------------------------------------------------------------------------------------------

    def depth(self) -> Grant | None:
        reach = self.clauses.need(s.Targets, "`reach`")
        if reach is None:
            return None
        weights = target_weights(self.scope, reach.targets, 0, SCALE)
        return Grant(self.rule.name.text, self.when.condition, weights, self.level, self.clauses.because)

    def suppress(self) -> Limit:
        action = self._action("suppressed") or self.clause("suppressed", self.closed)
        if not self.clauses.because:
            help = 'say why: `because "…"`'
            self.faults.warn("GW502", f"`{self.rule.name.text}` gives no reason", self.rule.name.span, help)
        return self.limit("suppress", [action])

    def memorization(self) -> Limit | None:
        held = self.clauses.one(s.HoldOut)
        when = None if held is not None else self.clauses.need(s.When, "`when`")
        if when is not None and not self.when.signals and not self.misread:
            help = "declare one in `signals { … }`"
            if self.scope.signals:
                help = f"for instance `{next(iter(self.scope.signals))} < …`"
            self.faults.error("GW458", "a memorization rule tests a signal", when.span, help)
        action = self._action("memorized")
        if action is None:
            self.clauses.missing("`refuse`, `cap`, `route to quarantine`, `at most` or `hold out`")
            return None
        limit = self.limit("memorization", [action])
        return limit if held is None else replace(limit, hold_out=self._one_in(held))

    def _one_in(self, held: s.HoldOut) -> int:
        """Return of how many tokens one is held out."""
        if held.part.value != 1:
            self.faults.error("GW468", "one token in so many is held out", held.part.span, "write `1 in …`")
        return whole(self.faults, held.whole, 2, MAX_HELD, "the number of tokens") or 2

    def retain(self) -> Limit | None:
        times: dict[str, s.Timing] = {t.word: t for t in self.clauses.all if isinstance(t, s.Timing)}
        counts: dict[str, s.Quantity] = {c.noun: c.count for c in self.clauses.all if isinstance(c, s.AtMost)}
        if not times and not counts:
            self.clauses.missing("`until`, `from` or `at most`")
            return None
        ends = {word: self._date(timing) for word, timing in times.items()}
        match ends.get("from"), ends.get("until"):
            case Number(first), Number(last) if first >= last:
                message = f"this ends on {day_text(last)}, before it begins"
                self.faults.error("GW460", message, times["until"].span)
        return self.limit("retain", self._retained(ends, counts))

    def _retained(
        self, ends: dict[str, NumericExpr | None], counts: dict[str, s.Quantity]
    ) -> Iterator[Clause]:
        today = ClockValue("today")
        if until := ends.get("until"):
            yield self.clause("expired", self.closed, Compare("ge", today, until))
        if start := ends.get("from"):
            yield self.clause("embargoed", self.closed, Compare("lt", today, start), defers=True)
        pairs: tuple[tuple[str, ClockName, Effect], ...] = (
            ("exposures", "exposures", "exposures_spent"),
            ("epochs", "epoch", "epochs_spent"),
        )
        for noun, clock, effect in pairs:
            if noun in counts:
                most = whole(self.faults, counts[noun], 1, MAX_COUNT, f"the number of {noun}") or 1
                yield self.clause(effect, self.closed, Compare("ge", ClockValue(clock), Number(most)))

    def _date(self, timing: s.Timing) -> NumericExpr | None:
        """Return the day of `until` or `from`: a date, or the value of a date attribute."""
        value = timing.moment.value
        if isinstance(value, s.Day):
            return Number(value.days)
        if isinstance(value, s.Name):
            return AttributeValue(value.text) if self._attribute(value, "date") else None
        self.faults.error(
            "GW460",
            f"`{timing.word}` takes a date here",
            timing.moment.span,
            "write `at most N epochs`, or a date",
        )
        return None

    def _attribute(self, name: s.Name, type_: ValueType) -> bool:
        """Whether a name is an attribute of a type that is present wherever this rule holds."""
        self.scope.used.add(name.text)
        attribute = self.scope.attributes.get(name.text)
        kind = {"date": "date", "string": "string"}[type_]
        if attribute is None:
            known = [n for n, a in self.scope.attributes.items() if a.spec.type == type_]
            self.faults.undeclared(
                "GW201", "attribute", name, known, f"declare a {kind} in `examples {{ … }}`"
            )
        elif attribute.spec.type != type_:
            self.faults.error("GW302", f"`{name.text}` is not a {kind} attribute", name.span)
        elif attribute.spec.optional and name.text not in self.when.yes:
            self.faults.error("GW304", f"`{name.text}` may be absent", name.span, self._tested(name.text))
        else:
            return True
        return False

    def _tested(self, name: str) -> str:
        """Return the condition to write, so that the rule holds only where an attribute is present."""
        clause = self.clauses.one(s.When)
        if clause is None:
            return f"write `when has {name}`"
        condition = clause.span.text.removeprefix("when").strip()
        if len(condition) > MAX_SHOWN or "\n" in condition:
            return f"add `and has {name}` to the rule's condition"
        loose = isinstance(clause.condition, s.Implication) or (
            isinstance(clause.condition, s.Junction) and clause.condition.op == "or"
        )
        if loose and clause.condition.span.text == condition:  # not yet in parentheses
            condition = f"({condition})"
        return f"write `when {condition} and has {name}`"

    def privacy(self) -> Limit | None:
        within = self.clauses.need(s.Within, "`within`")
        numbers = {
            c.term: self._privacy_number(c) for c in self.clauses.all if isinstance(c, s.PrivacyNumber)
        }
        for term in ("epsilon", "delta", "clip"):
            if term not in numbers:
                self.clauses.missing(f"`{term}`")
        unit = self.clauses.one(s.UnitOf)
        if unit is not None:
            self._attribute(unit.attribute, "string")
        self._steady()
        if within is None or len(numbers) != 3:
            return None
        named = [band for band in map(self.scope.band, within.bands) if band]
        for index, listed in enumerate(within.bands):
            if listed.text in named[:index]:
                self.faults.error("GW465", f"the band `{listed.text}` is listed twice", listed.span)
        bands = tuple(band for band in self.scope.band_names if band in named)
        inside = tuple(self.scope.ceiling if band in bands else 0 for band in self.scope.band_names)
        name = self.rule.name.text
        halting = self.clauses.one(s.Spent)
        terms = PrivacyTerms(
            numbers["epsilon"],
            numbers["delta"],
            numbers["clip"],
            unit.attribute.text if unit else "",
            bands,
            self._most_noise(),
            "refuse" if halting is None else halting.action,
        )
        spent = self.clause("budget_spent", self.closed, Spent(name))
        clauses = (self.clause("confined", inside), spent)
        return Limit(name, "privacy", clauses, self.level, self.clauses.because, terms)

    def _steady(self) -> None:
        """Warn of a privacy rule that holds at one time and not at another."""
        when = self.clauses.one(s.When)
        if when is None or self.level != "hard" or reads_of(self.when.condition).is_static:
            return
        help = (
            "while it does not hold, the examples are learned without noise, and no guarantee is left; "
            "test metadata alone here, and limit by time in another rule"
        )
        self.faults.warn("GW512", f"`{self.rule.name.text}` holds only at times", when.span, help)

    def _privacy_number(self, clause: s.PrivacyNumber) -> str:
        value, span = clause.value.value, clause.value.span
        most = {"epsilon": MAX_EPSILON, "delta": Decimal(1), "clip": MAX_CLIP}[clause.term]
        if not 0 < value <= most or (clause.term == "delta" and value == most):
            upper = "below 1" if clause.term == "delta" else f"at most {most}"
            help = (
                "take `delta` well below one over the number of privacy units"
                if clause.term == "delta"
                else None
            )
            self.faults.error("GW455", f"`{clause.term}` is above 0 and {upper}", span, help)
        return decimal_text(value)

    def _most_noise(self) -> str:
        clause = self.clauses.one(s.Noise)
        if clause is None:
            return ""
        if not 0 < clause.deviation.value <= MAX_NOISE:
            help = "it is the standard deviation of the noise on the sum of clipped gradients"
            message = f"the greatest `noise` is above 0 and at most {MAX_NOISE}"
            self.faults.error("GW455", message, clause.deviation.span, help)
        return decimal_text(clause.deviation.value)

    def curriculum(self) -> Limit | None:
        clauses: list[Clause] = []
        timing: list[Condition | None] = []
        pending: s.Clause | None = None
        for clause in self.clauses.all:
            match clause:
                case s.Timing() | s.During() | s.InPhase():
                    timing.append(self._stage_time(clause))
                    pending = clause
                case s.Targets():
                    if not timing:
                        help = "write when the stage holds first: `before step 500 reach …`"
                        self.faults.error("GW451", "this stage has no time", clause.span, help)
                    caps = target_weights(self.scope, clause.targets, 0, self.scope.ceiling)
                    known = [condition for condition in timing if condition is not None]
                    clauses.append(self.clause("not_open", caps, *known, defers=True))
                    timing, pending = [], None
        if pending is not None:
            help = "say which bands the stage opens: `reach …`"
            self.faults.error("GW451", "this stage opens nothing", pending.span, help)
        if not clauses and pending is None:
            self.clauses.missing("a stage, such as `before step 500 reach …`")
        if len(clauses) > 1:
            clauses.sort(key=repr)
        return self.limit("curriculum", clauses)

    def _stage_time(self, clause: s.Timing | s.During | s.InPhase) -> Condition | None:
        match clause:
            case s.InPhase(phase):
                names = [p.name for p in self.scope.phases]
                if phase.text not in names:
                    self.faults.undeclared("GW204", "phase", phase, names, "declare it in `phases { … }`")
                return in_phases(self.scope.phases, {phase.text})
            case s.During(kind, lo, hi, span):
                first, last = self._count(kind, lo), self._count(kind, hi)
                if first is None or last is None:
                    return None
                if first > last:
                    self.faults.error("GW307", "this range is empty", span, "write the earlier end first")
                return conjunction(_clock("ge", kind, first), _clock("le", kind, last))
            case s.Timing("until"):
                return None
            case s.Timing(word, moment):
                if isinstance(moment.value, s.Name):
                    help = "a stage holds by step, epoch, date or phase"
                    self.faults.error("GW460", "a stage does not depend on attributes", moment.span, help)
                    return None
                count = self._count(moment.kind, moment.value)
                return (
                    None if count is None else _clock("lt" if word == "before" else "ge", moment.kind, count)
                )

    def _count(self, kind: str, value: s.Bound) -> int | None:
        if isinstance(value, s.Day):
            return value.days
        return whole(self.faults, value, 0, MAX_COUNT, f"the {kind}")

    def modulate(self) -> Modulation | None:
        scale = self.clauses.need(s.Scale, "`scale`")
        if scale is None:
            return None
        scalings = sorted(
            {x for scaling in scale.scalings if (x := self._scaling(scaling))},
            key=lambda x: (x.band, x.signal, x.at_low, x.at_high),
        )
        name, because = self.rule.name.text, self.clauses.because
        return Modulation(name, self.when.condition, tuple(scalings), self.level, because)

    def _scaling(self, scaling: s.Scaling) -> Scaling | None:
        signal = scaling.signal
        self.scope.used.add(signal.text)
        ends = []
        for quantity in (scaling.at_low, scaling.at_high):
            factor = scaled(quantity.value, 6)
            if factor is None or not 0 <= factor <= SCALE:
                help = "a modulation can lower a weight, never raise it"
                self.faults.error(
                    "GW469", "a factor lies from 0 to 1, with at most 6 places", quantity.span, help
                )
            ends.append(factor or 0)
        band = self.scope.band(scaling.band)
        if signal.text not in self.scope.signals:
            known = list(self.scope.signals)
            self.faults.undeclared("GW201", "signal", signal, known, "declare it in `signals { … }`")
            return None
        return Scaling(band, signal.text, ends[0], ends[1]) if band else None


_LOWER: dict[str, Callable[[_RuleCheck], Grant | Limit | Modulation | None]] = {
    "depth": _RuleCheck.depth,
    "suppress": _RuleCheck.suppress,
    "retain": _RuleCheck.retain,
    "privacy": _RuleCheck.privacy,
    "memorization": _RuleCheck.memorization,
    "curriculum": _RuleCheck.curriculum,
    "modulate": _RuleCheck.modulate,
}


def _clock(op: CompareOp, kind: str, value: int) -> Condition:
    clocks: dict[str, ClockName] = {"step": "step", "epoch": "epoch", "day": "today"}
    return Compare(op, ClockValue(clocks[kind]), Number(value))
