"""What may come next in a text: the words and kinds of words that the grammar allows at a place.

Editors offer them as completions. They are asked of a parser made from the grammar itself, so that they
cannot drift from it.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from lark import Lark, UnexpectedInput
from lark.lexer import PatternStr

from gradwarden.policy.frozen import frozen

_DECLARATION = re.compile(
    r"""^[ \t]*(?:
        policy\b (?!\s*:) | import[ \t]*" | max[ \t]+weight\b
      | (?:let|band)[ \t]+\w+[ \t]*=(?!=)
      | (?:(?:advisory|hard)[ \t]+)? [A-Za-z_]+ (?:[ \t]+\w+)? [ \t]*\{
      | (?:depth|suppress|retain|privacy|memorization|curriculum|modulate|waive|maintain|assert|starvation)
        [ \t]+ (?![:=])
    )""",
    re.MULTILINE | re.VERBOSE,
)

_SPELT = {"AT_MOST": "at most", "AT_LEAST": "at least", "RECORD": "record", "IN_NAME": "in"}
"""Keywords that the grammar writes as patterns, because they look one word ahead."""

_HALF = re.compile(r"(?<!\w)at[ \t]+$")
"""The first word of a keyword of two."""

_STAND_INS = ("", "x", "1")
"""Put where the next word will be, for the patterns that look at it.

`in` before a word can be a clause, and without one an operator; `record` before a number is no band.
"""


@frozen
class Expected:
    """What may follow: keywords and signs, and whether a name, a number, a string or a date may."""

    keywords: frozenset[str] = frozenset()
    name: bool = False
    number: bool = False
    string: bool = False
    date: bool = False


NOTHING = Expected()


def declaration_start(text: str, end: int) -> int:
    """Return where the last declaration that begins before `end` starts; 0 where there is none."""
    start = 0
    for match in _DECLARATION.finditer(text, 0, end):
        start = match.start()
    return start


def expected_after(text: str) -> Expected:
    """Return what may follow a text, judged from its last declaration; nothing where that is broken.

    The text ends before the word that is being written.
    """
    piece = text[declaration_start(text, len(text)) :]
    terminals = frozenset().union(*(_accepted(piece, word) for word in _STAND_INS))
    if half := _HALF.search(piece):
        begun = {"AT_MOST", "AT_LEAST"} & _accepted(piece[: half.start()], "")
        if begun:
            seconds = frozenset(_SPELT[name].removeprefix("at ") for name in begun)
            return Expected(keywords=seconds, number="NUMBER" in terminals)
    words = {_keywords()[name] for name in terminals if name in _keywords()}
    return Expected(
        keywords=frozenset(words | {_SPELT[name] for name in terminals if name in _SPELT}),
        name="NAME" in terminals or "FIELD" in terminals,
        number="NUMBER" in terminals,
        string="STRING" in terminals,
        date="DATE" in terminals,
    )


def _accepted(text: str, next_word: str) -> frozenset[str]:
    """Return the grammar's terminals that may stand after a text, seen that a word stands there."""
    parser = _parser().parse_interactive(text + next_word)
    try:
        for token in parser.lexer_thread.lex(parser.parser_state):  # type: ignore[no-untyped-call]
            if (token.start_pos or 0) >= len(text):
                break
            parser.feed_token(token)
    except UnexpectedInput as error:
        if (error.pos_in_stream or 0) < len(text):
            return frozenset()
    return frozenset(parser.accepts())  # type: ignore[no-untyped-call]


@cache
def _parser() -> Lark:
    text = (files("gradwarden.grammars") / "policy.lark").read_text("utf-8")
    return Lark(text, parser="lalr", lexer="contextual", maybe_placeholders=False)


@cache
def _keywords() -> dict[str, str]:
    """Return the text of every keyword and sign by its terminal."""
    patterns = {terminal.name: terminal.pattern for terminal in _parser().terminals}
    return {name: x.value for name, x in patterns.items() if isinstance(x, PatternStr)}


def keywords() -> frozenset[str]:
    """Return every word of the language that is spelt out in the grammar."""
    spelt = (word for phrase in _SPELT.values() for word in phrase.split())
    return frozenset({word for word in _keywords().values() if word.isalpha()} | set(spelt))
