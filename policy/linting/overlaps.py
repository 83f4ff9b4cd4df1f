"""Lints of pairs of rules: one that leaves another nothing to do, and two that say the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from operator import ge

from gradwarden.policy.linting.edits import removed
from gradwarden.policy.linting.possible import implies, never, variables
from gradwarden.policy.linting.subject import Compiled, Report, SourcedRule, Subject
from gradwarden.policy.program import (
    And,
    Assertion,
    Clause,
    Condition,
    Constant,
    Grant,
    Limit,
    Modulation,
    OneOf,
    Or,
    SetTest,
    Text,
    Waiver,
)
from gradwarden.policy.syntax import tree as s

MAX_PAIRS = 500
"""How many pairs of rules of one policy are compared; what lies beyond is left to `prove`."""

MAX_LOOKED_AT = 50_000
"""How many pairs are looked at in search of those."""

MAX_ALIKE = 32
"""How many rules that do the same under conditions of one shape are held against a further one."""

Key = tuple[str, str, str | int]


def lint_overlaps(subject: Subject, report: Report) -> None:
    """Report rules that repeat another one, and rules that another one makes superfluous."""
    waived = {waiver.rule for waiver in subject.program.waivers}
    repeated = _repeated(subject, report, waived)
    left_out = {*repeated, *waived}
    budget = MAX_PAIRS
    kinds: dict[str, list[SourcedRule]] = {}
    for rule in subject.rules:
        name, compiled = rule.item.name.text, rule.rule
        single = not isinstance(compiled, Limit) or len(compiled.clauses) == 1
        if single and name not in left_out:
            kinds.setdefault(_kind(rule), []).append(rule)
    for kind in ("depth", "suppress", "retain", "memorization", "assert"):
        rules = kinds.get(kind, [])
        if len(rules) > 1:
            budget = _shadowed(subject, report, rules, budget)


def _kind(rule: SourcedRule) -> str:
    return rule.item.kind if isinstance(rule.item, s.Rule) else "assert"


# --- repetitions --------------------------------------------------------------------------------------------


def _repeated(subject: Subject, report: Report, waived: set[str]) -> set[str]:
    """Report rules that are the same but for their names; return the names of the later ones."""
    first: dict[object, list[SourcedRule]] = {}
    found: set[str] = set()
    for rule in subject.rules:
        name = rule.item.name.text
        if isinstance(rule.rule, Waiver):
            known = _first_like(first, rule)
            if known is not rule:
                message = f"this waiver of `{name}` is given twice"
                report.add("GW516", message, rule.name, "leave one out", removed(rule.item.span))
            continue
        known = _first_like(first, rule)
        if known is rule or name in waived or known.item.name.text in waived or _own_reason(rule, known):
            continue
        found.add(name)
        help = "leave one out, or say in the one what the other lacks"
        report.add("GW516", f"`{name}` says the same as `{known.item.name.text}`", rule.name, help)
    return found


def _first_like(first: dict[object, list[SourcedRule]], rule: SourcedRule) -> SourcedRule:
    """Return the first rule that is the same but for its name, perhaps the rule itself.

    Rules are sorted by what is quick to tell, since few are alike in that.
    """
    keys = _listing(_when(rule.rule))
    same = first.setdefault((type(rule.rule), keys and frozenset(keys), _effect(rule.rule)), [])
    for other in same[:MAX_ALIKE]:
        if _when(other.rule) == _when(rule.rule) and _nameless(other.rule) == _nameless(rule.rule):
            return other
    same.append(rule)
    return rule


def _effect(rule: Compiled) -> object:
    match rule:
        case Grant(weights=weights):
            return weights
        case Limit(clauses=clauses):
            return tuple(clause.caps for clause in clauses)
        case Assertion(band=band, bound=bound):
            return band, bound
        case _:
            return None


def _nameless(rule: Compiled) -> Compiled:
    """Return a rule without what only names it or explains it."""
    match rule:
        case Grant() | Limit() | Modulation() | Assertion():
            return replace(rule, name="", because="")
        case Waiver():
            return rule


def _own_reason(rule: SourcedRule, other: SourcedRule) -> bool:
    """Whether a rule stands for a reason of its own, which decisions repeat."""
    return bool(rule.rule.because) and rule.rule.because != other.rule.because


# --- shadows ------------------------------------------------------------------------------------------------


def _shadowed(subject: Subject, report: Report, rules: Sequence[SourcedRule], budget: int) -> int:
    """Report the rules that another one makes superfluous; return what is left of the budget of pairs."""
    index = _Index(rules)
    gone: set[str] = set()
    looked_at = 0
    for rule in rules:
        for other in index.candidates(rule):
            looked_at += 1
            if looked_at > MAX_LOOKED_AT:
                return budget
            name = rule.item.name.text
            if other is rule or other.item.name.text in gone or not _dominates(other.rule, rule.rule):
                continue
            if isinstance(rule.rule, Limit) and _own_reason(rule, other):
                continue
            budget -= 1
            if budget < 0:
                return 0
            if _covers(subject, other, rule):
                gone.add(name)
                _report_shadow(report, rule, other)
                break
    return budget


def _report_shadow(report: Report, rule: SourcedRule, other: SourcedRule) -> None:
    name, stronger = rule.item.name.text, other.item.name.text
    help = f"leave it out, or narrow `{stronger}`"
    if isinstance(rule.rule, Grant):
        help = f"the greatest grant counts: to learn less, narrow `{stronger}`, or write a `suppress` rule"
    report.add("GW515", f"`{stronger}` leaves `{name}` nothing to do", rule.name, help)


class _Index:
    """Finds the rules that may cover another: those that test for nothing that the other does not test for.

    A rule is listed under what it tests for, one test for each alternative of its condition; rules that have
    an alternative without such a test are candidates for all. Some covers are missed that way, none invented.
    """

    def __init__(self, rules: Sequence[SourcedRule]) -> None:
        self._general: list[SourcedRule] = []
        self._by_key: dict[Key, list[SourcedRule]] = {}
        for rule in rules:
            keys = _listing(_when(rule.rule))
            if keys is None:
                self._general.append(rule)
            for key in keys or ():
                self._by_key.setdefault(key, []).append(rule)

    def candidates(self, rule: SourcedRule) -> Iterator[SourcedRule]:
        yield from self._general
        when = _when(rule.rule)
        first = when.terms[0] if isinstance(when, Or) and when.terms else when
        seen: set[int] = set()
        for term in first.terms if isinstance(first, And) else (first,):
            for other in self._by_key.get(next(iter(_keys(term)), ("", "", "")), ()):
                if id(other) not in seen:
                    seen.add(id(other))
                    yield other


def _listing(condition: Condition) -> set[Key] | None:
    """Return the keys of a test in each alternative of a condition; None where an alternative has none."""
    found: set[Key] = set()
    for alternative in condition.terms if isinstance(condition, Or) else (condition,):
        terms = alternative.terms if isinstance(alternative, And) else (alternative,)
        keys = min((keys for term in terms if (keys := _keys(term))), key=_rank, default=None)
        if keys is None:
            return None
        found.update(keys)
    return found


def _rank(keys: Sequence[Key]) -> tuple[bool, int]:
    """Order tests by how much they tell rules apart: texts before codes, few values before many."""
    return not isinstance(keys[0][2], str), len(keys)


def _keys(term: Condition) -> Sequence[Key]:
    """Return what a test asks for: one of several values, or that a text looks so."""
    match term:
        case Text(attribute, test, operands):
            return [(attribute, test, operand) for operand in operands]
        case OneOf(attribute, codes):
            return [(attribute, "is", code) for code in codes]
        case SetTest(attribute, "any", codes):
            return [(attribute, "has", code) for code in codes]
        case SetTest(attribute, "all", codes):
            return [(attribute, "has", codes[0])]
        case _:
            return ()


def _when(rule: Compiled) -> Condition:
    """Return what has to hold for a rule to do anything."""
    return rule.clauses[0].when if isinstance(rule, Limit) else rule.when


def _dominates(other: Compiled, rule: Compiled) -> bool:
    """Whether one rule does all that another of its kind does, wherever it matches."""
    if isinstance(rule, Waiver) or isinstance(other, Waiver) or other.level != "hard":
        return False
    if isinstance(rule, Assertion):
        return isinstance(other, Assertion) and _asserts_more(other, rule)
    if rule.level != "hard":
        return False
    if isinstance(rule, Grant):
        return isinstance(other, Grant) and _each(other.weights, rule.weights)
    return (
        isinstance(rule, Limit)
        and isinstance(other, Limit)
        and _limits_more(other.clauses[0], rule.clauses[0])
        and other.hold_out <= rule.hold_out
    )


def _each(greater: Sequence[int], less: Sequence[int]) -> bool:
    return all(map(ge, greater, less))


def _limits_more(one: Clause, two: Clause) -> bool:
    return one.effect == two.effect and one.defers == two.defers and _each(two.caps, one.caps)


def _asserts_more(other: Assertion, rule: Assertion) -> bool:
    if other.form == "always_refuse" and rule.form != "implies":
        return True
    if {other.form, rule.form} <= {"never_reach", "at_most"}:
        return other.band == rule.band and other.bound <= rule.bound
    return other.form == rule.form == "always_private"


def _covers(subject: Subject, other: SourcedRule, rule: SourcedRule) -> bool:
    """Whether one rule matches wherever another does (and that one somewhere)."""
    wide, narrow = _when(other.rule), _when(rule.rule)
    if wide != Constant(True) and not variables([wide]) & variables([narrow]):
        return False
    return implies(subject.domain, narrow, wide) and not never(subject.domain, narrow)
