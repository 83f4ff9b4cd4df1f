"""Runs the LALR automaton of the grammar (`parse_table`), for texts without faults.

Lark's own driver keeps what error messages need; most texts have no errors. This one walks the same table
with the same terminals, calls the same methods of a builder, and stops at the first thing that does not fit;
the caller then has Lark parse the text again, and say what is wrong.

Per state of the parser, what may come next is one regular expression, as in Lark's contextual lexer; what is
ignored is skipped in front of it. As in Lark, what a rule whose name begins with `_` was made of goes into
the rule around it, and a rule marked `?` that has one part is that part.

Values lie on a stack of their own, in textual order. A frame of the other stack says which state came next
and where its values and its text begin. So a rule without a value of its own takes nothing off the values
and puts nothing back: its parts lie where those of the rule around it belong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from gradwarden.policy.frozen import frozen
from gradwarden.policy.source import Source, Span

Lexer: TypeAlias = tuple[str, dict[str, dict[str, str]]]
"""A pattern with a group per kind of token, and for some kinds the terminals of single texts."""

Token: TypeAlias = tuple[str, str, int, int]
"""A token as builders read it: its terminal, its text, and where it starts and ends."""

END = "$END"
"""The terminal at the end of a text."""


class StuckError(Exception):
    """The text has a fault."""


@frozen
class Rule:
    """A rule of the grammar. size: how many symbols it has.

    single: a single part stands for itself, as in rules marked `?`. grows: its first symbol is itself.
    """

    name: str
    size: int
    single: bool
    grows: bool


@frozen
class Table:
    """The automaton as data. actions: by state and symbol, the state to go to, or -1 - the rule to reduce by.

    lexers: by state, an index into `patterns`. end: the state in which the start symbol is on top.
    skipped: the pattern of what stands between tokens. terminals: the pattern of each.
    """

    start: int
    end: int
    rules: Sequence[Rule]
    actions: Sequence[Mapping[str, int]]
    lexers: Sequence[int]
    patterns: Sequence[Lexer]
    skipped: str
    terminals: Mapping[str, str]


@frozen
class _Reduction:
    """A rule that is to be reduced by where one terminal is ahead.

    method: of the builder; None: the rule's parts stay as they are. unit: one symbol takes the place of
    another. grows: a list takes one part more. jumps: where it leads by the state below, as far as known;
    nothing else decides it.
    """

    size: int
    symbol: str
    method: Callable[[Any, list[Any], Span], Any] | None
    unit: bool
    grows: bool
    ahead: str
    jumps: dict[int, _Jump]


_State: TypeAlias = tuple[Any, Any, dict[str, Any] | None]
"""What finds the next token of a state, the terminals of single texts by group, and the actions of the state.

An action is the state to go to, or the reduction to make first. The class tells which.

