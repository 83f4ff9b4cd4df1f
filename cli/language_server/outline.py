"""The shape of a text: its declarations, what can be folded, and its canonical layout as edits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from lsprotocol import types as lsp

from gradwarden.cli.language_server.declarations import title_of
from gradwarden.cli.language_server.describe import phrase, short, summary_of
from gradwarden.cli.language_server.positions import lines_of
from gradwarden.policy.errors import PolicyError
from gradwarden.policy.source import Span
from gradwarden.policy.syntax import tree as s
from gradwarden.policy.syntax.format import format_policy
from gradwarden.policy.syntax.lexemes import lexemes

_Kind = lsp.SymbolKind

_RULES = {"assert": _Kind.Event, "waive": _Kind.Interface}


def symbols(file: s.File, encoding: str) -> list[lsp.DocumentSymbol]:
    """Return the declarations of a file, those within a block below it."""
    lines = lines_of(file.source.text, encoding)

    def symbol(
        name: str,
        kind: lsp.SymbolKind,
        whole: Span,
        own: Span,
        detail: str = "",
        below: Sequence[object] = (),
    ) -> lsp.DocumentSymbol:
        return lsp.DocumentSymbol(
            name=name,
            kind=kind,
            range=lines.range(whole.start, whole.end),
            selection_range=lines.range(own.start, own.end),
            detail=short(detail) or None,
            children=[x for x in below if isinstance(x, lsp.DocumentSymbol)],
        )

    def of(item: s.Item) -> Iterator[lsp.DocumentSymbol]:
        match item:
            case s.Header(name, version):
                yield symbol(name.text, _Kind.Module, item.span, name.span, f"version {version.span.text}")
            case s.Import(path):
                yield symbol(path.text or "import", _Kind.File, item.span, path.span)
            case s.Examples(fields):
                below = [
                    symbol(x.name.text, _Kind.Field, x.span, x.name.span, phrase(x.type.span)) for x in fields
                ]
                yield symbol("examples", _Kind.Struct, item.span, _head(item.span), below=below)
            case s.Signals(fields):
                below = [
                    symbol(x.name.text, _Kind.Variable, x.span, x.name.span, phrase(x.type.span))
                    for x in fields
                ]
                yield symbol("signals", _Kind.Struct, item.span, _head(item.span), below=below)
            case s.Model(parts):
                below = [
                    symbol(x.name.text, _Kind.Namespace, x.span, x.name.span, _after(x.name, x.span))
                    for x in parts
                ]
                yield symbol("model", _Kind.Struct, item.span, _head(item.span), below=below)
            case s.Phases(phases):
                below = [
                    symbol(x.name.text, _Kind.EnumMember, x.span, x.name.span, _after(x.name, x.span))
                    for x in phases
                ]
                yield symbol("phases", _Kind.Enum, item.span, _head(item.span), below=below)
            case s.Let(name, condition) | s.EntropyBand(name, condition):
                yield symbol(name.text, _Kind.Constant, item.span, name.span, phrase(condition.span))
            case s.Rule(kind, name):
                kind_of = _RULES.get(kind, _Kind.Function)
                yield symbol(title_of(item), kind_of, item.span, name.span, summary_of(item))
            case s.Assertion(name):
                yield symbol(title_of(item), _RULES["assert"], item.span, name.span, summary_of(item))
            case s.Starvation(band):
                yield symbol(f"starvation {band.text}", _Kind.Property, item.span, band.span)
            case s.Gradient():
                yield symbol("gradient", _Kind.Property, item.span, _head(item.span))
            case s.MaxWeight(weight):
                yield symbol("max weight", _Kind.Property, item.span, weight.span, weight.span.text)

    return [found for item in file.items for found in of(item)]


def _head(span: Span) -> Span:
    """Return the word that a block begins with."""
    return Span(span.source, span.start, span.start + len(span.text.split("{")[0].rstrip()))


def _after(name: s.Name, span: Span) -> str:
    """Return what a declaration says after its name."""
    return phrase(Span(span.source, name.span.end, span.end)).removeprefix("=").strip()


def folds(text: str) -> list[lsp.FoldingRange]:
    """Return what can be folded: blocks of several lines, runs of comments, runs of imports.

    It goes by braces, so that a text that does not parse can be folded too.
    """
    return [
        *_blocks(text),
        *_runs(text, "#", lsp.FoldingRangeKind.Comment),
        *_runs(text, "import ", lsp.FoldingRangeKind.Imports),
    ]


def _blocks(text: str) -> Iterator[lsp.FoldingRange]:
    lines = lines_of(text)
    opened: list[int] = []
    for lexeme in lexemes(text):
        if lexeme.kind != "sign":
            continue
        if lexeme.text == "{":
            opened.append(lexeme.start)
        elif lexeme.text == "}" and opened:
            first, last = (lines.position(offset).line for offset in (opened.pop(), lexeme.start))
            if last > first + 1:
                yield lsp.FoldingRange(first, last - 1, kind=lsp.FoldingRangeKind.Region)


def _runs(text: str, prefix: str, kind: lsp.FoldingRangeKind) -> Iterator[lsp.FoldingRange]:
    """Yield runs of two or more lines that begin alike."""
    first: int | None = None
    for number, line in enumerate([*text.split("\n"), ""]):
        if line.lstrip().startswith(prefix):
            first = number if first is None else first
        elif first is not None:
            if number - first > 1:
                yield lsp.FoldingRange(first, number - 1, kind=kind)
            first = None


def layout(text: str, encoding: str) -> list[lsp.TextEdit]:
    """Return the edits that bring a text to its canonical layout; none where it does not parse."""
    try:
        wanted = format_policy(text)
    except PolicyError:
        return []
    if "\r\n" in text:
        wanted = wanted.replace("\n", "\r\n")
    old, new = text.splitlines(keepends=True), wanted.splitlines(keepends=True)
    starts = [0]
    for line in old:
        starts.append(starts[-1] + len(line))
    lines = lines_of(text, encoding)
    return [
        lsp.TextEdit(lines.range(starts[a], starts[b]), "".join(new[c:d]))
        for tag, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
        if tag != "equal"
    ]
