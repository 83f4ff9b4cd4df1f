"""Sorts the clauses of a rule by kind, and reports those that do not belong, are missing or repeated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from gradwarden.policy.checking.scope import Scope
from gradwarden.policy.decimals import decimal_text, scaled, unscaled
from gradwarden.policy.program import SCALE
from gradwarden.policy.source import Span
from gradwarden.policy.syntax import tree as s

Weights = tuple[int, ...]

ALLOWED: dict[s.RuleKind, tuple[str, ...]] = {
    "depth": ("when", "reach", "because"),
    "suppress": ("when", "cap", "route", "because"),
    "retain": ("when", "from", "until", "at most", "because"),
    "privacy": ("when", "within", "epsilon", "delta", "clip", "unit", "noise", "spent", "because"),
    "memorization": ("when", "refuse", "cap", "route", "at most", "hold out", "because"),
    "curriculum": ("when", "before", "from", "in", "during", "reach", "because"),
    "modulate": ("when", "scale", "because"),
    "waive": ("when", "approved", "until", "because"),
    "maintain": ("within", "strength", "drift", "rehearse", "from", "because"),
}
"""The clauses that a rule of each kind may have, by the words that they begin with."""

_REPEATABLE = {"curriculum": {"before", "from", "in", "during", "reach"}}

MISSING = {
    "`delta`": "for instance `delta 1e-6`: well below one over the number of privacy units",
    "`epsilon`": "for instance `epsilon 3`: the less, the more noise",
    "`clip`": "for instance `clip 1.0`: the greatest norm that a privacy unit's gradient may have",
    "`within`": "name the bands that it is about, such as `within shallow`",
    "`reach`": "say how deep, such as `reach shallow, deep at 0.5`",
    "`when`": "say of which examples, such as `when not consent`",
    "`until`": "say when it lapses, such as `until 2027-01-01`",
}
"""What to write for a clause that is missing, by how it is called."""

ClauseT = TypeVar("ClauseT", bound=s.Clause)


_WORDS: dict[type, str] = {
    s.When: "when",
    s.Because: "because",
    s.Route: "route",
    s.Refuse: "refuse",
    s.During: "during",
    s.InPhase: "in",
    s.AtMost: "at most",
    s.HoldOut: "hold out",
    s.Within: "within",
    s.UnitOf: "unit",
    s.Noise: "noise",
    s.Spent: "spent",
    s.Scale: "scale",
    s.Approved: "approved",
    s.Strength: "strength",
    s.Drift: "drift",
    s.Rehearse: "rehearse",
}
"""The word that each clause of a class begins with; the words of other classes are in their clauses."""


def word_of(clause: s.Clause) -> str:
    """Return the word that a clause begins with."""
    word = _WORDS.get(clause.__class__)
    if word is not None:
        return word
    if isinstance(clause, s.Targets):
        return clause.verb
    if isinstance(clause, s.Timing):
        return clause.word
    assert isinstance(clause, s.PrivacyNumber)
    return clause.term


class Clauses:
    """The clauses of one rule that belong there."""

    def __init__(self, rule: s.Rule, scope: Scope) -> None:
        self.rule = rule
        self.scope = scope
        self.faults = scope.faults
        self.all: list[s.Clause] = list(self._fitting())
        self._first: dict[type, Any] = {clause.__class__: clause for clause in reversed(self.all)}

    def _fitting(self) -> Iterator[s.Clause]:
        seen: dict[str, Span] = {}
        kind = self.rule.kind
        allowed = ALLOWED[kind]
        for clause in self.rule.clauses:
            word = key = word_of(clause)
            if isinstance(clause, s.AtMost):
                key = f"{word} {clause.noun}"
            if word not in allowed:
                self._misplaced(clause, word)
            elif key in seen and word not in _REPEATABLE.get(kind, ()):
                help = (
                    f"it stands at {seen[key]}; join conditions with `and`, `or`" if word == "when" else None
                )
                self.faults.error("GW452", f"`{key}` is given twice", clause.span, help)
            else:
                seen[key] = clause.span
                yield clause

    def _misplaced(self, clause: s.Clause, word: str) -> None:
        help = f"it takes {_listed(ALLOWED[self.rule.kind])}"
        if isinstance(clause, s.InPhase):
            if self._tests_set(clause):
                return
            name = clause.phase.text
            help = "to test membership, write the values in brackets: `in [ … ]`"
            if self.rule.kind == "privacy" and name in self.scope.band_names:
                help = f"write `within {name}`"
        self.faults.error(
            "GW450", f"`{word}` does not belong in a `{self.rule.kind}` rule", clause.span, help
        )

    def _tests_set(self, clause: s.InPhase) -> bool:
        """Whether this is the rest of `when pii in tags`, whose member is reported as an undeclared name."""
        attribute = self.scope.attributes.get(clause.phase.text)
        if attribute is None or self.faults.cascading:
            return False
        conditions = (c.condition for c in self.rule.clauses if isinstance(c, s.When))
        return any(
            name.name in attribute.spec.values
            and name.name not in self.scope.terms()
            and not clause.span.source.text[name.span.end : clause.span.start].strip()
            for condition in conditions
            for name in _bare_names(condition)
        )

    def one(self, kind: type[ClauseT]) -> ClauseT | None:
        """Return the clause of a kind, if there is one."""
        return self._first.get(kind)

    def need(self, kind: type[ClauseT], example: str) -> ClauseT | None:
        """Return the clause of a kind, or report that it is missing."""
        clause = self.one(kind)
        if clause is None:
            self.missing(example)
        return clause

    def missing(self, example: str) -> None:
        rule = self.rule
        message = f"the `{rule.kind}` rule `{rule.name.text}` lacks {example}"
        self.faults.error("GW451", message, rule.name.span, MISSING.get(example))

    @property
    def because(self) -> str:
        clause = self.one(s.Because)
        return clause.text.text if clause else ""

    @property
    def when(self) -> s.Expr | None:
        clause = self.one(s.When)
        return clause.condition if clause else None


def _bare_names(condition: s.Expr) -> Iterator[s.Reference]:
    """Yield the names that stand where a condition does, rather than as operands of a test."""
    match condition:
        case s.Reference():
            yield condition
        case s.Junction(_, terms):
            for term in terms:
                yield from _bare_names(term)
        case s.Negation(term):
            yield from _bare_names(term)
        case s.Implication(left, right):
            yield from _bare_names(left)
            yield from _bare_names(right)
        case _:
            pass


def weight(scope: Scope, quantity: s.Quantity | None, ceiling: int | None = None) -> int:
    """Return a weight in millionths; none means the ceiling for caps, one for grants (`ceiling`)."""
    most = scope.ceiling if ceiling is None else ceiling
    if quantity is None:
        return most
    value = scaled(quantity.value, 6)
    if value is None:
        scope.faults.error("GW309", "a weight has at most 6 decimal places", quantity.span)
        return 0
    if not 0 <= value <= scope.ceiling:
        greatest = decimal_text(unscaled(scope.ceiling, 6))
        help = "declare `max weight`, at most 4" if value <= 4 * SCALE else None
        scope.faults.error("GW453", f"a weight lies from 0 to {greatest}", quantity.span, help)
        return 0
    return value


def target_weights(scope: Scope, targets: Sequence[s.Target], other: int, unweighted: int) -> Weights:
    """Return the weight per band that targets name; `other` for bands not named.

    `unweighted` is the weight of a target without `at`. `all` is every band but `quarantine`; a band named
    beside it keeps its own weight.
    """
    named: dict[str, int] = {}
    every: int | None = None
    for target in targets:
        value = unweighted if target.weight is None else weight(scope, target.weight)
        if target.band is None:
            if every is not None:
                scope.faults.error("GW465", "`all` is listed twice", target.span)
            every = value
            continue
        band = scope.band(target.band, also=("all",))
        if band in named:
            scope.faults.error("GW465", f"the band `{band}` is listed twice", target.span)
        if band:
            named[band] = value
    if every is not None:
        named = dict.fromkeys(scope.all_but_quarantine(), every) | named
    return tuple(named.get(band, other) for band in scope.band_names)


def _listed(words: Sequence[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)
