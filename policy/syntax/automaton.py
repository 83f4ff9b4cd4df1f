"""Runs the LALR automaton of the grammar (`parse_table`), for texts without faults.

Lark's own driver keeps what error messages need; most texts have no errors. This one walks the same table
with the same terminals, calls the same methods of a builder, and stops at the first thing that does not fit;
the caller then has Lark parse the text again, and say what is wrong.

Per state of the parser, what may come next is one regular expression, as in Lark's contextual lexer; what is
ignored is skipped in front of it. As in Lark, what a rule whose name begins with `_` was made of goes into
the rule around it, and a rule marked `?` that has one part is that part.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from gradwarden.policy.frozen import frozen

Lexer: TypeAlias = tuple[str, dict[str, dict[str, str]]]
"""A pattern with a group per kind of token, and for some kinds the terminals of single texts."""


class StuckError(Exception):
    """The text has a fault."""


class Token(str):
    """A token as builders read it: its text, its terminal, and where it stands."""

    __slots__ = ("end_pos", "start_pos", "type")

    type: str
    start_pos: int
    end_pos: int


class _Parts(list[Any]):
    """What a rule was made of that has no value of its own."""


@frozen
class Rule:
    """A rule of the grammar. size: how many symbols it has. nested: some of them have no value of their own.

    single: a single part stands for itself, as in rules marked `?`.
    """

    name: str
    size: int
    nested: bool
    single: bool


@frozen
class Table:
    """The automaton as data. actions: by state and symbol, the state to go to, or -1 - the rule to reduce by.

    lexers: by state, an index into `patterns`. end: the state in which the start symbol is on top.
    """

    start: int
    end: int
    rules: Sequence[Rule]
    actions: Sequence[Mapping[str, int]]
    lexers: Sequence[int]
    patterns: Sequence[Lexer]


@frozen
class _Reduction:
    """A rule with its method of the builder; None: `_Parts`.

    unit: one part takes the place of another, whatever it is.
    """

    size: int
    nested: bool
    method: Callable[[Any, list[Any]], Any] | None
    single: bool
    unit: bool
    symbol: str


class Automaton:
    """The automaton of a table. builder: a class with a method for each rule that needs one."""

    def __init__(self, table: Table, builder: type) -> None:
        self._table = table
        reductions = [_reduction(rule, builder) for rule in table.rules]
        # By state and symbol: the state to go to, or the reduction to make first. The class tells which.
        self._actions: list[dict[str, Any]] = [
            {symbol: action if action >= 0 else reductions[-1 - action] for symbol, action in row.items()}
            for row in table.actions
        ]
        self._lexers: dict[int, tuple[Callable[..., re.Match[str] | None], dict[str, dict[str, str]]]] = {}
        # Where units lead, by the states below and on top, and the terminal ahead: nothing else decides it.
        self._climbs: dict[tuple[int, int, str], int] = {}

    def run(self, text: str, builder: Any) -> Any:
        """Return what the builder made of the start symbol. Raises StuckError."""
        actions, lexers, climbs = self._actions, self._lexers, self._climbs
        state = self._table.start
        states: list[int] = [state]
        values: list[Any] = []
        position = 0
        while True:
            match, words = lexers.get(state) or self._lexer(state)
            found = match(text, position)
            kind = found.lastgroup if found else None
            if found is None or kind is None:
                at_end = (found.end() if found else position) == len(text)
                return self._finish(builder, states, values, at_end)
            position = found.end()
            token = Token(found[kind])
            if kind in words:
                kind = words[kind].get(token, kind)
            token.type, token.start_pos, token.end_pos = kind, position - len(token), position
            action = actions[state].get(kind)
            while action.__class__ is _Reduction:
                if action.unit:
                    key = states[-2], state, kind
                    state = states[-1] = climbs.get(key) or self._climb(key)
                else:
                    state = self._reduce(builder, action, states, values)
                action = actions[state].get(kind)
            if action is None:
                raise StuckError
            state = action
            states.append(state)
            values.append(token)

    def _climb(self, key: tuple[int, int, str]) -> int:
        """Return the state in which the top of the stack is no longer the only part of something."""
        below, state, kind = key
        action = self._actions[state].get(kind)
        while action.__class__ is _Reduction and action.unit:
            state = self._actions[below][action.symbol]
            action = self._actions[state].get(kind)
        self._climbs[key] = state
        return state

    def _reduce(self, builder: Any, action: Any, states: list[int], values: list[Any]) -> int:
        size = action.size
        if size:
            parts = values[-size:]
            del values[-size:], states[-size:]
            if action.nested:
                parts = _flat(parts)
        else:
            parts = []
        method = action.method
        if method is None:
            values.append(parts if parts.__class__ is _Parts else _Parts(parts))
        elif action.single and len(parts) == 1:
            values.append(parts[0])
        else:
            values.append(method(builder, parts))
        state: int = self._actions[states[-1]][action.symbol]
        states.append(state)
        return state

    def _finish(self, builder: Any, states: list[int], values: list[Any], at_end: bool) -> Any:
        """Reduce to the start symbol where the text is at its end."""
        if not at_end:
            raise StuckError
        while states[-1] != self._table.end:
            action = self._actions[states[-1]].get("$END")
            if not isinstance(action, _Reduction):
                raise StuckError
            self._reduce(builder, action, states, values)
        return values[-1]

    def _lexer(self, state: int) -> tuple[Callable[..., re.Match[str] | None], dict[str, dict[str, str]]]:
        """Return the lexer of a state; its pattern is compiled when first needed."""
        pattern, words = self._table.patterns[self._table.lexers[state]]
        made = self._lexers[state] = re.compile(pattern).match, words
        return made


def _reduction(rule: Rule, builder: type) -> _Reduction:
    nameless = rule.name.startswith("_")
    # The one part of a nameless rule goes into the rule around it, whether or not it comes in `_Parts`.
    unit = rule.size == 1 and (nameless or (rule.single and not rule.nested))
    method = None if nameless else getattr(builder, rule.name, _unbuilt)
    return _Reduction(rule.size, rule.nested, method, rule.single, unit, rule.name)


def _unbuilt(_builder: Any, _parts: list[Any]) -> Any:
    """Stand in for the method of a rule that is never more than its one part."""
    raise AssertionError("a rule without a method has one part")


def _flat(parts: list[Any]) -> list[Any]:
    """Return parts with those of nameless rules in their places; a list grows where it is, not anew."""
    first = parts[0]
    if first.__class__ is _Parts:
        flat = first
        del parts[0]
    else:
        flat = _Parts()
    for part in parts:
        if part.__class__ is _Parts:
            flat += part
        else:
            flat.append(part)
    return flat
