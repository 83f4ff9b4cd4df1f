"""Checks `maintain` rules, which are about bands rather than examples, and lowers them.

A band has one anchor, so at most one rule maintains it.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from gradwarden.policy.checking.check_conditions import Conditions
from gradwarden.policy.checking.check_schema import whole
from gradwarden.policy.checking.clauses import Clauses
from gradwarden.policy.checking.types import MAX_COUNT
from gradwarden.policy.decimals import decimal_text, scaled
from gradwarden.policy.program import SCALE, Maintenance
from gradwarden.policy.syntax import tree as s

MAX_STRENGTH = Decimal(1_000)
"""Far beyond what any learning rate could follow; it is there to catch a slip of the pen."""

_PLACES = 4
"""Decimal places of a drift in percent; with them it is a whole number of millionths."""


def check_maintenance(rules: Sequence[s.Rule], conditions: Conditions) -> tuple[Maintenance, ...]:
    """Return the `maintain` rules, sorted by name."""
    taken: dict[str, str] = {}
    found = [_check(rule, conditions, taken) for rule in rules]
    return tuple(sorted((rule for rule in found if rule), key=lambda rule: rule.name))


def _check(rule: s.Rule, conditions: Conditions, taken: dict[str, str]) -> Maintenance | None:
    """Return one rule. taken: the rule that maintains each band so far; this one's bands are added."""
    clauses = Clauses(rule, conditions.scope)
    within = clauses.need(s.Within, "`within`")
    strength, drift = clauses.one(s.Strength), clauses.one(s.Drift)
    if strength is None and drift is None:
        clauses.missing("`strength` or `drift at most`")
    pull = _strength(strength, conditions) if strength else None
    bound = _drift(drift, conditions) if drift else None
    start = _start(clauses.one(s.Timing), conditions)
    if within is None:
        return None
    bands = _bands(rule, within, conditions, taken)
    return Maintenance(rule.name.text, bands, pull, bound, start, rule.level or "hard", clauses.because)


def _bands(rule: s.Rule, within: s.Within, conditions: Conditions, taken: dict[str, str]) -> tuple[str, ...]:
    named: set[str] = set()
    for listed in within.bands:
        band = conditions.scope.band(listed)
        if band in named:
            conditions.faults.error("GW465", f"the band `{band}` is listed twice", listed.span)
        elif band in taken:
            help = f"`{taken[band]}` maintains it already; a band has one anchor"
            conditions.faults.error("GW465", f"the band `{band}` is maintained twice", listed.span, help)
        elif band:
            named.add(band)
    taken.update(dict.fromkeys(named, rule.name.text))
    return tuple(band for band in conditions.scope.band_names if band in named)


def _strength(clause: s.Strength, conditions: Conditions) -> str:
    value = clause.value.value
    if not 0 < value <= MAX_STRENGTH:
        message = f"a strength is above 0 and at most {MAX_STRENGTH}"
        conditions.faults.error("GW455", message, clause.value.span)
    return decimal_text(value)


def _drift(clause: s.Drift, conditions: Conditions) -> int:
    value = clause.percent.value
    micro = scaled(value, _PLACES)
    if micro is None or not 0 < micro <= SCALE:
        message = f"a drift is above 0 and at most 100 percent, with at most {_PLACES} decimal places"
        help = "to keep a band as it is, grant it nothing" if not value else None
        conditions.faults.error("GW455", message, clause.percent.span, help)
    return micro or 0


def _start(clause: s.Timing | None, conditions: Conditions) -> int:
    if clause is None:
        return 0
    value = clause.moment.value
    if clause.moment.kind != "step" or not isinstance(value, s.Quantity):
        help = "write `from step N`, or nothing for all of the run"
        conditions.faults.error("GW460", "a band is maintained from a step on", clause.moment.span, help)
        return 0
    return whole(conditions.faults, value, 0, MAX_COUNT, "the step") or 0
