"""Reads the parser's tokens: names, words, strings, numbers and dates, each with its span.

The parser keeps every token, so the children of a grammar rule are its tokens and the results of its
sub-rules, in textual order.
"""

from __future__ import annotations

import re
from datetime import date
from decimal import Decimal
from typing import Any, TypeAlias

from gradwarden.policy.checking.types import EPOCH_ORDINAL
from gradwarden.policy.errors import Diagnostic
from gradwarden.policy.source import Source, Span
from gradwarden.policy.syntax import tree as s
from gradwarden.policy.syntax.automaton import Token

MAX_DIGITS = 40
MAX_EXPONENT = 30

Children: TypeAlias = list[Any]
"""Tokens of the parser, which alone are tuples, and what sub-rules were built to."""

_ESCAPES = {'"': '"', "\\": "\\", "n": "\n", "t": "\t"}


class TokenReader:
    """Reads the tokens of one source. `faults` collects what is wrong with single tokens."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.faults: list[Diagnostic] = []

    def _of(self, token: Token) -> Span:
        return Span(self.source, token[2], token[3])

    def _fault(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        self.faults.append(Diagnostic(code, message, span, help))

    def _name(self, token: Token) -> s.Name:
        _, text, start, end = token
        return s.Name(text, Span(self.source, start, end))

    def _names(self, children: Children) -> tuple[s.Name, ...]:
        return tuple([self._name(x) for x in children if x.__class__ is tuple and x[0] == "NAME"])

    def _word(self, token: Token) -> s.Word:
        kind, text, start, end = token
        if kind == "NAME":
            return s.Word(text, False, Span(self.source, start, end))
        return s.Word(self._unquote(text, start), True, Span(self.source, start, end))

    def _unquote(self, quoted: str, opening: int) -> str:
        def replace(match: re.Match[str]) -> str:
            start = opening + 1 + match.start()
            if match[1] not in _ESCAPES:
                self._fault(
                    "GW107",
                    f"unknown escape `{match[0]}` in a string",
                    Span(self.source, start, start + 2),
                    'the escapes are `\\"`, `\\\\`, `\\n` and `\\t`',
                )
            return _ESCAPES.get(match[1], match[1])

        text = quoted[1:-1]
        return re.sub(r"\\(.)", replace, text) if "\\" in text else text

    def _quantity(self, children: Children, span: Span) -> s.Quantity:
        """The number after `-`, if any, and before a unit, if any."""
        unit = children.pop() if children[-1].__class__ is str else ""
        value = self._decimal(children[-1])
        return s.Quantity(value.copy_negate() if len(children) > 1 else value, unit, span)

    def _decimal(self, token: Token) -> Decimal:
        text = token[1]
        if len(text) <= MAX_DIGITS and text.isdecimal():
            return Decimal(text)
        mantissa, _, exponent = text.lower().partition("e")
        if len(mantissa) > MAX_DIGITS or len(exponent) > 4 or abs(int(exponent or 0)) > MAX_EXPONENT:
            self._fault(
                "GW109",
                "this number has too many digits",
                self._of(token),
                f"a number has at most {MAX_DIGITS} digits and an exponent within ±{MAX_EXPONENT}",
            )
            return Decimal(0)
        return Decimal(text)

    def _plain(self, token: Token) -> s.Quantity:
        return s.Quantity(self._decimal(token), "", self._of(token))

    def _plains(self, children: Children) -> list[s.Quantity]:
        return [self._plain(x) for x in children if x.__class__ is tuple and x[0] == "NUMBER"]

    def _day(self, token: Token) -> s.Day:
        try:
            days = date.fromisoformat(token[1]).toordinal() - EPOCH_ORDINAL
        except ValueError:
            self._fault("GW108", f"there is no day `{token[1]}`", self._of(token), "dates are YYYY-MM-DD")
            days = 0
        return s.Day(days, self._of(token))

    def _members(self, children: Children) -> tuple[s.Member, ...]:
        words = "NAME", "STRING"
        return tuple(
            self._word(child) if child.__class__ is tuple else child
            for child in children
            if child.__class__ is not tuple or child[0] in words
        )


def is_token(child: Any, *kinds: str) -> bool:
    return child.__class__ is tuple and child[0] in kinds


def word_of(token: Token) -> Any:
    """A keyword as plain text; the grammar guarantees that it is one of the words its node allows."""
    return token[1]