Where there is but one terminal that may follow, and then perhaps but one again, there is a match of all of
them, what they are and where they lead (`_Run`), and no actions.
"""

_Run: TypeAlias = list[tuple[str, int]]
"""Terminals that follow one another whatever the text, each with the state that it leads to."""

_Jump: TypeAlias = tuple[int, Any, bool]
"""The state that a symbol leads to, its action on the terminal ahead, and whether it is the state below."""


class Automaton:
    """The automaton of a table. builder: a class with a method for each rule that has a value of its own."""

    def __init__(self, table: Table, builder: type) -> None:
        self._table = table
        self._builder = builder
        self._actions: list[dict[str, Any] | None] = [None] * len(table.actions)
        self._reductions: dict[tuple[int, str], _Reduction] = {}
        self._terminals = {END, *table.terminals}
        self._states: list[_State | None] = [None] * len(table.actions)

    def run(self, source: Source, builder: Any) -> Any:
        """Return what the builder made of the start symbol. Raises StuckError."""
        states, text = self._states, source.text
        state, position, ended = self._table.start, 0, 0
        frames: list[tuple[int, int, int]] = [(state, 0, 0)]
        values: list[Any] = []
        while True:
            match, words, actions = states[state] or self._state(state)
            found = match(text, position)
            if actions is None:
                if found is None:
                    raise StuckError
                for (kind, state), (start, ended) in zip(words, found.regs[1:], strict=True):
                    frames.append((state, len(values), start))
                    values.append((kind, text[start:ended], start, ended))
                position = ended
                continue
            kind = found.lastgroup
            if kind is not None:
                start, position = found.span(kind)
            elif found.end() == len(text):
                kind, start, position = END, ended, ended
            else:
                raise StuckError
            word = text[start:position]
            if kind in words:
                kind = words[kind].get(word, kind)
            action = actions.get(kind)
            while action.__class__ is _Reduction:
                size = action.size
                if size:
                    _, first, begin = frames[-size]
                    del frames[-size:]
                else:
                    first, begin = len(values), ended
                if action.method:
                    parts = values[first:]
                    del values[first:]
                    values.append(action.method(builder, parts, Span(source, begin, ended)))
                below = frames[-1][0]
                state, action, joined = action.jumps.get(below) or self._jump(below, action)
                if not joined:
                    frames.append((state, first, begin))
            if action is None:
                if state == self._table.end:
                    return values[-1]
                raise StuckError
            state = action
            frames.append((state, len(values), start))
            values.append((kind, word, start, position))
            ended = position

    def _jump(self, below: int, reduction: _Reduction) -> _Jump:
        """Follow what was reduced to the state that can do more than put another symbol in its place."""
        symbol, ahead = reduction.symbol, reduction.ahead
        while True:
            state: int = self._row(below)[symbol]
            action = self._row(state).get(ahead)
            if action.__class__ is not _Reduction or not (action.unit or action.grows):
                made = state, action, False
                break
            if action.grows:
                # A list takes the one part above it, and is then in the state in which it was.
                made = below, self._row(below).get(ahead), True
                break
            symbol = action.symbol
        reduction.jumps[below] = made
        return made

    def _row(self, state: int) -> dict[str, Any]:
        """Return the actions of a state, which are made when first needed."""
        row = self._actions[state]
        if row is None:
            row = self._actions[state] = {
                symbol: action if action >= 0 else self._reduction(-1 - action, symbol)
                for symbol, action in self._table.actions[state].items()
            }
        return row

    def _reduction(self, number: int, ahead: str) -> _Reduction:
        known = self._reductions.get((number, ahead))
        if known is None:
            rule = self._table.rules[number]
            nameless = rule.name.startswith("_")
            # The one part of a nameless rule goes into the rule around it, whatever it is.
            unit = rule.size == 1 and (nameless or rule.single)
            method = None if nameless or unit else getattr(self._builder, rule.name)
            grows = nameless and rule.size == 2 and rule.grows
            known = _Reduction(rule.size, rule.name, method, unit, grows, ahead, {})
            self._reductions[number, ahead] = known
        return known

    def _state(self, state: int) -> _State:
        """Return what a state does; its pattern is compiled when first needed."""
        table = self._table
        run = self._run(state)
        made: _State
        if run:
            # Atomic groups: no token may end earlier so that the next one fits.
            pattern = "".join(f"{table.skipped}((?>{table.terminals[kind]}))" for kind, _ in run)
            made = re.compile(pattern).match, run, None
        else:
            pattern, words = table.patterns[table.lexers[state]]
            made = re.compile(pattern).match, words, self._row(state)
        self._states[state] = made
        return made

    def _run(self, state: int) -> _Run:
        """Return the terminals that must follow in a state; none where there is a choice."""
        run: _Run = []
        while True:
            actions = {kind: to for kind, to in self._row(state).items() if kind in self._terminals}
            if len(actions) != 1:
                return run
            ((kind, action),) = actions.items()
            if isinstance(action, _Reduction):
                return run
            state = action
            run.append((kind, state))
