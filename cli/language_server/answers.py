"""Answers to what an editor asks about a text, from the texts as they are shown now."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from lsprotocol import types as lsp

from gradwarden.cli.language_server import completion, fixes, outline, rename
from gradwarden.cli.language_server.declarations import Declared, declared_in, merged
from gradwarden.cli.language_server.describe import CLOCKS, brief, describe
from gradwarden.cli.language_server.findings import to_lsp
from gradwarden.cli.language_server.positions import Lines, lines_of, range_of
from gradwarden.cli.language_server.protocol import Connection, request_failed
from gradwarden.cli.language_server.tokens import semantic_tokens
from gradwarden.cli.language_server.workspace import (
    Buffer,
    View,
    Workspace,
    parse_text,
    place_of,
    policies_beside,
)
from gradwarden.policy.errors import Diagnostic
from gradwarden.policy.linting.subject import Edit, Finding
from gradwarden.policy.source import Span
from gradwarden.policy.syntax import tree as s
from gradwarden.policy.syntax.names import Occurrence, at

_COMPLETIONS = {
    "attribute": lsp.CompletionItemKind.Field,
    "signal": lsp.CompletionItemKind.Variable,
    "condition": lsp.CompletionItemKind.Constant,
    "entropy band": lsp.CompletionItemKind.Constant,
    "band": lsp.CompletionItemKind.Module,
    "phase": lsp.CompletionItemKind.EnumMember,
    "rule": lsp.CompletionItemKind.Function,
    "value": lsp.CompletionItemKind.EnumMember,
}


AtPosition: TypeAlias = (
    lsp.HoverParams
    | lsp.DefinitionParams
    | lsp.ReferenceParams
    | lsp.DocumentHighlightParams
    | lsp.PrepareRenameParams
    | lsp.RenameParams
)


class Answers:
    """One method per request. A text that is not open is answered with nothing."""

    def __init__(self, connection: Connection, workspace: Workspace) -> None:
        self.connection = connection
        self.workspace = workspace

    # --- places ---------------------------------------------------------------------------------------------

    def _buffer(self, document: lsp.TextDocumentIdentifier) -> Buffer | None:
        return self.workspace.buffer(document.uri)

    def _lines(self, text: str) -> Lines:
        return lines_of(text, self.connection.encoding)

    def _at(self, params: AtPosition) -> tuple[list[View], Occurrence | None]:
        """Return the policies of a text, and what is named at a position of it in the first that knows."""
        buffer = self._buffer(params.text_document)
        if buffer is None:
            return [], None
        offset = self._lines(buffer.text).offset(params.position)
        views = self.workspace.views(buffer.uri)
        for view in views:
            file = view.file(place_of(buffer.uri))
            found = at(view.names, file.source, offset) if file else None
            if found is not None:
                return views, found
        return views, None

    def _location(self, span: Span) -> lsp.Location:
        return lsp.Location(self.workspace.uri(span.source.name), range_of(span, self.connection.encoding))

    def _declared(self, views: Iterable[View]) -> Declared:
        """Return what policies declare, and what they declared when they last parsed."""
        found = Declared()
        for view in views:
            found = merged(found, declared_in(view.files))
            last = self.workspace.last_parsed(view.root)
            if last is not None and last is not view:
                found = merged(found, declared_in(last.files))
        return found

    # --- reading --------------------------------------------------------------------------------------------

    def hover(self, params: lsp.HoverParams) -> lsp.Hover | None:
        views, found = self._at(params)
        if found is None:
            return self._hover_clock(params)
        files = [file for view in views for file in view.files]
        names = [name for view in views for name in view.names]
        text = describe(found.symbol, self._declared(views), files, names)
        if text is None:
            return None
        content = lsp.MarkupContent(lsp.MarkupKind.Markdown, text)
        return lsp.Hover(content, range_of(found.span, self.connection.encoding))

    def _hover_clock(self, params: lsp.HoverParams) -> lsp.Hover | None:
        buffer = self._buffer(params.text_document)
        if buffer is None:
            return None
        lines = self._lines(buffer.text)
        start, end = completion.word_around(buffer.text, lines.offset(params.position))
        word = buffer.text[start:end]
        if word not in CLOCKS:
            return None
        content = lsp.MarkupContent(lsp.MarkupKind.Markdown, f"`{word}`: {CLOCKS[word]}")
        return lsp.Hover(content, lines.range(start, end))

    def definition(self, params: lsp.DefinitionParams) -> list[lsp.Location]:
        views, found = self._at(params)
        if found is None:
            return self._imported(params, views)
        spans = {
            (place_of(x.span.source.name), x.span.start): x.span
            for view in views
            for x in view.names
            if x.declares and x.symbol == found.symbol
        }
        return [self._location(span) for span in spans.values()]

    def _imported(self, params: lsp.DefinitionParams, views: Sequence[View]) -> list[lsp.Location]:
        """Return the file that an `import` at a position names."""
        buffer = self._buffer(params.text_document)
        if buffer is None or buffer.path is None:
            return []
        offset = self._lines(buffer.text).offset(params.position)
        file = next((x for view in views if (x := view.file(place_of(buffer.uri)))), None)
        for item in file.items if file else ():
            if isinstance(item, s.Import) and item.span.start <= offset <= item.span.end:
                path = buffer.path.parent / item.path.text
                if path.is_file():
                    nowhere = lsp.Position(0, 0)
                    uri = self.workspace.uri(os.path.normpath(path))
                    return [lsp.Location(uri, lsp.Range(nowhere, nowhere))]
        return []

    def references(self, params: lsp.ReferenceParams) -> list[lsp.Location]:
        _, found = self._at(params)
        if found is None:
            return []
        named = rename.find(self.workspace, place_of(params.text_document.uri), found.symbol)
        declared = set() if params.context.include_declaration else self._declarations(named)
        return [
            self._location(span)
            for place, spans in named.spans.items()
            for span in spans
            if (place, span.start) not in declared
        ]

    def _declarations(self, named: rename.Renaming) -> set[tuple[str, int]]:
        return {
            (place_of(x.span.source.name), x.span.start)
            for root in named.roots
            for x in self.workspace.view(root).names
            if x.declares and x.symbol == named.symbol
        }

    def highlight(self, params: lsp.DocumentHighlightParams) -> list[lsp.DocumentHighlight]:
        views, found = self._at(params)
        if found is None:
            return []
        here = {
            x.span.start: x
            for view in views
            for x in view.names
            if x.symbol == found.symbol and x.span.source == found.span.source
        }
        kinds = {True: lsp.DocumentHighlightKind.Write, False: lsp.DocumentHighlightKind.Read}
        return [
            lsp.DocumentHighlight(range_of(x.span, self.connection.encoding), kinds[x.declares])
            for _, x in sorted(here.items())
        ]

    def document_symbols(self, params: lsp.DocumentSymbolParams) -> list[lsp.DocumentSymbol]:
        buffer = self._buffer(params.text_document)
        return outline.symbols(parse_text(buffer.source)[0], self.connection.encoding) if buffer else []

    def folding(self, params: lsp.FoldingRangeParams) -> list[lsp.FoldingRange]:
        buffer = self._buffer(params.text_document)
        return outline.folds(buffer.text) if buffer else []

    def semantic_tokens(self, params: lsp.SemanticTokensParams) -> lsp.SemanticTokens:
        buffer = self._buffer(params.text_document)
        if buffer is None:
            return lsp.SemanticTokens([])
        views = self.workspace.views(buffer.uri)
        file = next((x for view in views if (x := view.file(place_of(buffer.uri)))), None)
        here = [x for view in views for x in view.names if file and x.span.source == file.source]
        return lsp.SemanticTokens(semantic_tokens(here, self._lines(buffer.text)))

    # --- writing --------------------------------------------------------------------------------------------

    def complete(self, params: lsp.CompletionParams) -> lsp.CompletionList | None:
        buffer = self._buffer(params.text_document)
        if buffer is None:
            return None
        lines = self._lines(buffer.text)
        offset = lines.offset(params.position)
        written = completion.import_prefix(buffer.text, offset)
        if written is not None:
            return _listed(self._importable(buffer, offset - len(written), lines))
        views = self.workspace.views(buffer.uri)
        declared = self._declared(views)
        place = completion.place_at(buffer.text, offset)
        if place is None:
            return None
        where = lines.range(place.start, offset)
        found = completion.proposals(buffer.text, offset, declared)
        return _listed([_item(x, where, number, declared) for number, x in enumerate(found)])

    def _importable(self, buffer: Buffer, start: int, lines: Lines) -> list[lsp.CompletionItem]:
        """Return the policy files that a text can import, as they are written there."""
        if buffer.path is None:
            return []
        where = lines.range(start, completion.import_end(buffer.text, start))
        return [
            lsp.CompletionItem(
                label=path, kind=lsp.CompletionItemKind.File, text_edit=lsp.TextEdit(where, path)
            )
            for path in policies_beside(buffer.path)
        ]

    def prepare_rename(self, params: lsp.PrepareRenameParams) -> lsp.Range:
        _, found = self._at(params)
        if found is None:
            raise request_failed("there is no name here that the policy declares")
        if (fault := rename.refusal(found.symbol)) is not None:
            raise request_failed(fault)
        return range_of(found.span, self.connection.encoding)

    def rename(self, params: lsp.RenameParams) -> lsp.WorkspaceEdit:
        _, found = self._at(params)
        if found is None:
            raise request_failed("there is no name here that the policy declares")
        place = place_of(params.text_document.uri)
        try:
            renaming = rename.rename(self.workspace, place, found.symbol, params.new_name)
        except rename.RenameRefusedError as error:
            raise request_failed(str(error)) from None
        changes = {
            self.workspace.uri(spans[0].source.name): [
                lsp.TextEdit(range_of(span, self.connection.encoding), params.new_name) for span in spans
            ]
            for spans in renaming.spans.values()
        }
        return lsp.WorkspaceEdit(changes=changes)

    def format(self, params: lsp.DocumentFormattingParams) -> list[lsp.TextEdit]:
        buffer = self._buffer(params.text_document)
        return outline.layout(buffer.text, self.connection.encoding) if buffer else []

    def code_actions(self, params: lsp.CodeActionParams) -> list[lsp.CodeAction]:
        buffer = self._buffer(params.text_document)
        only = params.context.only
        if buffer is None or (only and lsp.CodeActionKind.QuickFix not in only):
            return []
        lines = self._lines(buffer.text)
        first, last = lines.offset(params.range.start), lines.offset(params.range.end)
        actions: dict[tuple[str, tuple[Edit, ...]], lsp.CodeAction] = {}
        for view in self.workspace.views(buffer.uri):
            for finding in _between(view, place_of(buffer.uri), first, last):
                for fix in fixes.fixes(self.workspace, view, finding):
                    actions.setdefault((fix.title, fix.edits), self._action(finding.diagnostic, fix))
        return list(actions.values())

    def _action(self, finding: Diagnostic, fix: fixes.Fix) -> lsp.CodeAction:
        changes: dict[str, list[lsp.TextEdit]] = {}
        for edit in fix.edits:
            where = self._location(edit.span)
            changes.setdefault(where.uri, []).append(lsp.TextEdit(where.range, edit.text))
        related = self.connection.can("publish_diagnostics", "related_information")
        shown = to_lsp(finding, self.workspace, self.connection.encoding, related=related)
        return lsp.CodeAction(
            title=fix.title,
            kind=lsp.CodeActionKind.QuickFix,
            diagnostics=[shown],
            is_preferred=True,
            edit=lsp.WorkspaceEdit(changes=changes),
        )


def _between(view: View, place: str, first: int, last: int) -> list[Finding]:
    """Return the findings of a file that touch a range of it."""
    return [
        finding
        for finding in view.found
        if (span := finding.diagnostic.span) is not None
        and place_of(span.source.name) == place
        and span.start <= last
        and first <= max(span.end, span.start + 1)
    ]


def _listed(items: list[lsp.CompletionItem]) -> lsp.CompletionList:
    return lsp.CompletionList(is_incomplete=False, items=items)


def _item(
    proposal: completion.Proposal, where: lsp.Range, number: int, declared: Declared
) -> lsp.CompletionItem:
    """Return a proposal for an editor, which lists proposals in the order of `number`."""
    symbol = proposal.symbol
    kind = _COMPLETIONS[symbol.kind] if symbol else lsp.CompletionItemKind.Keyword
    detail = brief(symbol, declared) if symbol else CLOCKS.get(proposal.label)
    return lsp.CompletionItem(
        label=proposal.label,
        kind=lsp.CompletionItemKind.Variable if proposal.clock else kind,
        detail=detail,
        sort_text=f"{number:04d}",
        filter_text=proposal.text,
        text_edit=lsp.TextEdit(where, proposal.text),
    )
