"""Walks over conditions and numeric expressions of a program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any, TypeAlias

from gradwarden.policy.program import And, Arithmetic, Compare, Condition, Not, NumericExpr, Or, SignalValue

MAX_HEIGHT = 64
"""How many levels a condition may have once the conditions it names are written out."""

MAX_SIZE = 10_000
"""How many terms such a condition may have."""

MAX_TOTAL = 1_000_000
"""How many terms the conditions of a policy may have together."""

Node: TypeAlias = Condition | NumericExpr


_PARTS: dict[type, Callable[[Any], tuple[Node, ...]]] = {
    And: attrgetter("terms"),
    Or: attrgetter("terms"),
    Not: lambda node: (node.term,),
    Compare: attrgetter("left", "right"),
    Arithmetic: attrgetter("left", "right"),
}


def children(node: Node) -> tuple[Node, ...]:
    parts = _PARTS.get(node.__class__)
    return parts(node) if parts else ()


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
        parts = _PARTS.get(node.__class__)
        if parts is None:
            return 1, 1
        known = self._known.get(id(node))
        if known:
            return known[1], known[2]
        size, height = 1, 1
        for part in parts(node):
            if part.__class__ not in _PARTS:
                size += 1
                continue
            size_below, height_below = self(part)
            size += size_below
            height = max(height, height_below)
        self._known[id(node)] = (node, size, height + 1)
        return size, height + 1
