"""Which combinations of string tests can hold together, exactly, with a shortest text for each.

Every test of the language (equality, prefix, suffix, containment, glob) recognises a regular language. Run
side by side over one text, they are one automaton, and the combinations of outcomes that occur are the ones
that its reachable states show. A breadth-first search finds them all, each with a shortest text. Characters
that no test names behave alike, so one of them stands for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

from gradwarden.policy.program import TextTest

Test: TypeAlias = tuple[TextTest, str]
"""A test and its operand."""

Outcome: TypeAlias = tuple[bool, ...]
"""What each test says of one text."""

Token: TypeAlias = str | Literal[1, 2]

_ANY: Literal[1] = 1
_RUN: Literal[2] = 2
_DEAD = -1

MOST_STATES = 20_000
"""How many states the search visits before it gives up: many `contains` tests multiply."""

MOST_OUTCOMES = 2_048


def outcomes(tests: Sequence[Test], longest: int) -> dict[Outcome, str] | None:
    """Return each combination that some text of at most `longest` characters shows, with a shortest one.

    Returns None where the tests are too many to be searched.
    """
    return _Search(tests, longest).run()


class _Search:
    """One breadth-first search. A state is a node of the tree of constants and one state per pattern."""

    def __init__(self, tests: Sequence[Test], longest: int) -> None:
        self.longest = longest
        constants = [text for test in tests if (text := constant_of(test)) is not None]
        self.tree = _Tree(dict.fromkeys(constants))
        self.patterns = {t: _Pattern(_tokens(t)) for t in tests if constant_of(t) is None}
        self.tests = tests
        named = {c for pattern in self.patterns.values() for c in pattern.tokens if isinstance(c, str)}
        self.letters = sorted(named)
        self.other = unnamed(named.union(*constants))

    def run(self) -> dict[Outcome, str] | None:
        start = (0, tuple(pattern.start for pattern in self.patterns.values()))
        seen = {start}
        found = {self._outcome(*start): ""}
        layer = [(start, "")]
        while layer and len(layer[0][1]) < self.longest:
            following = []
            for (node, states), text in layer:
                for letter in self._alphabet(node):
                    state = (
                        self.tree.step(node, letter),
                        tuple(p.step(s, letter) for p, s in zip(self.patterns.values(), states, strict=True)),
                    )
                    if state in seen:
                        continue
                    seen.add(state)
                    following.append((state, text + letter))
                    found.setdefault(self._outcome(*state), text + letter)
                if len(seen) > MOST_STATES or len(found) > MOST_OUTCOMES:
                    return None
            layer = following
        return found

    def _alphabet(self, node: int) -> Iterator[str]:
        yield self.other
        yield from self.letters
        yield from (c for c in self.tree.children(node) if c not in self.letters)

    def _outcome(self, node: int, states: tuple[int, ...]) -> Outcome:
        here = self.tree.constants.get(node)
        accepted = {
            test: pattern.accepts(state)
            for (test, pattern), state in zip(self.patterns.items(), states, strict=True)
        }
        return tuple(accepted[t] if t in accepted else constant_of(t) == here for t in self.tests)


class _Tree:
    """The constants, letter by letter. A text that left the tree equals none of them."""

    def __init__(self, constants: Sequence[str] | dict[str, None]) -> None:
        self._edges: list[dict[str, int]] = [{}]
        self.constants: dict[int, str] = {}
        for constant in constants:
            node = 0
            for letter in constant:
                if letter not in self._edges[node]:
                    self._edges[node][letter] = len(self._edges)
                    self._edges.append({})
                node = self._edges[node][letter]
            self.constants[node] = constant

    def step(self, node: int, letter: str) -> int:
        return _DEAD if node == _DEAD else self._edges[node].get(letter, _DEAD)

    def children(self, node: int) -> Iterator[str]:
        if node != _DEAD:
            yield from self._edges[node]


class _Pattern:
    """A pattern as the set of places in it that the text read so far can have reached, as bits."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self.tokens = tokens
        self._known: dict[tuple[int, str], int] = {}
        self.start = self._settle(1)

    def accepts(self, state: int) -> bool:
        return bool(state >> len(self.tokens) & 1)

    def step(self, state: int, letter: str) -> int:
        key = (state, letter)
        known = self._known.get(key)
        if known is None:
            reached = 0
            for at, token in enumerate(self.tokens):
                if state >> at & 1:
                    if token == _RUN:
                        reached |= 1 << at
                    elif token in (_ANY, letter):
                        reached |= 1 << at + 1
            known = self._known[key] = self._settle(reached)
        return known

    def _settle(self, state: int) -> int:
        """Pass over empty runs; forget places before the last run reached, which can do all that they can."""
        last = 0
        for at, token in enumerate(self.tokens):
            if token == _RUN and state >> at & 1:
                state |= 1 << at + 1
                last = at
        return state >> last << last


def constant_of(test: Test) -> str | None:
    """Return the one text that passes a test, None where several do."""
    kind, operand = test
    fixed = kind == "equals" or (kind == "glob" and not set(operand) & {"*", "?"})
    return operand if fixed else None


def _tokens(test: Test) -> list[Token]:
    kind, operand = test
    match kind:
        case "prefix":
            return [*operand, _RUN]
        case "suffix":
            return [_RUN, *operand]
        case "contains":
            return [_RUN, *operand, _RUN]
        case _:
            return [_RUN if c == "*" else _ANY if c == "?" else c for c in operand]


def unnamed(named: set[str]) -> str:
    """Return a letter that is not among `named`."""
    letters = (chr(code) for start in (ord("x"), ord("a"), 0x3B1) for code in range(start, start + 0xFFFF))
    return next(letter for letter in letters if letter.isalpha() and letter not in named)
