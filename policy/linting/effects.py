"""Lints of what rules do: grants of nothing, limits that lower nothing, assertions that cannot fail."""

from __future__ import annotations

from gradwarden.policy.linting.domain import Domain
from gradwarden.policy.linting.possible import always, possible
from gradwarden.policy.linting.subject import MAX_TESTS, Report, SourcedRule, Subject
from gradwarden.policy.program import SCALE, Assertion, Grant, Limit, Modulation, Waiver


def lint_effects(subject: Subject, report: Report) -> None:
    """Report rules that match and yet do nothing, or do far more than a rule should."""
    waived = {waiver.rule for waiver in subject.program.waivers}
    at_start = _unmeasured(subject)
    for rule in subject.rules:
        name = rule.item.name.text
        match rule.rule:
            case Grant(weights=weights) if not any(weights):
                help = "name a band with a weight above 0; what no rule grants is not learned"
                report.add("GW532", f"`{name}` grants nothing", rule.name, help)
            case Limit() if rule.is_hard:
                _limit(subject, report, rule, rule.rule, waived, at_start)
            case Modulation(scalings=scalings) if all(x.at_low == x.at_high == SCALE for x in scalings):
                help = "let one end be less than 1, or leave the rule out"
                report.add("GW529", f"`{name}` never changes a weight", rule.name, help)
            case Assertion():
                _assertion(subject, report, rule, rule.rule)
            case Waiver() if _is_advice(subject, rule.rule):
                help = "a rule that only advises stops nothing; leave the waiver out"
                report.add("GW539", f"`{name}` is advisory and needs no waiver", rule.name, help)
            case _:
                pass


def _is_advice(subject: Subject, waiver: Waiver) -> bool:
    return any(limit.name == waiver.rule and limit.level == "advisory" for limit in subject.program.limits)


def _unmeasured(subject: Subject) -> Domain:
    """Return the domain of an example that was never learned from: signals have their defaults."""
    defaults = {spec.name: (spec.default, spec.default) for spec in subject.program.signals}
    return Domain(
        subject.program.attributes, subject.program.signals, {"exposures": (0, 0)}, defaults, MAX_TESTS
    )


def _limit(
    subject: Subject, report: Report, rule: SourcedRule, limit: Limit, waived: set[str], at_start: Domain
) -> None:
    clause = limit.clauses[0]
    ceiling = subject.program.max_weight
    if clause.effect == "capped" and all(cap >= ceiling for cap in clause.caps):
        help = "a cap below the greatest weight that can be granted is what limits"
        report.add("GW533", f"`{limit.name}` lowers nothing", rule.name, help)
    refuses = limit.kind == "suppress" and not any(clause.caps) and limit.name not in waived
    if refuses and clause.effect == "suppressed" and always(subject.domain, clause.when):
        help = "say with `when` which examples it is about"
        report.add("GW547", f"`{limit.name}` refuses every example", rule.name, help)
    if limit.kind == "memorization" and not any(clause.caps) and possible(at_start, (clause.when, True)):
        help = "choose the signal's `default` so that the rule does not hold with it"
        message = f"`{limit.name}` may refuse examples before anything is measured, and for good"
        report.add("GW545", message, rule.name, help)


def _assertion(subject: Subject, report: Report, rule: SourcedRule, assertion: Assertion) -> None:
    name = rule.item.name.text
    if assertion.form == "at_most" and assertion.bound >= subject.program.max_weight:
        help = "no weight is above this bound; write a lesser one"
        report.add("GW541", f"`{name}` cannot fail", rule.name, help)
    if assertion.form == "implies" and always(subject.domain, assertion.then):
        help = "what it concludes holds of every example, whatever the rules are"
        report.add("GW541", f"`{name}` cannot fail", rule.name, help)
