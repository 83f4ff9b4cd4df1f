"""What can be wrong with a policy, a program, a model map or an example file.

User faults are `Diagnostic` values, collected and sorted by position, then raised together in one
`PolicyError`. Messages are lowercase, without a full stop, with the user's own text in backticks; the
remedy goes in `help`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from gradwarden.policy.frozen import frozen
from gradwarden.policy.source import Span

Severity = Literal["error", "warning", "note"]
"""An error stops a policy, a warning fails a strict check, a note fails nothing."""

EXCERPT = 160
"""How many characters of a line are shown around a finding."""


@frozen
class Diagnostic:
    """One finding: a stable code, what is wrong, where, and how to mend it.

    `span` is None for findings about data that has no text position (a compiled program, a model map). A file
    that cannot be read as text has an empty span of an empty source: its name is the position.
    """

    code: str
    message: str
    span: Span | None = None
    help: str | None = None
    severity: Severity = "error"

    def __str__(self) -> str:
        return self.render()

    def render(self) -> str:
        """Return the finding as text: position, code, message, the line with a caret under it, help."""
        if self.span is None:
            return "\n".join(
                [f"{self.severity}[{self.code}]: {self.message}", *self._help_lines("  ")],
            )
        line, column = self.span.source.position(self.span.start)
        head = f"{self.span.source.name}:{line}:{column}: {self.severity}[{self.code}]: {self.message}"
        if not self.span.source.text:
            return "\n".join([head, *self._help_lines("  ")])
        text, shown_column = _excerpt(self.span.source.line_at(self.span.start), column)
        width = max(1, min(self.span.end - self.span.start, len(text) - shown_column + 1))
        gutter = " " * len(str(line))
        return "\n".join(
            [
                head,
                f"{gutter} |",
                f"{line} | {text}",
                f"{gutter} | {' ' * (shown_column - 1)}{'^' * width}",
                *self._help_lines(f"{gutter} "),
            ]
        )

    def _help_lines(self, indent: str) -> list[str]:
        return [f"{indent}= help: {self.help}"] if self.help else []

    def sort_key(self) -> tuple[str, int, str, str]:
        if self.span is None:
            return ("", -1, self.code, self.message)
        return (self.span.source.name, self.span.start, self.code, self.message)


class GradwardenError(Exception):
    """Base of every error that gradwarden raises for a fault of its input or surroundings.

    `code` is stable and documented; `help` is a suggested fix or None.
    """

    code = "GW000"

    def __init__(self, message: str, *, help: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.help = help

    def __reduce__(self) -> tuple[Any, ...]:
        # An error crosses processes as it is, whatever its constructor takes.
        return _revive, (type(self), self.args, self.__dict__)

    def __str__(self) -> str:
        return f"[{self.code}] {self.message}" + (f"\n  = help: {self.help}" if self.help else "")


def _revive(
    kind: type[GradwardenError], arguments: tuple[Any, ...], state: dict[str, Any]
) -> GradwardenError:
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(state)
    return error


class PolicyError(GradwardenError):
    """A policy, program or model map that cannot be used. Carries every diagnostic, sorted by position."""

    code = "GW100"

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics = tuple(sorted(diagnostics, key=Diagnostic.sort_key))
        super().__init__("\n".join(d.render() for d in self.diagnostics))

    def __str__(self) -> str:
        return self.message


def _excerpt(line: str, column: int) -> tuple[str, int]:
    """Return the part of a line that is shown around a column, and the column in it.

    Long lines are cut to EXCERPT characters; characters that could drive a terminal are replaced.
    """
    start = 0 if column <= EXCERPT * 3 // 4 else column - EXCERPT // 2
    part = line[start : start + EXCERPT]
    safe = "".join(c if c.isprintable() else " " if c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in part)
    return safe, column - start


COMPARED = 80
"""The longest word that suggestions are sought for: the time of comparing grows with the square of it."""


def did_you_mean(word: str, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """Return a suggestion naming the known word nearest to `word`, or None where nothing is near.

    `likeness` is how near at least, from 0 to 1. Words longer than COMPARED are not compared.
    """
    if len(word) > COMPARED:
        return None
    from difflib import get_close_matches

    near = get_close_matches(word, [name for name in known if len(name) <= COMPARED], n=1, cutoff=likeness)
    return f"did you mean `{near[0]}`?" if near else None
