"""The real server in its own process, spoken to by a real client."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_lsp
from lsprotocol import types as lsp
from pygls.protocol import default_converter
from pytest_lsp import ClientServerConfig, LanguageClient, client_capabilities

from tests.cli.language_server.policies import cut

COMMAND = [sys.executable, "-m", "gradwarden.cli", "lsp"]
PATIENCE = 60.0


def recording_client() -> LanguageClient:
    """A client that keeps every notification of findings, in order."""
    client = LanguageClient(converter_factory=default_converter)
    client.published = []

    @client.feature(lsp.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS)
    def publish(_client: LanguageClient, params: lsp.PublishDiagnosticsParams) -> None:
        client.published.append(params)

    return client


@pytest_lsp.fixture(
    config=ClientServerConfig(server_command=COMMAND, client_factory=recording_client),
    scope="session",
    loop_scope="session",
)
async def client(lsp_client: LanguageClient, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[None]:
    folder = tmp_path_factory.mktemp("workspace")
    lsp_client.folder = folder
    params = lsp.InitializeParams(
        capabilities=client_capabilities("visual-studio-code"),
        workspace_folders=[lsp.WorkspaceFolder(uri=folder.as_uri(), name="policies")],
    )
    lsp_client.result = await lsp_client.initialize_session(params)
    yield
    await lsp_client.shutdown_session()


class Editor:
    """What a person does in an editor, on texts in a folder of their own."""

    def __init__(self, client: LanguageClient, folder: Path) -> None:
        self.client = client
        self.folder = folder
        self.texts: dict[str, str] = {}
        self.versions: dict[str, int] = {}

    def uri(self, stem: str) -> str:
        return (self.folder / f"{stem}.policy").as_uri()

    def open(self, stem: str, text: str) -> str:
        """Open a text that is not saved, and return its URI."""
        uri = self.uri(stem)
        self.texts[uri], self.versions[uri] = text, 1
        document = lsp.TextDocumentItem(uri=uri, language_id="gradwarden-policy", version=1, text=text)
        self.client.text_document_did_open(lsp.DidOpenTextDocumentParams(document))
        return uri

    def open_at(self, stem: str, marked: str) -> dict[str, Any]:
        """Open a text with a cursor in it; return the document and the position as parameters."""
        text, offset = cut(marked)
        uri = self.open(stem, text)
        return {"text_document": lsp.TextDocumentIdentifier(uri), "position": position(text, offset)}

    def change(self, uri: str, text: str) -> int:
        """Put another text in the place of one; return its version."""
        self.texts[uri] = text
        self.versions[uri] += 1
        identifier = lsp.VersionedTextDocumentIdentifier(uri=uri, version=self.versions[uri])
        event: Any = getattr(lsp, "TextDocumentContentChangeWholeDocument", None) or getattr(
            lsp, "TextDocumentContentChangeEvent_Type2", None
        )
        self.client.text_document_did_change(lsp.DidChangeTextDocumentParams(identifier, [event(text=text)]))
        return self.versions[uri]

    async def findings(self, uri: str, version: int | None = 1) -> list[lsp.Diagnostic]:
        """Wait for the findings of a version of a text."""

        async def told() -> list[lsp.Diagnostic]:
            while True:
                for params in reversed(self.client.published):
                    if params.uri == uri and params.version == version:
                        return list(params.diagnostics)
                await asyncio.sleep(0.01)

        return await asyncio.wait_for(told(), PATIENCE)

    def close(self) -> None:
        for uri in self.texts:
            self.client.text_document_did_close(
                lsp.DidCloseTextDocumentParams(lsp.TextDocumentIdentifier(uri))
            )


def position(text: str, offset: int) -> lsp.Position:
    """Return the position of an offset in UTF-16 columns."""
    before = text[:offset]
    return lsp.Position(before.count("\n"), len(before[before.rfind("\n") + 1 :].encode("utf-16-le")) // 2)


def applied(text: str, edits: list[Any]) -> str:
    """Return a text with the edits of an answer made to it."""
    lines = text.split("\n")

    def offset(place: lsp.Position) -> int:
        before = sum(len(line) + 1 for line in lines[: place.line])
        units = (
            lines[place.line].encode("utf-16-le")[: place.character * 2] if place.line < len(lines) else b""
        )
        return min(before + len(units.decode("utf-16-le")), len(text))

    for edit in sorted(edits, key=lambda x: offset(x.range.start), reverse=True):
        text = text[: offset(edit.range.start)] + edit.new_text + text[offset(edit.range.end) :]
    return text


@pytest.fixture
def editor(client: LanguageClient, request: pytest.FixtureRequest) -> Iterator[Editor]:
    folder = client.folder / request.node.name[:60].replace("[", "-").replace("]", "")
    folder.mkdir()
    editor = Editor(client, folder)
    yield editor
    editor.close()
