"""Splits policy text that parsed into lexemes, comments included, for the formatter.

The parser drops comments and spacing; here they are kept. Both agree on where every lexeme begins and ends,
which the formatter's tests hold them to.
"""

from __future__ import annotations

import re
from typing import Literal

from gradwarden.policy.frozen import frozen

Kind = Literal["comment", "string", "date", "number", "word", "sign"]

_LEXEME = re.compile(
    r"""(?P<comment>\#[^\n]*)
      | (?P<string>"(?:[^"\\\n]|\\[^\n])*")
      | (?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2}(?![0-9]))
      | (?P<number>[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)
      | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<sign>\.\.|==|!=|<=|>=|[^\s])
      | [ \t\r]+ | (?P<lines>\n)""",
    re.VERBOSE,
)

_BEFORE_SIGNED = {"and", "or", "not", "implies", "in", "when", "number", "integer", "default"}
"""Words after which `-` belongs to the number that follows."""


@frozen
class Lexeme:
    """One lexeme; `breaks` counts the line ends between it and the lexeme before."""

    kind: Kind
    text: str
    start: int
    breaks: int


def lexemes(text: str) -> list[Lexeme]:
    """Return the lexemes of a text in order."""
    found: list[Lexeme] = []
    breaks = 0
    for match in _LEXEME.finditer(text):
        kind = match.lastgroup
        if kind == "lines":
            breaks += 1
        elif kind is not None:
            found.append(Lexeme(kind, match[0].rstrip(), match.start(), breaks))  # type: ignore[arg-type]  # a group's name
            breaks = 0
    return found


def space_between(before: Lexeme | None, left: Lexeme, right: Lexeme) -> str:
    """Return what stands between two lexemes of a line; `before` is the lexeme before `left`, if any."""
    if left.text in ("(", "[", "..") or right.text in (")", "]", ",", "%", ".."):
        return ""
    if "/" in (left.text, right.text):
        return ""
    if left.text == "-" and left.kind == "sign" and _is_signed(before):
        return ""
    return " "


def _is_signed(before: Lexeme | None) -> bool:
    """Whether a `-` after `before` is the sign of an operand rather than a difference."""
    if before is None:
        return True
    if before.kind == "word":
        return before.text in _BEFORE_SIGNED
    return before.kind == "sign" and before.text not in (")", "%")
