"""Checks `maintain` rules, which are about bands rather than examples, and lowers them.

A band has one anchor, so at most one rule maintains it. What is rehearsed is what a `depth` rule grants.
Where private examples reach a band nothing is rehearsed: whether a step is refused would tell of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal

from gradwarden.policy.checking.check_conditions import Conditions
from gradwarden.policy.checking.check_schema import whole
from gradwarden.policy.checking.clauses import Clauses
from gradwarden.policy.checking.types import MAX_COUNT
from gradwarden.policy.decimals import decimal_text, scaled
from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import SCALE, Grant, Limit, Maintenance, Rehearsal
from gradwarden.policy.syntax import tree as s

MAX_STRENGTH = Decimal(1_000)
"""Far beyond what any learning rate could follow; it is there to catch a slip of the pen."""

_PLACES = 4
"""Decimal places of a percentage; with them it is a whole number of millionths."""


@frozen
class Others:
    """The other rules of a policy: the kind of each by name; what those without faults grant and limit."""

    kinds: Mapping[str, str]
    grants: Sequence[Grant]
    limits: Sequence[Limit]


def check_maintenance(
    rules: Sequence[s.Rule], conditions: Conditions, others: Others
) -> tuple[Maintenance, ...]:
    """Return the `maintain` rules, sorted by name."""
    taken: dict[str, str] = {}
    found = [_check(rule, conditions, taken, others) for rule in rules]
    return tuple(sorted((rule for rule in found if rule), key=lambda rule: rule.name))


def _check(rule: s.Rule, conditions: Conditions, taken: dict[str, str], others: Others) -> Maintenance | None:
    """Return one rule. taken: the rule that maintains each band so far; this one's bands are added."""
    clauses = Clauses(rule, conditions.scope)
    within = clauses.need(s.Within, "`within`")
    strength, drift, rehearse = clauses.one(s.Strength), clauses.one(s.Drift), clauses.one(s.Rehearse)
    if strength is None and drift is None and rehearse is None:
        clauses.missing("`strength`, `drift at most` or `rehearse`")
    pull = _strength(strength, conditions) if strength else None
    bound = _drift(drift, conditions) if drift else None
    start = _start(clauses.one(s.Timing), conditions)
    bands = _bands(rule, within, conditions, taken) if within else ()
    rehearsal = _rehearsal(rehearse, bands, conditions, others) if rehearse else None
    if within is None:
        return None
    name, level = rule.name.text, rule.level or "hard"
    return Maintenance(name, bands, pull, bound, start, level, clauses.because, rehearsal)


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
    help = None if clause.percent.value else "to keep a band as it is, grant it nothing"
    return _percent(clause.percent, conditions, "a drift", help)


def _percent(percent: s.Quantity, conditions: Conditions, what: str, help: str | None = None) -> int:
    """Return a percentage in millionths, or report what it should be."""
    micro = scaled(percent.value, _PLACES)
    if micro is None or not 0 < micro <= SCALE:
        message = f"{what} is above 0 and at most 100 percent, with at most {_PLACES} decimal places"
        conditions.faults.error("GW455", message, percent.span, help)
    return micro or 0


def _rehearsal(
    clause: s.Rehearse, bands: Sequence[str], conditions: Conditions, others: Others
) -> Rehearsal | None:
    """Return what is rehearsed: what a hard `depth` rule grants in each of the bands."""
    faults, name = conditions.faults, clause.rule
    share = _percent(clause.percent, conditions, "a share")
    kind = others.kinds.get(name.text)
    if kind is None:
        known = [rule for rule, kind in others.kinds.items() if kind == "depth"]
        faults.undeclared("GW203", "rule", name, known, "name the `depth` rule that grants what is rehearsed")
        return None
    grant = next((grant for grant in others.grants if grant.name == name.text), None)
    if kind != "depth" or (grant is not None and grant.level != "hard"):
        help = "name a `depth` rule that is not advisory"
        faults.error("GW472", f"`{name.text}` grants nothing that could be rehearsed", name.span, help)
        return None
    if grant is None:  # its own faults are reported
        return None
    granted = dict(zip(conditions.scope.band_names, grant.weights, strict=True))
    private = {band for limit in others.limits if limit.privacy for band in limit.privacy.bands}
    for band in bands:
        if not granted[band]:
            message = f"`{name.text}` does not reach the band `{band}`"
            faults.error("GW472", message, name.span, f"add `reach {band}` to it, or maintain other bands")
        if band in private:
            message = f"private examples reach the band `{band}`, so nothing can be rehearsed there"
            help = "whether a step is refused would tell of them; use `strength` or `drift at most`"
            faults.error("GW472", message, clause.span, help)
    return Rehearsal(name.text, share)


def _start(clause: s.Timing | None, conditions: Conditions) -> int:
    if clause is None:
        return 0
    value = clause.moment.value
    if clause.moment.kind != "step" or not isinstance(value, s.Quantity):
        help = "write `from step N`, or nothing for all of the run"
        conditions.faults.error("GW460", "a band is maintained from a step on", clause.moment.span, help)
        return 0
    return whole(conditions.faults, value, 0, MAX_COUNT, "the step") or 0
