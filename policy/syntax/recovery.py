"""Parses a text with faults: says what is wrong with it, and reads what is not.

The text is cut where a line begins with the head of a declaration, and Lark parses each piece on its own, so
that every declaration reports its own first fault.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from threading import Lock
from typing import Any, cast

from lark import UnexpectedCharacters, UnexpectedInput, UnexpectedToken
from lark.lexer import PatternStr
from lark.utils import TextSlice

from gradwarden.policy.checking.remedies import remedy
from gradwarden.policy.errors import Diagnostic
from gradwarden.policy.frozen import frozen
from gradwarden.policy.source import Source, Span
from gradwarden.policy.syntax.automaton import Token
from gradwarden.policy.syntax.build import Builder
from gradwarden.policy.syntax.grammar import lark_of
from gradwarden.policy.syntax.tree import File, Item

MAX_TRIED = 300
"""How much may be open in the parser for every token to be tried that may stand where a fault is."""

_DECLARATION = re.compile(
    r"""^[ \t]*(?:
        policy\b (?!\s*:) | import[ \t]*" | max[ \t]+weight\b
      | (?:examples|signals|model|phases|gradient)\s*\{
      | (?:let|band)[ \t]+\w+[ \t]*=(?!=)
      | (?:(?:advisory|hard)[ \t]+)?
        (?:depth|suppress|retain|privacy|memorization|curriculum|modulate|waive|maintain|assert|starvation)
        [ \t]+\w+\s*\{
    ) | ^[A-Za-z_]+[ \t]+\w+[ \t]*\{""",
    re.MULTILINE | re.VERBOSE,
)

_RULE = re.compile(
    r"[ \t]*(?:(?:advisory|hard)[ \t]+)?(?!(?:let|band|max|policy|import)\b)[A-Za-z_]+[ \t]+\w+\s*\{"
)
"""The head of a declaration, misspelt perhaps, that others refer to at most as a rule."""

_SPOKEN = {
    "NAME": "a name",
    "FIELD": "a name and `:`",
    "NUMBER": "a number",
    "STRING": "a quoted string",
    "DATE": "a date",
    "AT_MOST": "`at most`",
    "AT_LEAST": "`at least`",
    "RECORD": "`record`",
    "IN_NAME": "`in`",
    "$END": "the end of the file",
}

_OPERAND = {"NAME", "NUMBER", "LPAR", "NOT", "HAS", "TRUE"}
"""Where all of these are expected, a condition is."""


@frozen
class _Placed:
    """What a reduction gave, and where the text of it stands."""

    value: Any
    start: int
    end: int


class _Relay:
    """Hands each reduction to the builder of the text being parsed; the parser is built only once."""

    builder: Builder

    def __getattr__(self, rule: str) -> Callable[[list[Any]], _Placed]:
        if rule.startswith("_") or not hasattr(Builder, rule):
            raise AttributeError(rule)
        return lambda children: self._reduced(rule, [_placed(child) for child in children])

    def _reduced(self, rule: str, children: list[_Placed]) -> _Placed:
        start, end = (children[0].start, children[-1].end) if children else (0, 0)
        span = Span(self.builder.source, start, end)
        value = getattr(self.builder, rule)([child.value for child in children], span)
        return _Placed(value, start, end)


def _placed(child: Any) -> _Placed:
    """Return a child of a reduction; Lark's tokens as those that builders read."""
    if isinstance(child, _Placed):
        return child
    token: Token = child.type, str(child), child.start_pos, child.end_pos
    return _Placed(token, child.start_pos, child.end_pos)


class Recovery:
    """The parser of texts with faults. `lock` guards it: one text at a time."""

    def __init__(self, grammar: str) -> None:
        self.lock = Lock()
        self._relay = _Relay()
        self._lark = lark_of(grammar, self._relay)
        self._spoken = dict(_SPOKEN)
        self._keywords: dict[str, str] = {}
        for terminal in self._lark.terminals:
            if isinstance(terminal.pattern, PatternStr):
                self._keywords[terminal.name] = terminal.pattern.value
                self._spoken[terminal.name] = f"`{terminal.pattern.value}`"

    def parse(self, source: Source, most: int) -> tuple[File, list[Diagnostic]]:
        """Return what could be read of a text, and its faults; it stops once there are more than `most`."""
        with self.lock:
            return self._recover(source, most)

    def parse_whole(self, source: Source, builder: Builder) -> tuple[Item, ...] | None:
        """Return the items of a text as Lark reads it, or None where it has a fault."""
        with self.lock:
            self._relay.builder = builder
            try:
                return self._items(source, 0, len(source.text))
            except UnexpectedInput:
                return None

    def _items(self, source: Source, start: int, end: int) -> tuple[Item, ...]:
        placed: Any = self._lark.parse(TextSlice(source.text, start, end))
        return cast("tuple[Item, ...]", placed.value)

    def _recover(self, source: Source, most: int) -> tuple[File, list[Diagnostic]]:
        """Parse declaration by declaration; a broken one loses only itself."""
        items: list[Item] = []
        faults: list[Diagnostic] = []
        complete = True
        heads = (match.start() for match in _DECLARATION.finditer(source.text))
        cuts = [0, *(head for head in heads if head > 0), len(source.text)]
        for start, end in pairwise(cuts):
            self._relay.builder = Builder(source)
            try:
                items += self._items(source, start, end)
            except UnexpectedInput as error:
                faults.append(self._fault(source, error, end))
                complete = complete and _RULE.match(source.text, start) is not None
                items += self._before(source, start, faults[-1])
            faults += self._relay.builder.faults
            if len(faults) > most:
                break
        return File(source, tuple(items), complete), faults

    def _before(self, source: Source, start: int, fault: Diagnostic) -> tuple[Item, ...]:
        """Return the whole declarations of a piece that stand before its fault."""
        self._relay.builder = Builder(source)
        try:
            return self._items(source, start, fault.span.start if fault.span else start)
        except UnexpectedInput:
            return ()

    def _fault(self, source: Source, error: UnexpectedInput, end: int) -> Diagnostic:
        if isinstance(error, UnexpectedToken):
            expected = set(_accepted(error))
            if error.token.type == "$END":
                return self._early_end(source, expected, end)
            span = Span(source, error.token.start_pos or 0, error.token.end_pos or 0)
            return self._unexpected("GW101", span, expected)
        assert isinstance(error, UnexpectedCharacters)
        at = error.pos_in_stream or 0
        span = Span(source, at, at + 1)
        if span.text == '"':
            return Diagnostic("GW103", "this string does not end on its line", span, 'close it with `"`')
        return self._unexpected("GW102", span, set(error.allowed or ()))

    def _early_end(self, source: Source, expected: set[str], end: int) -> Diagnostic:
        """The text, or the piece of it up to the next declaration, stops in the middle of something."""
        following = re.compile(r"\s*(\w+)").match(source.text, end)
        if following:
            span = Span(source, following.start(1), following.end(1))
            found = self._unexpected("GW101", span, expected)
            return replace(found, help="a `}` is missing before it") if "RBRACE" in expected else found
        last = len(source.text.rstrip())
        help = f"expected {self._list(expected)}"
        return Diagnostic("GW104", "unexpected end of the file", Span(source, max(last - 1, 0), last), help)

    def _unexpected(self, code: str, span: Span, expected: set[str]) -> Diagnostic:
        words = [self._keywords[name] for name in expected if name in self._keywords]
        message = f"unexpected `{span.text}`, expected {self._list(expected)}"
        return Diagnostic(code, message, span, remedy(span, words, expected))

    def _list(self, expected: Iterable[str]) -> str:
        """Name what may stand here, in few words."""
        names = set(expected)
        spoken = []
        if names >= _OPERAND:
            spoken.append("a condition")
            names -= {*_OPERAND, "STRING", "DATE", "MINUS", "FALSE", "BAND"}
        if {"WHEN", "BECAUSE", "REACH"} <= names:
            operators = {"PLUS", "AND", "OR"} <= names
            spoken.append("an operator or a clause" if operators else "a clause")
            names = names & {"RBRACE"}
        elif {"DEPTH", "SUPPRESS", "LET"} <= names:
            spoken.append("a declaration")
            names = set()
        elif {"AND", "OR", "IMPLIES"} <= names:
            spoken.append("an operator")
            names -= {name for name in names if self._keywords.get(name, "") in _OPERATORS} | {"IN_NAME"}
        spoken += sorted(self._spoken.get(name, name.lower()) for name in names)
        shown = spoken if len(spoken) <= 8 else [*spoken[:8], "…"]
        return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"


def _accepted(error: UnexpectedToken) -> Iterable[str]:
    """Return what may stand where a fault is; far down, where trying each costs too much, a few too many."""
    state = error.interactive_parser.parser_state if error.interactive_parser else None
    if state is None or len(state.value_stack) > MAX_TRIED:
        return error.expected
    return error.accepts or error.expected


_OPERATORS = {
    *("==", "!=", "<", "<=", ">", ">=", "+", "-", "*", "and", "or", "implies", "in", "not", "has"),
    *("starts", "ends", "contains", "like"),
}
