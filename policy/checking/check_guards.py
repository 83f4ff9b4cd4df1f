"""Checks waivers, assertions, starvation guards and what is said of gradients, and lowers them."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

from gradwarden.policy.checking.check_conditions import Conditions
from gradwarden.policy.checking.check_schema import whole
from gradwarden.policy.checking.clauses import Clauses, weight
from gradwarden.policy.checking.logic import conjunction
from gradwarden.policy.checking.scope import Scope
from gradwarden.policy.checking.types import MAX_COUNT
from gradwarden.policy.decimals import decimal_text
from gradwarden.policy.paces import MAX_PACE, noised_bands, pace
from gradwarden.policy.program import (
    Assertion,
    ClockValue,
    Compare,
    Constant,
    GradientCap,
    Limit,
    Number,
    Starvation,
    Waiver,
)
from gradwarden.policy.source import Span
from gradwarden.policy.syntax import tree as s

MAX_NORM = Decimal(1_000_000_000)


def check_waiver(rule: s.Rule, conditions: Conditions, rules: dict[str, str]) -> Waiver | None:
    """Return a waiver, named after the rule it lifts. `rules` gives the kind of every rule by name."""
    clauses = Clauses(rule, conditions.scope)
    when = conditions.check(clauses.when)
    if rule.level is not None:
        message = "a waiver is neither `hard` nor `advisory`"
        conditions.faults.error("GW457", message, rule.span, "leave the word out")
    _check_waived(rule, conditions, rules)
    approved = clauses.need(s.Approved, '`approved by "…"`')
    until = clauses.need(s.Timing, "`until`")
    because = clauses.need(s.Because, '`because "…"`')
    for word in (approved and approved.by, because and because.text):
        if word and not word.text.strip():
            conditions.faults.error("GW470", "this text is empty", word.span)
    if approved is None or until is None or because is None:
        return None
    if not isinstance(until.moment.value, s.Day):
        help = "write the first day on which the rule holds again"
        conditions.faults.error("GW460", "a waiver lapses on a date", until.moment.span, help)
        return None
    lapse = until.moment.value.days
    condition = conjunction(when.condition, Compare("lt", ClockValue("today"), Number(lapse)))
    return Waiver("", rule.name.text, condition, approved.by.text, lapse, because.text.text)


def _check_waived(rule: s.Rule, conditions: Conditions, rules: dict[str, str]) -> None:
    kind = rules.get(rule.name.text)
    if kind is None:
        conditions.faults.undeclared("GW203", "rule", rule.name, rules, "a waiver names the rule it lifts")
    elif kind in ("depth", "modulate", "assert", "privacy", "maintain"):
        reasons = {
            "depth": "it grants, and has nothing to lift",
            "privacy": "a privacy guarantee has no exceptions",
        }
        help = reasons.get(kind, "only limits can be waived")
        conditions.faults.error("GW456", f"a `{kind}` rule cannot be waived", rule.name.span, help)


def name_waivers(waivers: Sequence[Waiver]) -> tuple[Waiver, ...]:
    """Name each waiver `waive:RULE`, further ones `waive:RULE#2` and so on, in the order of their content."""
    named: list[Waiver] = []
    numbers: dict[str, int] = {}
    for waiver in sorted(
        set(waivers), key=lambda w: (w.rule, w.until, w.approved_by, w.because, repr(w.when))
    ):
        number = numbers[waiver.rule] = numbers.get(waiver.rule, 0) + 1
        name = f"waive:{waiver.rule}" + (f"#{number}" if number > 1 else "")
        named.append(Waiver(name, waiver.rule, waiver.when, waiver.approved_by, waiver.until, waiver.because))
    return tuple(sorted(named, key=lambda w: w.name))


def check_assertion(item: s.Assertion, conditions: Conditions) -> Assertion | None:
    scope, claim = conditions.scope, item.claim
    name, level = item.name.text, item.level or "hard"
    because = item.because.text.text if item.because else ""
    if claim.form == "condition":
        if not isinstance(claim.condition, s.Implication):
            help = "write `A implies B`, `never reach BAND when A` or `always refuse when A`"
            scope.faults.error("GW464", "an assertion says what follows from what", claim.span, help)
            return None
        when = conditions.check(claim.condition.left)
        then = conditions.check(claim.condition.right, when.yes)
        return Assertion(name, "implies", when.condition, then=then.condition, level=level, because=because)
    when = conditions.check(claim.condition)
    band = scope.band(claim.band) if claim.band else ""
    bound = weight(scope, claim.bound) if claim.bound else 0
    if band is None:
        return None
    return Assertion(name, claim.form, when.condition, band, bound, Constant(True), level, because)


def check_starvation(items: Sequence[s.Starvation], conditions: Conditions) -> tuple[Starvation, ...]:
    """Return the starvation guards, sorted by band; a band has at most one."""
    scope = conditions.scope
    guards: dict[str, Starvation] = {}
    for item in items:
        steps = whole(scope.faults, item.steps, 1, MAX_COUNT, "the number of steps")
        below = _threshold(item.below, scope) if item.below else 0
        band = scope.band(item.band)
        if band in guards:
            scope.faults.error("GW465", f"the band `{band}` is guarded twice", item.band.span)
        if band and steps:
            guards[band] = Starvation(band, steps, item.action, below)
    return tuple(guards[band] for band in sorted(guards))


def _threshold(below: s.Quantity, scope: Scope) -> int:
    """Return the mean weight under which a band starves, in millionths."""
    if not below.value:
        help = "leave `below` out: a band that no example reaches starves without it"
        scope.faults.error("GW455", "no mean weight is below 0", below.span, help)
    return weight(scope, below)


def check_gradient(items: Sequence[s.Gradient], conditions: Conditions) -> tuple[GradientCap, ...]:
    """Return the gradient caps, sorted by band; a band has at most one."""
    scope = conditions.scope
    caps: dict[str, GradientCap] = {}
    for cap in (cap for item in items for cap in item.caps):
        band = scope.band(cap.band)
        if band in caps:
            scope.faults.error("GW465", f"the band `{band}` is capped twice", cap.band.span)
        if not 0 < cap.norm.value <= MAX_NORM:
            scope.faults.error("GW455", f"a norm is above 0 and at most {MAX_NORM}", cap.norm.span)
        if band:
            caps[band] = GradientCap(band, decimal_text(cap.norm.value))
    return tuple(caps[band] for band in sorted(caps))


def check_recorded(items: Sequence[s.Gradient], conditions: Conditions) -> int:
    """Return of how many steps one records what each example adds; 0 where none does."""
    faults, every = conditions.scope.faults, 0
    for place, item in enumerate(item for gradient in items for item in gradient.recorded):
        if place:
            faults.error("GW465", "what is recorded of gradients is said twice", item.span)
        if item.part.value != 1:
            faults.error("GW468", "one step in so many is recorded", item.part.span, "write `record 1 in …`")
        every = whole(faults, item.whole, 1, MAX_COUNT, "the number of steps") or 0
    return every


def check_paces(
    items: Sequence[s.Gradient], conditions: Conditions, limits: Sequence[Limit]
) -> dict[str, tuple[Limit, Span]]:
    """Return what limits how often bands are moved, by band, and where it stands. limits: of the rules.

    Noise would move a band in the steps that are not its turn, so that none is paced that it moves.
    """
    scope = conditions.scope
    private = noised_bands(limits)
    found: dict[str, tuple[Limit, Span]] = {}
    for item in (item for block in items for item in block.paces):
        band, steps = scope.band(item.band), _one_in(item, scope)
        if band in found:
            scope.faults.error("GW465", f"the band `{band}` is paced twice", item.band.span)
        elif band in private:
            message = f"the noise of `{private[band]}` moves the band `{band}` in every step"
            help = f"leave `{band}` out of its `within`, or its pace out"
            scope.faults.error("GW473", message, item.span, help)
        elif band and steps:
            found[band] = pace(band, steps, scope.band_names, scope.ceiling), item.span
    return found


def _one_in(item: s.Pace, scope: Scope) -> int | None:
    """Return of how many steps one moves a band."""
    moves, steps = Fraction(item.moves.value), Fraction(item.steps.value)
    if moves != 1:
        share = steps / moves if moves else Fraction(0)
        fits = share.denominator == 1 and 1 < share <= MAX_PACE
        help = f"write `1 in {share} steps`" if fits else "write `1 in … steps`"
        scope.faults.error("GW468", "a band is moved in one step of so many", item.moves.span, help)
    return whole(scope.faults, item.steps, 2, MAX_PACE, "the number of steps")
