"""The language server: answers what an editor asks, and tells it what is found as its user types.

Requests are answered from the texts as they are shown. Findings are looked for once typing pauses, beside the
loop that answers, and are told only if nothing has changed meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from lsprotocol import types as lsp
from pygls.uris import to_fs_path

from gradwarden.cli.language_server.answers import Answers
from gradwarden.cli.language_server.findings import by_file, to_lsp
from gradwarden.cli.language_server.protocol import Connection
from gradwarden.cli.language_server.streams import Input, Output
from gradwarden.cli.language_server.tokens import LEGEND
from gradwarden.cli.language_server.workspace import View, Workspace
from gradwarden.policy.syntax.expected import expected_after

DEBOUNCE_SECONDS = 0.15
"""How long after the last change findings are looked for."""

WARM_UP_SECONDS = 2.0


def serve(stdin: IO[bytes], stdout: IO[bytes], version: str) -> bool:
    """Serve an editor over two streams until it leaves; returns whether it took its leave as it should."""
    output = Output(stdout)
    messages = Input(stdin, output)
    connection = Connection("gradwarden", version)
    Server(connection)
    connection.serve(messages, output)  # type: ignore[arg-type]  # what of streams the library uses
    return messages.shut_down


class Server:
    """The features of the server, registered on a connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.workspace = Workspace()
        self.answers = Answers(connection, self.workspace)
        self._changes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._told: set[str] = set()
        self._register()

    def _register(self) -> None:
        on = self.connection.feature
        on(lsp.INITIALIZE)(self.initialize)
        on(lsp.INITIALIZED)(self.initialized)
        on(lsp.TEXT_DOCUMENT_DID_OPEN)(self.did_open)
        on(lsp.TEXT_DOCUMENT_DID_CHANGE)(self.did_change)
        on(lsp.TEXT_DOCUMENT_DID_SAVE)(self.did_save)
        on(lsp.TEXT_DOCUMENT_DID_CLOSE)(self.did_close)
        on(lsp.WORKSPACE_DID_CHANGE_WATCHED_FILES)(self.did_save)
        on(lsp.WORKSPACE_DID_CHANGE_WORKSPACE_FOLDERS)(self.did_change_folders)
        answers = self.answers
        on(lsp.TEXT_DOCUMENT_HOVER)(answers.hover)
        triggers = lsp.CompletionOptions(trigger_characters=[" ", "[", ",", '"', "/"])
        on(lsp.TEXT_DOCUMENT_COMPLETION, triggers)(answers.complete)
        on(lsp.TEXT_DOCUMENT_DEFINITION)(answers.definition)
        on(lsp.TEXT_DOCUMENT_REFERENCES)(answers.references)
        on(lsp.TEXT_DOCUMENT_DOCUMENT_HIGHLIGHT)(answers.highlight)
        on(lsp.TEXT_DOCUMENT_PREPARE_RENAME)(answers.prepare_rename)
        on(lsp.TEXT_DOCUMENT_RENAME, lsp.RenameOptions(prepare_provider=True))(answers.rename)
        on(lsp.TEXT_DOCUMENT_DOCUMENT_SYMBOL)(answers.document_symbols)
        on(lsp.TEXT_DOCUMENT_FOLDING_RANGE)(answers.folding)
        on(lsp.TEXT_DOCUMENT_FORMATTING)(answers.format)
        kinds = lsp.CodeActionOptions(code_action_kinds=[lsp.CodeActionKind.QuickFix])
        on(lsp.TEXT_DOCUMENT_CODE_ACTION, kinds)(answers.code_actions)
        on(lsp.TEXT_DOCUMENT_SEMANTIC_TOKENS_FULL, LEGEND)(answers.semantic_tokens)

    # --- the session ----------------------------------------------------------------------------------------

    def initialize(self, params: lsp.InitializeParams) -> None:
        folders = [folder.uri for folder in params.workspace_folders or ()]
        if not folders and params.root_uri:
            folders = [params.root_uri]
        self.workspace.folders = [Path(path) for uri in folders if (path := to_fs_path(uri))]

    def initialized(self, _params: lsp.InitializedParams) -> None:
        """Make ready for completions, once the first findings are out: the parser is made on first use."""
        loop = asyncio.get_running_loop()
        loop.call_later(WARM_UP_SECONDS, loop.run_in_executor, None, expected_after, "")

    def did_change_folders(self, params: lsp.DidChangeWorkspaceFoldersParams) -> None:
        gone = {to_fs_path(folder.uri) for folder in params.event.removed}
        kept = [folder for folder in self.workspace.folders if str(folder) not in gone]
        new = [Path(path) for folder in params.event.added if (path := to_fs_path(folder.uri))]
        self.workspace.folders = [*kept, *new]
        self.workspace.forget_disk()
        self._changed()

    # --- texts ----------------------------------------------------------------------------------------------

    def did_open(self, params: lsp.DidOpenTextDocumentParams) -> None:
        document = params.text_document
        self.workspace.open(document.uri, document.text, document.version)
        self._changed()

    def did_change(self, params: lsp.DidChangeTextDocumentParams) -> None:
        document = params.text_document
        if self.workspace.buffer(document.uri) is None:
            return
        # The server asks for whole texts, so that the last change holds all of it.
        for change in params.content_changes[-1:]:
            self.workspace.open(document.uri, change.text, document.version)
        self._changed()

    def did_save(self, _params: object) -> None:
        self.workspace.forget_disk()
        self._changed()

    def did_close(self, params: lsp.DidCloseTextDocumentParams) -> None:
        self.workspace.close(params.text_document.uri)
        self._changed()

    def _changed(self) -> None:
        """Look for findings once nothing has changed for a moment."""
        self._changes += 1
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(DEBOUNCE_SECONDS, self._begin)

    def _begin(self) -> None:
        task = asyncio.get_running_loop().create_task(self._look(self._changes))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look(self, changes: int) -> None:
        """Check the policies of all open texts; the findings are told if nothing has changed since."""
        try:
            views = await asyncio.get_running_loop().run_in_executor(None, self._views_of_open_texts)
        except Exception as error:  # a bug of ours must not end the session, nor go unnoticed
            logging.exception("findings could not be looked for")
            told = f"internal error: {type(error).__name__}: {error}; please report it"
            params = lsp.LogMessageParams(lsp.MessageType.Error, told)
            self.connection.notify(lsp.WINDOW_LOG_MESSAGE, params)
            return
        if changes == self._changes:
            self._tell(views)

    def _views_of_open_texts(self) -> list[View]:
        roots = {root: None for place in list(self.workspace.buffers) for root in self.workspace.roots(place)}
        views = [self.workspace.view(root) for root in roots]
        for view in views:
            _ = view.found  # looked for here, not on the loop
        return views

    def _tell(self, views: Iterable[View]) -> None:
        """Publish the findings of policies, and that those told before are gone."""
        found = by_file(views)
        related = self.connection.can("publish_diagnostics", "related_information")
        told: set[str] = set()
        uris = {self.workspace.uri(place): findings for place, findings in found.items()}
        for uri, findings in {**dict.fromkeys(self._told, ()), **uris}.items():
            buffer = self.workspace.buffer(uri)
            if not findings and buffer is None and uri not in self._told:
                continue
            shown = [to_lsp(x, self.workspace, self.connection.encoding, related=related) for x in findings]
            version = buffer.version if buffer else None
            params = lsp.PublishDiagnosticsParams(uri=uri, diagnostics=shown, version=version)
            self.connection.notify(lsp.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS, params)
            if findings:
                told.add(uri)
        self._told = told
