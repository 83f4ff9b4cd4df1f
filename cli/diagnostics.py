"""Findings as text for a terminal and as JSON data."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import click

from gradwarden.policy.errors import Diagnostic, Severity
from gradwarden.policy.linting.registry import BY_CODE

COLOURS = {"error": "red", "warning": "yellow", "note": "blue"}
"""The colour of each severity."""

_HEAD = re.compile(r"(error|warning|note)(\[\w+\]:)")


def render_text(diagnostics: Iterable[Diagnostic]) -> str:
    """Return findings as text, a blank line between them, with colours that `click.echo` may strip."""
    return "\n\n".join(map(_coloured, diagnostics))


def _coloured(diagnostic: Diagnostic) -> str:
    colour = COLOURS[diagnostic.severity]
    lines = printable(diagnostic.render()).split("\n")
    lines[0] = _HEAD.sub(lambda match: click.style(match[0], fg=colour, bold=True), lines[0], count=1)
    for number, line in enumerate(lines[1:], 1):
        gutter, bar, rest = line.partition(" | ")
        if bar and rest.strip() and not rest.strip().strip("^"):
            lines[number] = gutter + bar + click.style(rest, fg=colour, bold=True)
        elif line.lstrip().startswith("= help:"):
            lines[number] = line.replace("= help:", click.style("= help:", fg="cyan"), 1)
    return "\n".join(lines)


def to_data(diagnostic: Diagnostic) -> dict[str, Any]:
    """Return one finding as JSON data; lines and columns are 1-based, the end is exclusive."""
    data: dict[str, Any] = {
        "code": diagnostic.code,
        "severity": diagnostic.severity,
        "message": diagnostic.message,
        "help": diagnostic.help,
        "page": BY_CODE[diagnostic.code].page if diagnostic.code in BY_CODE else None,
        "file": None,
        "line": None,
        "column": None,
        "end_line": None,
        "end_column": None,
    }
    if diagnostic.span is not None:
        span = diagnostic.span
        data["file"] = span.source.name
        data["line"], data["column"] = span.source.position(span.start)
        data["end_line"], data["end_column"] = span.source.position(max(span.end, span.start))
    return data


def count(diagnostics: Iterable[Diagnostic]) -> dict[Severity, int]:
    """Return how many findings there are of each severity."""
    counts: dict[Severity, int] = {"error": 0, "warning": 0, "note": 0}
    for diagnostic in diagnostics:
        counts[diagnostic.severity] += 1
    return counts


def plural(number: int, noun: str, nouns: str = "") -> str:
    """Return a count with its noun: `1 file`, `2 files`."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def printable(text: str) -> str:
    """Return text whose control characters are shown, not obeyed by a terminal. Line breaks are kept."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
