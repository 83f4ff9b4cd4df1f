"""Lints of privacy rules: guarantees that are weaker than they read, or void."""

from __future__ import annotations

from decimal import Decimal

from gradwarden.policy.checking.walk import Node, children, signals_of
from gradwarden.policy.known_signals import BY_NAME
from gradwarden.policy.linting.possible import possible
from gradwarden.policy.linting.subject import Report, SourcedRule, Subject
from gradwarden.policy.program import (
    And,
    Arithmetic,
    ClockValue,
    Compare,
    Condition,
    Grant,
    Limit,
    Modulation,
    Not,
    Or,
    Waiver,
)
from gradwarden.policy.source import Span
from gradwarden.policy.syntax import tree as s

MAX_EPSILON = Decimal(10)
"""Above it, the bound on what an attacker learns of one unit says next to nothing (e to the 10 is 22,026)."""

MAX_DELTA = Decimal("0.001")
"""A mechanism that publishes one unit in a thousand outright has this delta."""

MAX_PAIRS = 20_000
"""How many pairs of a privacy rule and another one are looked at."""

COPIES = "copies"
"""The known signal that counts the exposures of an example and its near-duplicates."""

_SHOWN = 4
"""How many names a finding lists."""


def lint_privacy(subject: Subject, report: Report) -> None:
    """Report privacy rules whose terms promise little, and rules that void what they promise."""
    private = [
        rule for rule in subject.rules if isinstance(rule.rule, Limit) and rule.rule.privacy is not None
    ]
    pairs = len(private) * len(subject.rules)
    counted = pairs <= MAX_PAIRS and any(
        word in file.source.text for file in subject.files for word in ("exposure", COPIES)
    )
    for rule in [rule for rule in private if rule.is_hard][:1]:
        _given_signals(subject, report, rule)
    for rule in private:
        _terms(report, rule)
        if rule.is_hard and isinstance(rule.rule, Limit) and counted:
            _exposures(subject, report, rule, rule.rule)


def _terms(report: Report, rule: SourcedRule) -> None:
    name = rule.item.name.text
    terms = rule.rule.privacy if isinstance(rule.rule, Limit) else None
    if terms is None:
        return
    if not rule.is_hard:
        help = "a rule that protects is `hard`; leave the word out"
        report.add(
            "GW528", f"`{name}` only advises: nothing is clipped, noised or accounted", rule.name, help
        )
        return
    if not terms.unit:
        help = "name the attribute that says whose data an example is: `unit patient`"
        message = f"`{name}` protects single examples, not the people that they are from"
        report.add("GW521", message, rule.name, help)
    if Decimal(terms.epsilon) > MAX_EPSILON:
        message = f"an epsilon of {terms.epsilon} promises next to nothing"
        help = "values up to 1 are strong, up to 10 are in use"
        report.add("GW527", message, _number(rule, "epsilon"), help)
    if Decimal(terms.delta) > MAX_DELTA:
        message = f"a delta of {terms.delta} allows publishing one unit in {int(1 / Decimal(terms.delta)):,}"
        help = "take it well below one over the number of privacy units, such as 1e-6"
        report.add("GW526", message, _number(rule, "delta"), help)


def _number(rule: SourcedRule, term: str) -> Span:
    if isinstance(rule.item, s.Rule):
        for clause in rule.item.clauses:
            if isinstance(clause, s.PrivacyNumber) and clause.term == term:
                return clause.span
    return rule.name


def _exposures(subject: Subject, report: Report, private: SourcedRule, limit: Limit) -> None:
    """Report a guarantee that is void: what is learned depends on how often examples were drawn before."""
    counting = [rule.item.name.text for rule in subject.rules if _counts_exposures(subject, rule, limit)]
    if counting:
        message = f"{_listed(counting)} may count the exposures of examples under `{limit.name}`"
        help = "that voids the guarantee: exclude private examples there, or limit by `at most N epochs`"
        report.add("GW525", message, private.name, help)


def _given_signals(subject: Subject, report: Report, private: SourcedRule) -> None:
    """Report signals that rules go by and the loop hands over: they may be computed from anything."""
    given = {signal.name for signal in subject.program.signals} - BY_NAME.keys()
    read = {rule.item.name.text: _read(subject, rule) & given for rule in subject.rules} if given else {}
    going = [name for name, signals in read.items() if signals]
    if going:
        named = _listed(sorted(set().union(*read.values())))
        message = (
            f"{_listed(going)} may tell public examples of private ones: what the loop hands over as {named} "
            "may be computed from anything"
        )
        help = (
            "go by signals that the governor measures; or see to it that each value depends on its own "
            "example and the model alone, and say so in a comment that allows this"
        )
        report.add("GW549", message, private.name, help)


def _listed(names: list[str]) -> str:
    shown = [f"`{name}`" for name in names[:_SHOWN]]
    if len(names) > _SHOWN:
        shown.append(f"{len(names) - _SHOWN} more")
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))


def _read(subject: Subject, rule: SourcedRule) -> set[str]:
    """Return the signals that a rule goes by."""
    scaled = rule.rule.scalings if isinstance(rule.rule, Modulation) else ()
    found = {scaling.signal for scaling in scaled}
    return found.union(*(signals_of(condition) for condition, _ in _effects(subject, rule)))


def _counts_exposures(subject: Subject, rule: SourcedRule, limit: Limit) -> bool:
    """Whether a rule limits, where the privacy rule can hold, by the exposures of an example."""
    if not rule.is_hard or rule.rule is limit:
        return False
    confined, ceiling = limit.clauses[0], subject.program.max_weight
    if _reads_copies(subject, rule):  # those of a public example may be private ones
        return True
    return any(
        any(inside and cap < ceiling for inside, cap in zip(confined.caps, caps, strict=True))
        and _reads_exposures(condition)
        and possible(subject.domain, (condition, True), (confined.when, True))
        for condition, caps in _effects(subject, rule)
    )


def _reads_copies(subject: Subject, rule: SourcedRule) -> bool:
    return COPIES in _read(subject, rule)


def _reads_exposures(condition: Condition) -> bool:
    pending: list[Node] = [condition]
    while pending:
        node = pending.pop()
        if isinstance(node, ClockValue):
            if node.name == "exposures":
                return True
        elif isinstance(node, And | Or | Not | Compare | Arithmetic):
            pending += children(node)
    return False


def _effects(subject: Subject, rule: SourcedRule) -> list[tuple[Condition, tuple[int, ...]]]:
    """Return the conditions of a rule with the weight per band that they leave at most."""
    everywhere = (0,) * len(subject.program.bands)
    match rule.rule:
        case Limit(clauses=clauses):
            return [(clause.when, clause.caps) for clause in clauses]
        case Grant(when=when) | Modulation(when=when) | Waiver(when=when):
            return [(when, everywhere)]
        case _:
            return []
