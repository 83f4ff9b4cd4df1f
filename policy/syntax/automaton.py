"""Runs the LALR automaton that Lark builds from the grammar, for texts without faults.

Lark's own driver keeps what error messages need; most texts have no errors. This one walks the same table
with the same terminals, calls the same methods of a builder, and stops at the first thing that does not fit;
the caller then has Lark parse the text again, and say what is wrong.

Per state of the parser, the terminals that may come next are one regular expression, as in Lark's contextual
lexer; what is ignored is skipped in front of it. As in Lark, what a rule whose name begins with `_` was made
of goes into the rule around it, and a rule marked `?` that has one part is that part.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from lark import Lark
from lark.grammar import Rule
from lark.lexer import BasicLexer, UnlessCallback
from lark.parsers.lalr_analysis import Shift

from gradwarden.policy.frozen import frozen

Match: TypeAlias = Callable[[str, int, int], "re.Match[str] | None"]


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
class _Reduction:
    """size: of the right side. nested: some of it may be `_Parts`. method: of the builder, None: `_Parts`.

    single: a single part stands for itself. unit: nothing else can happen. symbol: the left side.
    """

    size: int
    nested: bool
    method: Callable[[Any, list[Any]], Any] | None
    single: bool
    unit: bool
    symbol: str


@frozen
class _Lexer:
    """What may come next in a state. words: keywords that a terminal's pattern matches too, by terminal."""

    match: Match
    words: Mapping[str, Mapping[str, str]]


class Automaton:
    """The automaton of a grammar that was built with `parser="lalr"` and `lexer="contextual"`.

    builder: a class with a method for each rule that needs one; it takes the parts, tokens included.
    """

    def __init__(self, lark: Lark, builder: type) -> None:
        table = lark.parser.parser.parser.parse_table
        (self._start,), (self._end,) = table.start_states.values(), table.end_states.values()
        self._lexers: dict[int, BasicLexer] = lark.parser.lexer.lexers
        self._known: dict[int, _Lexer] = {}
        self._by_lexer: dict[int, _Lexer] = {}
        reductions: dict[Any, _Reduction] = {}
        # By state and symbol: the state to go to, or the reduction to make first. The class tells which.
        self._actions: dict[int, dict[str, Any]] = {}
        for state, actions in table.states.items():
            row = self._actions[state] = {}
            for symbol, (action, argument) in actions.items():
                if action is not Shift and argument not in reductions:
                    reductions[argument] = _reduction(argument, builder)
                # Lark's names are tokens of its own, which are slow to compare.
                row[str(symbol)] = argument if action is Shift else reductions[argument]

    def run(self, text: str, builder: Any) -> Any:
        """Return what the builder made of the start symbol. Raises StuckError."""
        actions, known = self._actions, self._known
        state = self._start
        states: list[int] = [state]
        values: list[Any] = []
        position, end = 0, len(text)
        while True:
            lexer = known.get(state) or self._lexer(state)
            found = lexer.match(text, position, end)
            kind = found.lastgroup if found else None
            if found is None or kind is None:
                return self._finish(builder, states, values, (found.end() if found else position) == end)
            position = found.end()
            token = Token(found[kind])
            words = lexer.words.get(kind)
            if words:
                kind = words.get(token, kind)
            token.type, token.start_pos, token.end_pos = kind, position - len(token), position
            action = actions[state].get(kind)
            while action.__class__ is _Reduction:
                if action.unit:
                    state = states[-1] = actions[states[-2]][action.symbol]
                else:
                    state = self._reduce(builder, action, states, values)
                action = actions[state].get(kind)
            if action is None:
                raise StuckError
            state = action
            states.append(state)
            values.append(token)

    def _reduce(self, builder: Any, action: Any, states: list[int], values: list[Any]) -> int:
        size = action.size
        parts = values[-size:] if size else []
        if size:
            del values[-size:], states[-size:]
        if action.nested:
            parts = _flat(parts)
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
        while states[-1] != self._end:
            action = self._actions[states[-1]].get("$END")
            if not isinstance(action, _Reduction):
                raise StuckError
            self._reduce(builder, action, states, values)
        return values[-1]

    def _lexer(self, state: int) -> _Lexer:
        """Return the lexer of a state; states that accept the same share one."""
        lark = self._lexers[state]
        made = self._by_lexer.get(id(lark))
        if made is None:
            made = self._by_lexer[id(lark)] = _lexer_of(lark)
        self._known[state] = made
        return made


def _reduction(rule: Rule, builder: type) -> _Reduction:
    name = str(rule.origin.name)
    nested = any(not part.is_term and part.name.startswith("_") for part in rule.expansion)
    return _Reduction(
        size=len(rule.expansion),
        nested=nested,
        method=None if name.startswith("_") else getattr(builder, name, _unbuilt),
        single=rule.options.expand1,
        unit=rule.options.expand1 and len(rule.expansion) == 1 and not nested,
        symbol=name,
    )


def _unbuilt(_builder: Any, _parts: list[Any]) -> Any:
    """Stand in for the method of a rule that is never more than its one part."""
    raise AssertionError("a rule without a method has one part")


def _flat(parts: list[Any]) -> list[Any]:
    """Return parts with those of nameless rules in their places; a list grows where it is, not anew."""
    first = parts[0] if parts else None
    flat = first if first.__class__ is _Parts else _Parts()
    for part in parts[1:] if flat is first else parts:
        if part.__class__ is _Parts:
            flat += part
        else:
            flat.append(part)
    return flat


def _lexer_of(lexer: BasicLexer) -> _Lexer:
    terminals = lexer.scanner.terminals
    ignored = "|".join(t.pattern.to_regexp() for t in terminals if t.name in lexer.ignore_types)
    kept = [f"(?P<{t.name}>{t.pattern.to_regexp()})" for t in terminals if t.name not in lexer.ignore_types]
    # The empty alternative matches where nothing else does: at the end, or at a fault.
    pattern = re.compile(f"(?:{ignored})*+(?:{'|'.join([*kept, ''])})", lexer.g_regex_flags)
    words = {
        name: {t.pattern.value: t.name for t in callback.scanner.terminals}
        for name, callback in lexer.callback.items()
        if isinstance(callback, UnlessCallback)
    }
    return _Lexer(pattern.match, words)
