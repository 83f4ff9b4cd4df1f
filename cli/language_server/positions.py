"""Places in a text as the Language Server Protocol counts them.

Lines and columns count from 0; a line ends with a line feed, a carriage return or both; columns count UTF-16
code units, unless client and server agreed on another encoding when they met.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from functools import lru_cache

from lsprotocol import types as lsp

from gradwarden.cli.language_server.protocol import UTF16
from gradwarden.policy.source import Span

_LINE_END = re.compile(r"\r\n|\r|\n")

_WIDTHS = {UTF16: ("utf-16-le", 2), "utf-8": ("utf-8", 1), "utf-32": ("utf-32-le", 4)}


class Lines:
    """The lines of one text; turns character offsets into positions and back."""

    def __init__(self, text: str, encoding: str = UTF16) -> None:
        self.text = text
        self._codec, self._unit = _WIDTHS[encoding]
        self._starts = [0, *(match.end() for match in _LINE_END.finditer(text))]
        self._ends = [*(match.start() for match in _LINE_END.finditer(text)), len(text)]

    def position(self, offset: int) -> lsp.Position:
        """Return the position of a character offset; offsets past the end are clamped."""
        offset = min(max(offset, 0), len(self.text))
        line = bisect_right(self._starts, offset) - 1
        return lsp.Position(line, self._width(self.text[self._starts[line] : offset]))

    def offset(self, position: lsp.Position) -> int:
        """Return the character offset of a position; those past the end of a line or the text are clamped."""
        if position.line >= len(self._starts):
            return len(self.text)
        start, end = self._starts[position.line], self._ends[position.line]
        line = self.text[start:end]
        if line.isascii():
            return min(start + position.character, end)
        units = line.encode(self._codec, "surrogatepass")[: position.character * self._unit]
        return start + len(units.decode(self._codec, "ignore"))

    def range(self, start: int, end: int) -> lsp.Range:
        """Return the range from one character offset to another."""
        return lsp.Range(self.position(start), self.position(end))

    def _width(self, text: str) -> int:
        return len(text) if text.isascii() else len(text.encode(self._codec, "surrogatepass")) // self._unit


@lru_cache(maxsize=64)
def lines_of(text: str, encoding: str = UTF16) -> Lines:
    """Return the lines of a text; those of recent texts are remembered."""
    return Lines(text, encoding)


def range_of(span: Span, encoding: str = UTF16) -> lsp.Range:
    """Return a span as a range."""
    return lines_of(span.source.text, encoding).range(span.start, span.end)
