"""Walks over conditions and numeric expressions of a program."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from gradwarden.policy.program import And, Arithmetic, Compare, Condition, Not, NumericExpr, Or, SignalValue

MAX_HEIGHT = 64
"""How many levels a condition may have once the conditions it names are written out."""

MAX_SIZE = 10_000
"""How many terms such a condition may have."""

MAX_TOTAL = 1_000_000
"""How many terms the conditions of a policy may have together."""

Node: TypeAlias = Condition | NumericExpr


def children(node: Node) -> tuple[Node, ...]:
    match node:
        case And(terms) | Or(terms):
            return terms
        case Not(term):
            return (term,)
        case Compare(_, left, right) | Arithmetic(_, left, right):
            return (left, right)
        case _:
            return ()


def signals_of(condition: Condition) -> Iterator[str]:
    """Yield the name of every signal that a condition reads (more than once where it is read so)."""
    pending: list[Node] = [condition]
    while pending:
        node = pending.pop()
        if isinstance(node, SignalValue):
            yield node.name
        pending += children(node)


class Measure:
    """Sizes and heights of conditions. Shared parts are measured once, so that reuse cannot cost time."""

    def __init__(self) -> None:
        # The node is kept beside its measures: an id is only unique while its object lives.
        self._known: dict[int, tuple[Node, int, int]] = {}

    def __call__(self, node: Node) -> tuple[int, int]:
        """Return (number of nodes, number of levels)."""
        known = self._known.get(id(node))
        if known:
            return known[1], known[2]
        below = [self(child) for child in children(node)]
        size = 1 + sum(size for size, _ in below)
        height = 1 + max((height for _, height in below), default=0)
        self._known[id(node)] = (node, size, height)
        return size, height
