"""How each rule differs by itself: what it grants, caps, scales, lifts or demands, whatever the others do.

Rules are paired by name; what is left, by doing the same under another name. A rule may be wider while no
decision changes, because others hold what it lets go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeAlias

from gradwarden.policy.comparing.programs import Comparer, Difference, Pair, Question
from gradwarden.policy.context import Context
from gradwarden.policy.evaluation.evaluate import holds, read_facts
from gradwarden.policy.program import (
    And,
    Assertion,
    Condition,
    Constant,
    Grant,
    Limit,
    Modulation,
    Not,
    Program,
    Waiver,
)
from gradwarden.policy.proving.questions import EVERYTHING
from gradwarden.policy.proving.smt import Truth, conjunction, negation

Rule: TypeAlias = Grant | Limit | Modulation | Waiver | Assertion

MOST_PAIRS = 256
"""How many pairs of an old and a new rule are tried, to find out which were renamed."""


@dataclass(frozen=True, slots=True)
class RuleDifference:
    """One rule of either program. was, now: its names, empty where it is new or gone."""

    kind: str
    was: str
    now: str
    difference: Difference

    @property
    def title(self) -> str:
        return f"{self.was} -> {self.now}" if self.was and self.now and self.was != self.now else self.subject

    @property
    def subject(self) -> str:
        return self.now or self.was


def rule_differences(comparer: Comparer) -> Iterator[RuleDifference]:
    """Yield each rule of both programs, in the order of the new one, then what is gone."""
    if not comparer.comparable():
        return
    before, after = dict(_rules(comparer.old)), dict(_rules(comparer.new))
    renamed = _renamed(comparer, before, after)
    for key, rule in after.items():
        yield _difference(comparer, key[0], before.get(renamed.get(key, key)), rule)
    known = {*after, *renamed.values()}
    for key, rule in before.items():
        if key not in known:
            yield _difference(comparer, key[0], rule, None)


def _rules(program: Program) -> Iterator[tuple[tuple[str, str], Rule]]:
    """Yield (kind, name) and rule. A waiver is named with the rule that it lifts."""
    for grant in program.grants:
        yield ("depth", grant.name), grant
    for limit in program.limits:
        yield (limit.kind, limit.name), limit
    for modulation in program.modulations:
        yield ("modulate", modulation.name), modulation
    for waiver in program.waivers:
        yield ("waive", waiver.name), waiver
    for assertion in program.assertions:
        yield ("assert", assertion.name), assertion


def _renamed(
    comparer: Comparer, before: Mapping[tuple[str, str], Rule], after: Mapping[tuple[str, str], Rule]
) -> dict[tuple[str, str], tuple[str, str]]:
    """Return the new rules that do what an old one of another name did."""
    gone = [key for key in before if key not in after]
    came = [key for key in after if key not in before]
    found: dict[tuple[str, str], tuple[str, str]] = {}
    pairs = [(was, now) for was, now in product(gone, came) if was[0] == now[0]]
    # Waivers come last: whether they lift the same rule depends on how that was renamed. Rules that are
    # written alike come first, so that twins keep their partners.
    pairs.sort(key=lambda pair: (pair[0][0] == "waive", not _alike(before[pair[0]], after[pair[1]])))
    for was, now in pairs[:MOST_PAIRS]:
        old, new = before[was], after[now]
        if now in found or was in found.values() or not _same_target(old, new, found):
            continue
        if _difference(comparer, now[0], old, new).difference.relation == "same":
            found[now] = was
    return found


def _alike(old: Rule, new: Rule) -> bool:
    return replace(old, name=new.name) == new


def _same_target(old: Rule, new: Rule, renamed: Mapping[tuple[str, str], tuple[str, str]]) -> bool:
    """Return whether two rules, if they are waivers, lift the same rule."""
    if not (isinstance(old, Waiver) and isinstance(new, Waiver)):
        return True
    return old.rule == new.rule or any(
        (was[1], now[1]) == (old.rule, new.rule) for now, was in renamed.items()
    )


def _difference(comparer: Comparer, kind: str, old: Rule | None, new: Rule | None) -> RuleDifference:
    was, now = old.name if old else "", new.name if new else ""
    title = now or was
    match new or old:
        case Assertion():
            found = _conditions(comparer, title, _demand(old), _demand(new), restricts=True)
        case Waiver():
            found = _conditions(comparer, title, _lifting(old), _lifting(new), restricts=False)
        case _:
            kept = isinstance(new or old, Grant)
            ceiling = max(comparer.old.max_weight, comparer.new.max_weight)
            before = _alone(comparer.old, ceiling, old, granted=not kept)
            after = _alone(comparer.new, ceiling, new, granted=not kept)
            found = comparer.contribution(title, comparer.pair(before, after), comparer.cells, fitting=True)
    return RuleDifference(kind, was, now, replace(found, notes=(*_notes(old, new), *found.notes)))


def _notes(old: Rule | None, new: Rule | None) -> tuple[str, ...]:
    if old is None:
        return ("new",)
    if new is None:
        return ("gone",)
    notes = []
    level, now = getattr(old, "level", "hard"), getattr(new, "level", "hard")
    if level != now:
        notes.append(f"{level}, now {now}")
    if isinstance(old, Assertion) and isinstance(new, Assertion) and _claim(old) != _claim(new):
        notes.append("it claims something else")
    return tuple(notes)


def _alone(program: Program, ceiling: int, rule: Rule | None, *, granted: bool) -> Program:
    """Return a program in which one rule decides: a grant alone, anything else against a grant of all."""
    everything = Grant(EVERYTHING, Constant(True), (ceiling,) * len(program.bands))
    return replace(
        program,
        max_weight=ceiling,
        grants=(everything,) if granted else (rule,) if isinstance(rule, Grant) else (),
        limits=(rule,) if isinstance(rule, Limit) else (),
        modulations=(rule,) if isinstance(rule, Modulation) else (),
        waivers=(),
        assertions=(),
    )


# --- rules that are conditions only -------------------------------------------------------------------------


def _lifting(waiver: Rule | None) -> Condition:
    return waiver.when if isinstance(waiver, Waiver) else Constant(False)


def _claim(assertion: Assertion) -> tuple[object, ...]:
    return assertion.form, assertion.band, assertion.bound


def _demand(assertion: Rule | None) -> Condition:
    """Return where an assertion demands something of an example."""
    if not isinstance(assertion, Assertion):
        return Constant(False)
    if assertion.form == "implies":
        return And((assertion.when, Not(assertion.then)))
    return assertion.when


def _conditions(
    comparer: Comparer, title: str, old: Condition, new: Condition, *, restricts: bool
) -> Difference:
    """Return the difference between where an old and a new condition hold."""
    pair = comparer.whole
    before, after = pair.before.view.truth(old), pair.after.view.truth(new)
    less = _question(pair, (before, negation(after)), old, new, True)
    more = _question(pair, (negation(before), after), old, new, False)
    return comparer.settle(title, less, more) if restricts else comparer.settle(title, more, less)


def _question(
    pair: Pair, truths: tuple[Truth, Truth], old: Condition, new: Condition, first: bool
) -> Question:
    def holds_only_there(metadata: Mapping[str, object], context: Context) -> bool:
        found = []
        for encoding, condition in ((pair.before, old), (pair.after, new)):
            facts, problems = read_facts(encoding.program, metadata, context)
            if problems:
                return False
            found.append(holds(condition, facts))
        return found == [first, not first]

    return Question(conjunction((pair.both, *truths)), holds_only_there, pair.both)
