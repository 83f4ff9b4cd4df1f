"""Builds typed conditions out of typed conditions, and keeps track of which attributes they show present."""

from __future__ import annotations

from collections.abc import Sequence

from gradwarden.policy.checking.types import Checked
from gradwarden.policy.program import And, Condition, Constant, Not, Or

_NOTHING: frozenset[str] = frozenset()


def negation(checked: Checked) -> Checked:
    """Return the opposite of a condition; double negation and constants are folded."""
    match checked.condition:
        case Not(term):
            condition = term
        case Constant(value):
            condition = Constant(not value)
        case other:
            condition = Not(other)
    return Checked(condition, checked.no, checked.yes, checked.signals)


def junction(op: str, terms: Sequence[Checked]) -> Checked:
    """Join conditions, flattened, without neutral constants.

    All terms hold where a conjunction does, so what any of them shows to be present is; where it does not
    hold, the first failing term shows what all terms before it do. Disjunction is the mirror image.
    """
    every = some = signals = _NOTHING
    for index, term in enumerate(terms):
        shows, mirror = (term.yes, term.no) if op == "and" else (term.no, term.yes)
        if index == 0:
            some = mirror
        elif some:
            some &= every | mirror
        every |= shows
        signals |= term.signals
    conditions = [term.condition for term in terms]
    if op == "and":
        return Checked(conjunction(*conditions), every, some, signals)
    return Checked(disjunction(*conditions), some, every, signals)


def conjunction(*terms: Condition) -> Condition:
    """Return the flattened conjunction of conditions; constants are folded."""
    return _joined(And, terms, neutral=True)


def disjunction(*terms: Condition) -> Condition:
    """Return the flattened disjunction of conditions; constants are folded."""
    return _joined(Or, terms, neutral=False)


def _joined(form: type[And] | type[Or], terms: Sequence[Condition], *, neutral: bool) -> Condition:
    if len(terms) == 1:
        return terms[0]
    kept: list[Condition] = []
    for term in terms:
        for x in term.terms if isinstance(term, form) else (term,):
            if not isinstance(x, Constant):
                kept.append(x)
            elif x.value is not neutral:
                return x
    if len(kept) == 2:  # to hash conditions takes longer than to compare two
        kept = kept[:1] if kept[0] == kept[1] else kept
    elif len(kept) > 2:
        kept = list(dict.fromkeys(kept))
    return kept[0] if len(kept) == 1 else form(tuple(kept)) if kept else Constant(neutral)
