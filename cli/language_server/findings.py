"""Findings as an editor shows them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lsprotocol import types as lsp

from gradwarden.cli.language_server.positions import lines_of, range_of
from gradwarden.cli.language_server.workspace import View, Workspace, place_of
from gradwarden.policy.errors import Diagnostic
from gradwarden.policy.source import Source, Span

SOURCE = "gradwarden"

_SEVERITIES = {
    "error": lsp.DiagnosticSeverity.Error,
    "warning": lsp.DiagnosticSeverity.Warning,
    "note": lsp.DiagnosticSeverity.Information,
}

_UNUSED = frozenset({"GW504", "GW509", "GW511"})
"""Codes of declarations that nothing reads, which editors show faded."""

_ELSEWHERE = re.compile(r"\bat (.+):(\d+):(\d+)$")
"""A help that names another place, such as that of the first declaration."""


def by_file(views: Iterable[View]) -> dict[str, list[Diagnostic]]:
    """Return the findings of policies by the place of their file, each once, sorted by position."""
    found: dict[str, dict[tuple[str, int, str, str], Diagnostic]] = {}
    for view in views:
        for file in view.files:
            found.setdefault(place_of(file.source.name), {})
        for finding in (x.diagnostic for x in view.found):
            if finding.span is not None:
                place = place_of(finding.span.source.name)
                found.setdefault(place, {}).setdefault(finding.sort_key(), finding)
    return {place: [x[key] for key in sorted(x)] for place, x in found.items()}


def to_lsp(
    finding: Diagnostic, workspace: Workspace, encoding: str, *, related: bool = True
) -> lsp.Diagnostic:
    """Return a finding for an editor; `related`: whether it can show information beside the message."""
    assert finding.span is not None, "only findings with a place are shown"
    message, beside = finding.message, None
    if finding.help and related:
        beside = [_related(finding.span, finding.help, workspace, encoding)]
    elif finding.help:
        message = f"{message}\nhelp: {finding.help}"
    return lsp.Diagnostic(
        range=range_of(_shown(finding.span), encoding),
        message=message,
        severity=_SEVERITIES[finding.severity],
        code=finding.code,
        source=SOURCE,
        tags=[lsp.DiagnosticTag.Unnecessary] if finding.code in _UNUSED else None,
        related_information=beside,
    )


def _related(span: Span, help: str, workspace: Workspace, encoding: str) -> lsp.DiagnosticRelatedInformation:
    """Return a help with the place that it names, or that of the finding."""
    location = lsp.Location(workspace.uri(span.source.name), range_of(_shown(span), encoding))
    if (match := _ELSEWHERE.search(help)) is not None:
        name, line, column = match[1], int(match[2]), int(match[3])
        text = span.source.text if name == span.source.name else workspace.text(name)
        if text is not None:
            start = _offset(Source(name, text), line, column)
            where = lines_of(text, encoding).range(start, start)
            location = lsp.Location(workspace.uri(name), where)
    return lsp.DiagnosticRelatedInformation(location, help)


def _offset(source: Source, line: int, column: int) -> int:
    """Return the offset of a 1-based line and column."""
    start = 0
    for _ in range(line - 1):
        start = source.text.find("\n", start) + 1
    return start + column - 1


def _shown(span: Span) -> Span:
    """Return a span that an editor can underline: not empty where there is text, and on one line."""
    text = span.source.text
    start = min(span.start, max(len(text) - 1, 0))
    end = max(span.end, start + 1)
    line_end = text.find("\n", start)
    if line_end > start:
        end = min(end, line_end)
    return Span(span.source, start, min(end, len(text)))
