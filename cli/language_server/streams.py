"""The byte streams between editor and server.

What an editor sends is read message by message and judged before the library sees it: a message that is not
one is answered with its error, and the next is read. So no message can end the server, or make it deaf.

A message is a header, `Content-Length: N` among its lines, an empty line, and N bytes of JSON (LSP 3.17, Base
Protocol).
"""

from __future__ import annotations

import json
import re
from collections import deque
from threading import Lock
from typing import IO, Any

from gradwarden.cli.language_server.protocol import why_malformed

MAX_BYTES = 1 << 26
"""The longest message that is read."""

MAX_LINE = 1 << 13

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
NOT_INITIALIZED = -32002

_LENGTH = re.compile(rb"content-length[ \t]*:[ \t]*(\d{1,12})[ \t]*\r?\n", re.IGNORECASE)

_ALWAYS = frozenset({"exit"})


class Output:
    """Standard output, on which one message is written at a time."""

    closed = False

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._lock = Lock()

    def write(self, data: bytes) -> int:
        with self._lock:
            self._stream.write(data)
            self._stream.flush()
        return len(data)

    def flush(self) -> None:
        """Do nothing: every message is flushed as it is written."""

    def close(self) -> None:
        self.closed = True


class Input:
    """Standard input, from which whole, well-formed messages come.

    shut_down: whether the editor has asked for it, so that leaving is no failure.
    """

    def __init__(self, stream: IO[bytes], output: Output) -> None:
        self.closed = False
        self.shut_down = False
        self._initialized = False
        self._open: set[str] = set()
        self._stream = stream
        self._output = output
        self._lines: deque[bytes] = deque()
        self._body = b""

    def readline(self) -> bytes:
        """Return the next line of a header; empty at the end of the stream."""
        if not self._lines:
            body = self._next()
            if body is None:
                return b""
            self._body = body
            self._lines += (b"Content-Length: %d\r\n" % len(body), b"\r\n")
        return self._lines.popleft()

    def read(self, _size: int = -1) -> bytes:
        """Return the body of the message whose header was read."""
        body, self._body = self._body, b""
        return body

    def close(self) -> None:
        self.closed = True

    def _next(self) -> bytes | None:
        """Return the body of the next well-formed message, None at the end of the stream."""
        while (length := self._header()) is not None:
            if length > MAX_BYTES:
                self._skip(length)
                self._refuse(None, INVALID_REQUEST, f"a message has at most {MAX_BYTES} bytes")
                continue
            body = self._stream.read(length)
            if len(body) < length:
                return None
            if self._is_fit(body):
                return body
        return None

    def _header(self) -> int | None:
        """Return the length that the next header gives; None at the end of the stream."""
        length: int | None = None
        while line := self._stream.readline(MAX_LINE):
            if match := _LENGTH.fullmatch(line):
                length = int(match[1])
            elif not line.strip() and length is not None:
                return length
        return None

    def _skip(self, length: int) -> None:
        while length > 0 and (part := self._stream.read(min(length, 1 << 16))):
            length -= len(part)

    def _is_fit(self, body: bytes) -> bool:
        """Whether a body can be given to the library. One that cannot is answered here."""
        try:
            message = json.loads(body)
        except (ValueError, RecursionError):
            self._refuse(None, PARSE_ERROR, "the message is not JSON")
            return False
        if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
            self._refuse(None, INVALID_REQUEST, "the message is not JSON-RPC 2.0")
            return False
        method, identity = message.get("method"), message.get("id")
        if not isinstance(method, str):
            # The server asks the editor nothing, so that no answer is awaited.
            return False
        if "id" in message and (not isinstance(identity, int | str) or isinstance(identity, bool)):
            self._refuse(None, INVALID_REQUEST, "the `id` of a request is a number or a string")
            return False
        fault = self._out_of_turn(method) or why_malformed(method, message)
        if fault is not None and method not in _ALWAYS:
            if "id" in message:
                self._refuse(identity, *fault)
            return False
        if not self._is_of_open_text(method, message):
            return False
        self._initialized = self._initialized or method == "initialize"
        self.shut_down = self.shut_down or method == "shutdown"
        return True

    def _out_of_turn(self, method: str) -> tuple[int, str] | None:
        """Say why a message cannot come now, if so."""
        if self.shut_down:
            return INVALID_REQUEST, "the server is shutting down"
        if not self._initialized and method != "initialize":
            return NOT_INITIALIZED, "`initialize` comes first"
        if self._initialized and method == "initialize":
            return INVALID_REQUEST, "the server is initialized"
        return None

    def _is_of_open_text(self, method: str, message: dict[str, Any]) -> bool:
        """Whether a change or a close is of a text that was opened, which the library takes for granted."""
        if method not in ("textDocument/didOpen", "textDocument/didChange", "textDocument/didClose"):
            return True
        uri = message["params"]["textDocument"]["uri"]
        known = uri in self._open
        if method == "textDocument/didOpen":
            self._open.add(uri)
        elif method == "textDocument/didClose":
            self._open.discard(uri)
        return known or method == "textDocument/didOpen"

    def _refuse(self, identity: Any, code: int, message: str) -> None:
        error = {"jsonrpc": "2.0", "id": identity, "error": {"code": code, "message": message}}
        body = json.dumps(error).encode()
        self._output.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
