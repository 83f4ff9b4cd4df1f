"""Policy text and positions in it.

A `Span` is a half-open range of characters in one named text. Lines and columns are 1-based, as editors
count them; columns count characters, not bytes.
"""

from __future__ import annotations

from gradwarden.policy.frozen import frozen


@frozen
class Source:
    """One text with the name it is reported under (usually its path)."""

    name: str
    text: str

    def position(self, offset: int) -> tuple[int, int]:
        """Return the 1-based (line, column) of a character offset; offsets past the end are clamped."""
        offset = min(max(offset, 0), len(self.text))
        line = self.text.count("\n", 0, offset) + 1
        return line, offset - (self.text.rfind("\n", 0, offset) + 1) + 1

    def line_at(self, offset: int) -> str:
        """Return the line that holds a character offset, without its ending. Its time is that of the line."""
        start = self.text.rfind("\n", 0, offset) + 1
        end = self.text.find("\n", start)
        return self.text[start : len(self.text) if end < 0 else end].rstrip("\r")

    def line(self, number: int) -> str:
        """Return a line by its 1-based number, without its line ending; empty past the end."""
        lines = self.text.split("\n")
        return lines[number - 1].rstrip("\r") if 1 <= number <= len(lines) else ""


@frozen
class Span:
    """A half-open character range [start, end) of one source."""

    source: Source
    start: int
    end: int

    @property
    def line(self) -> int:
        return self.source.position(self.start)[0]

    @property
    def column(self) -> int:
        return self.source.position(self.start)[1]

    @property
    def text(self) -> str:
        return self.source.text[self.start : self.end]

    def to(self, other: Span) -> Span:
        """Return the span from the start of this one to the end of another of the same source."""
        return Span(self.source, self.start, max(self.end, other.end))

    def __str__(self) -> str:
        line, column = self.source.position(self.start)
        return f"{self.source.name}:{line}:{column}"
