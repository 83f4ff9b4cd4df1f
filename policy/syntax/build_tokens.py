"""Reads the parser's tokens: names, words, strings, numbers and dates, each with its span.

The parser keeps every token, so the children of a grammar rule are its tokens and the results of its
sub-rules, in textual order, and the rule's span runs from its first child to its last.
"""

from __future__ import annotations

import re
from datetime import date
from decimal import Decimal
from typing import Any, TypeAlias, cast

from gradwarden.policy.checking.types import EPOCH_ORDINAL
from gradwarden.policy.errors import Diagnostic
from gradwarden.policy.frozen import frozen
from gradwarden.policy.source import Source, Span
from gradwarden.policy.syntax import tree as s

MAX_DIGITS = 40
MAX_EXPONENT = 30

Children: TypeAlias = list[Any]
"""Tokens of the parser (a str with `type`, `start_pos`, `end_pos`) and what sub-rules were built to."""

_ESCAPES = {'"': '"', "\\": "\\", "n": "\n", "t": "\t"}


@frozen
class UnitText:
    text: str
    span: Span


@frozen
class ListText:
    members: tuple[s.Member, ...]
    span: Span


class TokenReader:
    """Reads the tokens of one source. `faults` collects what is wrong with single tokens."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.faults: list[Diagnostic] = []

    def _of(self, child: Any) -> Span:
        if isinstance(child, str):
            return Span(self.source, child.start_pos, child.end_pos)  # type: ignore[attr-defined]  # a token
        return cast(Span, child.span)

    def _span(self, children: Children) -> Span:
        first, last = children[0], children[-1]
        start = first.start_pos if isinstance(first, str) else first.span.start  # type: ignore[attr-defined]  # a token
        end = last.end_pos if isinstance(last, str) else last.span.end  # type: ignore[attr-defined]  # a token
        return Span(self.source, start, end)

    def _fault(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        self.faults.append(Diagnostic(code, message, span, help))

    def _name(self, token: Any) -> s.Name:
        return s.Name(str(token), self._of(token))

    def _names(self, children: Children) -> tuple[s.Name, ...]:
        return tuple(self._name(child) for child in children if is_token(child, "NAME"))

    def _word(self, token: Any) -> s.Word:
        if is_token(token, "NAME"):
            return s.Word(str(token), False, self._of(token))
        return s.Word(self._unquote(token), True, self._of(token))

    def _unquote(self, token: Any) -> str:
        def replace(match: re.Match[str]) -> str:
            start = token.start_pos + 1 + match.start()
            if match[1] not in _ESCAPES:
                self._fault(
                    "GW107",
                    f"unknown escape `{match[0]}` in a string",
                    Span(self.source, start, start + 2),
                    'the escapes are `\\"`, `\\\\`, `\\n` and `\\t`',
                )
            return _ESCAPES.get(match[1], match[1])

        text = str(token)[1:-1]
        return re.sub(r"\\(.)", replace, text) if "\\" in text else text

    def _quantity(self, children: Children) -> s.Quantity:
        """The number among `-`, a NUMBER and a unit."""
        unit = next((child for child in children if isinstance(child, UnitText)), None)
        number = next(child for child in children if is_token(child, "NUMBER"))
        value = self._decimal(number)
        if is_token(children[0], "MINUS"):
            value = value.copy_negate()
        return s.Quantity(value, unit.text if unit else "", self._span(children))

    def _decimal(self, token: Any) -> Decimal:
        text = str(token)
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

    def _plain(self, token: Any) -> s.Quantity:
        return s.Quantity(self._decimal(token), "", self._of(token))

    def _plains(self, children: Children) -> list[s.Quantity]:
        return [self._plain(child) for child in children if is_token(child, "NUMBER")]

    def _day(self, token: Any) -> s.Day:
        try:
            days = date.fromisoformat(str(token)).toordinal() - EPOCH_ORDINAL
        except ValueError:
            self._fault("GW108", f"there is no day `{token}`", self._of(token), "dates are YYYY-MM-DD")
            days = 0
        return s.Day(days, self._of(token))

    def _members(self, children: Children) -> tuple[s.Member, ...]:
        return tuple(
            self._word(child) if is_token(child, "NAME", "STRING") else child
            for child in children
            if is_token(child, "NAME", "STRING") or isinstance(child, s.Quantity | s.Day)
        )


def is_token(child: Any, *types: str) -> bool:
    return isinstance(child, str) and child.type in types  # type: ignore[attr-defined]  # a token of the parser


def word_of(token: Any) -> Any:
    """A keyword as plain text; the grammar guarantees that it is one of the words its node allows."""
    return str(token)
