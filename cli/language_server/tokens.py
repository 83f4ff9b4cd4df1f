"""Semantic tokens: what each name is, for editors that colour names by meaning."""

from __future__ import annotations

from collections.abc import Iterable

from lsprotocol import types as lsp

from gradwarden.cli.language_server.positions import Lines
from gradwarden.policy.syntax.names import Kind, Occurrence

_TYPES: dict[Kind, str] = {
    "policy": "namespace",
    "attribute": "property",
    "signal": "variable",
    "condition": "macro",
    "entropy band": "macro",
    "band": "type",
    "phase": "enumMember",
    "rule": "function",
    "value": "enumMember",
}

_NAMES = sorted(set(_TYPES.values()))

LEGEND = lsp.SemanticTokensLegend(token_types=_NAMES, token_modifiers=["declaration"])


def semantic_tokens(names: Iterable[Occurrence], lines: Lines) -> list[int]:
    """Return the names of one text as the protocol encodes them: five numbers each, relative to the last."""
    found: list[int] = []
    line = column = 0
    for start, name in sorted({name.span.start: name for name in names}.items()):
        where = lines.range(start, name.span.end)
        if where.end.line != where.start.line:
            continue
        if where.start.line != line:
            column = 0
        found += [
            where.start.line - line,
            where.start.character - column,
            where.end.character - where.start.character,
            _NAMES.index(_TYPES[name.symbol.kind]),
            int(name.declares),
        ]
        line, column = where.start.line, where.start.character
    return found
