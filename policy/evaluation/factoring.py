"""Disjunctions of many conjunctions with what they share taken out: `a and b or a and c` is `a and (b or c)`.

The rules of a policy ask the same things again and again. Taken out, a test is joined once for all the rules
that ask it, which is what an index over rules is for. Conditions are total and two-valued, so the laws of
boolean algebra hold for them as they stand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from gradwarden.policy.program import And, Condition, Constant, Or

MAX_DEPTH = 12
"""How often a part is taken out of what is left of another: conditions must not nest too deeply."""

_Term: TypeAlias = frozenset[int]
"""A conjunction: the numbers of its conjuncts."""


def any_of(conditions: Iterable[Condition]) -> Condition:
    """Return a condition that is true where some of the conditions is."""
    numbers: dict[Condition, int] = {}
    terms: dict[_Term, None] = {}
    for condition in conditions:
        for disjunct in _parts(condition, Or):
            terms[frozenset(numbers.setdefault(part, len(numbers)) for part in _parts(disjunct, And))] = None
    return _sum(list(terms), list(numbers), 0)


def _parts(condition: Condition, joint: type[And] | type[Or]) -> Iterator[Condition]:
    """Yield what a condition joins; one that joins nothing is its own part."""
    if isinstance(condition, joint):
        for term in condition.terms:
            yield from _parts(term, joint)
    elif condition != Constant(joint is And):
        yield condition


def _sum(terms: Sequence[_Term], known: Sequence[Condition], depth: int) -> Condition:
    """Return the disjunction of conjunctions of known conditions."""
    if frozenset() in terms:
        return Constant(True)
    left = dict.fromkeys(terms)
    asked = Counter(part for term in terms for part in term)
    found: list[Condition] = []
    while depth < MAX_DEPTH and asked:
        shared, times = max(asked.items(), key=lambda item: (item[1], -item[0]))
        if times < 2:
            break
        sharing = [term for term in left if shared in term]
        common = frozenset.intersection(*sharing)
        rest = _sum(list(dict.fromkeys(term - common for term in sharing)), known, depth + 1)
        found.append(And((*(known[part] for part in sorted(common)), rest)))
        for term in sharing:
            del left[term]
            asked.subtract(term)
    found += [And(tuple(known[part] for part in sorted(term))) for term in left]
    return found[0] if len(found) == 1 else Or(tuple(found))
