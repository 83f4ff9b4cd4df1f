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

Test: TypeAlias = tuple[TextTest, tuple[str, ...]]
"""A test and its operands: it holds of a text that passes it against any of them."""

Outcome: TypeAlias = tuple[bool, ...]
"""What each test says of one text."""

Token: TypeAlias = str | Literal[1, 2]

State: TypeAlias = tuple[int, ...]
"""The state of each pattern of one test; `_PASSED` once nothing can change that the test holds."""

_ANY: Literal[1] = 1
_RUN: Literal[2] = 2
_OUTSIDE = -1
_PASSED: State = (-1,)

MOST_STEPS = 300_000
"""How many steps of single tests the search takes before it gives up: many `contains` tests multiply."""

MOST_OUTCOMES = 2_048


def outcomes(tests: Sequence[Test], longest: int) -> dict[Outcome, str] | None:
    """Return each combination that some text of at most `longest` characters shows, with a shortest one.

    Returns None where the tests are too many to be searched.
    """
    return _Search(tests, longest).run()


class _Search:
    """One breadth-first search. A state is a node of the tree of constants and the state of each test."""

    def __init__(self, tests: Sequence[Test], longest: int) -> None:
        self.longest = longest
        self.tests = [_Test(test) for test in tests]
        constants = dict.fromkeys(text for test in self.tests for text in test.constants)
        self.tree = _Tree(constants)
        self.moving = [test for test in self.tests if test.patterns]
        named = {c for test in self.moving for pattern in test.patterns for c in pattern.letters}
        self.letters = sorted(named)
        self.other = unnamed(named.union(*constants))

    def run(self) -> dict[Outcome, str] | None:
        start = (0, tuple(test.start for test in self.moving))
        seen = {start}
        found = {self._outcome(*start): ""}
        layer = [(start, "")]
        left = MOST_STEPS
        while layer and len(layer[0][1]) < self.longest:
            following = []
            for (node, states), text in layer:
                for letter in self._alphabet(node):
                    moved = tuple(t.step(s, letter) for t, s in zip(self.moving, states, strict=True))
                    state = (self.tree.step(node, letter), moved)
                    left -= 1 + len(moved)
                    if state not in seen:
                        seen.add(state)
                        following.append((state, text + letter))
                        found.setdefault(self._outcome(*state), text + letter)
                if left < 0 or len(found) > MOST_OUTCOMES:
                    return None
            layer = following
        return found

    def _alphabet(self, node: int) -> Iterator[str]:
        yield self.other
        yield from self.letters
        yield from (c for c in self.tree.children(node) if c not in self.letters)

    def _outcome(self, node: int, states: tuple[State, ...]) -> Outcome:
        here = self.tree.constants.get(node)
        state = iter(states)
        return tuple(test.accepts(next(state) if test.patterns else (), here) for test in self.tests)


class _Test:
    """One test: the texts that pass it alone, and patterns for the rest."""

    def __init__(self, test: Test) -> None:
        kind, operands = test
        fixed = {operand: constant_of(kind, operand) for operand in operands}
        self.constants = frozenset(text for text in fixed.values() if text is not None)
        self.patterns = [_Pattern(_tokens(kind, operand)) for operand, text in fixed.items() if text is None]
        self._known: dict[tuple[State, str], State] = {}
        self.start = self._settled(tuple(pattern.start for pattern in self.patterns))

    def step(self, state: State, letter: str) -> State:
        if state is _PASSED:
            return state
        key = (state, letter)
        known = self._known.get(key)
        if known is None:
            moved = (p.step(s, letter) for p, s in zip(self.patterns, state, strict=True))
            known = self._known[key] = self._settled(tuple(moved))
        return known

    def _settled(self, state: State) -> State:
        passed = any(p.passed(s) for p, s in zip(self.patterns, state, strict=True))
        return _PASSED if passed else state

    def accepts(self, state: State, here: str | None) -> bool:
        """Return whether the test holds; `here` is the constant that the text is, if it is one."""
        if state is _PASSED or here in self.constants:
            return True
        return any(p.accepts(s) for p, s in zip(self.patterns, state, strict=True))


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
        return _OUTSIDE if node == _OUTSIDE else self._edges[node].get(letter, _OUTSIDE)

    def children(self, node: int) -> Iterator[str]:
        if node != _OUTSIDE:
            yield from self._edges[node]


class _Pattern:
    """A pattern as the set of places in it that the text read so far can have reached, as bits."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self.tokens = tokens
        self.letters = {token for token in tokens if isinstance(token, str)}
        self.start = self._settle(1)

    def passed(self, state: int) -> bool:
        """Return whether the pattern matches however the text goes on: its last run is reached."""
        last = len(self.tokens) - 1
        return last >= 0 and self.tokens[last] == _RUN and bool(state >> last & 1)

    def accepts(self, state: int) -> bool:
        return bool(state >> len(self.tokens) & 1)

    def step(self, state: int, letter: str) -> int:
        reached = 0
        for at, token in enumerate(self.tokens):
            if state >> at & 1:
                if token == _RUN:
                    reached |= 1 << at
                elif token in (_ANY, letter):
                    reached |= 1 << at + 1
        return self._settle(reached)

    def _settle(self, state: int) -> int:
        """Pass over empty runs; forget places before the last run reached, which can do all that they can."""
        last = 0
        for at, token in enumerate(self.tokens):
            if token == _RUN and state >> at & 1:
                state |= 1 << at + 1
                last = at
        return state >> last << last


def constant_of(kind: TextTest, operand: str) -> str | None:
    """Return the one text that passes a test, None where several do."""
    fixed = kind == "equals" or (kind == "glob" and not set(operand) & {"*", "?"})
    return operand if fixed else None


def _tokens(kind: TextTest, operand: str) -> list[Token]:
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
