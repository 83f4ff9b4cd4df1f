"""Gives a name another spelling, wherever the policies that share it write it.

The result is read again before it is handed out: it must name the same things in the same places, and have
the same findings, or the rename is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from gradwarden.cli.language_server.workspace import View, Workspace, place_of
from gradwarden.policy.checking.check import check
from gradwarden.policy.checking.check_schema import MAX_NAME
from gradwarden.policy.checking.types import RESERVED
from gradwarden.policy.combine import QUARANTINE
from gradwarden.policy.errors import Diagnostic
from gradwarden.policy.frozen import frozen
from gradwarden.policy.load import read_files
from gradwarden.policy.source import Source, Span
from gradwarden.policy.syntax.names import TERMS, Kind, Occurrence, Symbol, occurrences
from gradwarden.policy.syntax.parse import parse

_NAME = re.compile(r"[a-z_][a-z0-9_]*")


class RenameRefusedError(Exception):
    """Why a name cannot be given another spelling, in words for the user."""


@frozen
class Renaming:
    """The spans of a name, by the place of their file, each once, in textual order."""

    symbol: Symbol
    spans: dict[str, list[Span]]
    roots: tuple[str, ...]


def find(workspace: Workspace, place: str, symbol: Symbol) -> Renaming:
    """Return every place where a symbol is named, over all policies that share a file which names it."""
    roots: dict[str, None] = {}
    pending = [place]
    spans: dict[str, dict[int, Span]] = {}
    while pending:
        for root in workspace.policies_with(pending.pop()):
            if root in roots:
                continue
            roots[root] = None
            for occurrence in workspace.view(root).names:
                if occurrence.symbol == symbol:
                    file = place_of(occurrence.span.source.name)
                    if file not in spans:
                        pending.append(file)
                    spans.setdefault(file, {})[occurrence.span.start] = occurrence.span
    return Renaming(symbol, {f: [x[n] for n in sorted(x)] for f, x in spans.items()}, tuple(roots))


def refusal(symbol: Symbol) -> str | None:
    """Say why a symbol cannot be renamed at all, if so."""
    if symbol.kind == "value":
        return f"`{symbol.name}` is a value that records carry; it is changed where they are written"
    if symbol == Symbol("band", QUARANTINE):
        return f"`{QUARANTINE}` has a meaning of its own and keeps its name"
    return None


def rename(workspace: Workspace, place: str, symbol: Symbol, name: str) -> Renaming:
    """Return the spans to be replaced by a new name. Raises RenameRefusedError."""
    fault = refusal(symbol) or _unfit(symbol.kind, name)
    if fault:
        raise RenameRefusedError(fault)
    found = find(workspace, place, symbol)
    if name == symbol.name:
        return found
    views = [workspace.view(root) for root in found.roots]
    for view in views:
        if (broken := next((file for file in view.files if not _parses(file.source)), None)) is not None:
            shown = os.path.basename(broken.source.name)
            raise RenameRefusedError(f"`{shown}` does not parse, so that uses may be missed; mend it first")
        if (taken := _taken(view, symbol, name)) is not None:
            raise RenameRefusedError(
                f"`{name}` is already the name of {_a(taken.symbol.kind)} at {_at(taken.span)}"
            )
    for view in views:
        _prove(workspace, view, found, name)
    return found


def renamed(text: str, spans: list[Span], name: str) -> str:
    """Return a text with a new name at spans of it, in textual order."""
    parts, end = [], 0
    for span in spans:
        parts += [text[end : span.start], name]
        end = span.end
    return "".join([*parts, text[end:]])


def _unfit(kind: Kind, name: str) -> str | None:
    """Say why a name cannot be one of a kind, if so."""
    if not _NAME.fullmatch(name):
        return f"`{name}` is not a name: names are lower-case letters, digits and `_`"
    if len(name) > MAX_NAME:
        return f"a name has at most {MAX_NAME} characters"
    if name in RESERVED:
        return f"`{name}` is a word of the language"
    if kind == "attribute" and name == "id":
        return "`id` is the identity of an example, not metadata"
    if kind == "band" and name == QUARANTINE:
        return f"a band of the name `{QUARANTINE}` has a meaning of its own"
    return None


def _parses(source: Source) -> bool:
    return not parse(source)[1]


def _taken(view: View, symbol: Symbol, name: str) -> Occurrence | None:
    """Return what has a name already, in the space of names of a symbol."""
    kinds = TERMS if symbol.kind in TERMS else (symbol.kind,)
    return next(
        (x for x in view.names if x.declares and x.symbol.kind in kinds and x.symbol.name == name), None
    )


def _prove(workspace: Workspace, view: View, found: Renaming, name: str) -> None:
    """Read a policy with the new name; it must name the same things and have the same findings."""

    def read(path: Path) -> str | Diagnostic:
        text = workspace.read(path)
        spans = found.spans.get(place_of(str(path)))
        return renamed(text, spans, name) if spans and isinstance(text, str) else text

    main = view.files[0].source
    text = renamed(main.text, found.spans.get(place_of(main.name), []), name)
    directory = Path(main.name).parent if os.path.isabs(main.name) else None
    reading = read_files(Source(main.name, text), directory, read)
    _, findings = check(reading.files, reading.faults, reading.complete)
    before, after = list(_shape(view.names, found.symbol, name)), list(_shape(occurrences(reading.files)))
    if before != after or _errors(findings) != _errors(x.diagnostic for x in view.found):
        shown = os.path.basename(main.name)
        raise RenameRefusedError(
            f"`{name}` would be read as something else in `{shown}`; choose another name"
        )


def _errors(found: Iterable[Diagnostic]) -> list[str]:
    return sorted(x.code for x in found if x.severity == "error")


def _shape(
    names: tuple[Occurrence, ...], symbol: Symbol | None = None, name: str = ""
) -> Iterator[tuple[Kind, str, str, bool]]:
    """Yield what is named, in textual order; `symbol` under a new name."""
    for x in names:
        owner = x.symbol.owner
        if symbol is not None and symbol.kind == "attribute" and owner == symbol.name:
            owner = name
        yield x.symbol.kind, name if x.symbol == symbol else x.symbol.name, owner, x.declares


def _a(kind: Kind) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def _at(span: Span) -> str:
    line, column = span.source.position(span.start)
    return f"{os.path.basename(span.source.name)}:{line}:{column}"
