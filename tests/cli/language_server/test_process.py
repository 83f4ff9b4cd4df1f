"""The server as a process: how it ends, and that nothing sent to it makes it end or fall silent."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from gradwarden.cli.language_server import server as module
from tests.cli.language_server.conftest import COMMAND

INITIALIZE = {"processId": None, "rootUri": None, "capabilities": {}}


class Server:
    """A server and the bytes that go to and from it."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(COMMAND, stdin=pipe, stdout=pipe, stderr=pipe)
        assert self.process.stdin
        assert self.process.stdout
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def send(self, body: bytes) -> None:
        self.stdin.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        self.stdin.flush()

    def say(self, method: str, params: Any = None, identity: Any = None) -> None:
        message = {"jsonrpc": "2.0", "method": method} | ({} if params is None else {"params": params})
        self.send(json.dumps(message if identity is None else message | {"id": identity}).encode())

    def hear(self) -> Any:
        """Return the next message."""
        length = 0
        while (line := self.stdout.readline()).strip():
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        return json.loads(self.stdout.read(length))

    def ask(self, identity: Any, method: str, params: Any = None) -> Any:
        self.say(method, params, identity)
        answer = self.hear()
        assert answer["id"] == identity
        return answer

    def end(self) -> tuple[int, bytes]:
        _, complaints = self.process.communicate(timeout=60)
        return self.process.returncode, complaints


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.process.kill()
    server.process.communicate()


def test_it_leaves_with_status_0_after_shutdown_and_answers_nothing_in_between(server: Server) -> None:
    assert server.ask(1, "textDocument/hover", {})["error"]["code"] == -32002
    assert "result" in server.ask(2, "initialize", INITIALIZE)
    assert server.ask(3, "initialize", INITIALIZE)["error"]["code"] == -32600
    server.say("initialized", {})
    assert server.ask("four", "shutdown")["result"] is None
    assert server.ask(5, "textDocument/foldingRange", {})["error"]["code"] == -32600
    server.say("exit")
    assert server.end() == (0, b"")


def test_it_leaves_with_status_1_when_the_editor_goes_without_a_word(server: Server) -> None:
    server.ask(1, "initialize", INITIALIZE)
    server.stdin.close()
    server.process.stdin = None
    assert server.end() == (1, b"")


def test_malformed_messages_are_answered_and_the_next_is_heard(server: Server) -> None:
    server.ask(1, "initialize", INITIALIZE)
    for body, code in (
        (b"{", -32700),
        (b"\xff\xfe", -32700),
        (b"[" * 100_000, -32700),
        (b"[1]", -32600),
        (b'"text"', -32600),
        (b"{}", -32600),
        (b'{"jsonrpc": "1.0", "method": "x"}', -32600),
        (b'{"jsonrpc": "2.0", "method": "shutdown", "id": {}}', -32600),
    ):
        server.send(body)
        answer = server.hear()
        assert (answer["id"], answer["error"]["code"]) == (None, code)
    for body in (
        b'{"jsonrpc": "2.0", "id": 9, "result": null}',
        b'{"jsonrpc": "2.0", "method": "no/such"}',
        b'{"jsonrpc": "2.0", "method": "textDocument/didOpen", "params": {"textDocument": 3}}',
        b'{"jsonrpc": "2.0", "method": "textDocument/didChange", "params": {"textDocument": {"uri": "file:///a",'
        b' "version": 2}, "contentChanges": [{"text": "x"}]}}',
    ):
        server.send(body)  # none of them is a request, or of a text that is open
    server.stdin.write(b"nonsense\r\nContent-Type: x\r\n\r\n")
    assert server.ask(10, "textDocument/hover", {"textDocument": {}})["error"]["code"] == -32602
    assert server.ask(11, "no/such", {})["error"]["code"] == -32601
    place = {"textDocument": {"uri": "file:///not/open"}, "position": {"line": 9, "character": 9}}
    assert server.ask(12, "textDocument/hover", place)["result"] is None
    assert server.ask(13, "shutdown")["result"] is None
    server.say("exit")
    assert server.end() == (0, b"")


def test_it_loads_without_torch_and_z3() -> None:
    code = (
        "import sys; import gradwarden.cli.language_server.server; import gradwarden.cli.commands.lsp;"
        "print(sorted({'torch', 'z3', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_it_says_what_to_install_where_the_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradwarden.cli.app import cli

    monkeypatch.setitem(sys.modules, "pygls", None)
    result = CliRunner().invoke(cli, ["lsp"], prog_name="gradwarden")
    assert result.exit_code == 2
    assert "`gradwarden lsp` needs pygls" in result.stderr
    assert "pip install 'gradwarden[lsp]'" in result.stderr


class Connection:
    """Stands for the connection to an editor; keeps what it is told."""

    encoding = "utf-16"

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def feature(self, _method: str, _options: Any = None) -> Any:
        return lambda handler: handler

    def can(self, *_path: str) -> bool:
        return True

    def notify(self, method: str, params: Any) -> None:
        self.told.append((method, params))


def test_findings_are_told_only_of_the_last_change() -> None:
    connection = Connection()
    server = module.Server(connection)
    server.workspace.open("file:///a.policy", "policy a version 1\n", 7)
    server._changes = 2
    asyncio.run(server._look(1))
    assert connection.told == []
    asyncio.run(server._look(2))
    ((_, params),) = connection.told
    assert (params.uri, params.version) == ("file:///a.policy", 7)


def test_a_bug_while_looking_for_findings_is_told_and_does_not_end_the_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> Any:
        raise ZeroDivisionError("odd")

    connection = Connection()
    server = module.Server(connection)
    monkeypatch.setattr(server, "_views_of_open_texts", fail)
    asyncio.run(server._look(0))
    ((method, params),) = connection.told
    assert method == "window/logMessage"
    assert "ZeroDivisionError: odd" in params.message
