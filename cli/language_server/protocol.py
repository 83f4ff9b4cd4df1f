"""The language server library (pygls), in version 1.3 or 2: what differs between them is settled here."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import IO, Any, TypeVar

from gradwarden.cli.failures import InputError

Handler = TypeVar("Handler", bound=Callable[..., Any])

UTF16 = "utf-16"

METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
REQUEST_FAILED = -32803
"""The protocol's code for a valid request that cannot be fulfilled; editors show its message."""


def require_library() -> None:
    """Raise InputError where pygls is not installed."""
    try:
        import_module("lsprotocol.types")
        import_module("pygls")
    except ImportError:
        raise InputError(
            "`gradwarden lsp` needs pygls, which is not installed", help="pip install 'gradwarden[lsp]'"
        ) from None


class Connection:
    """A language server that speaks over two byte streams."""

    def __init__(self, name: str, version: str) -> None:
        from lsprotocol.types import TextDocumentSyncKind

        kind = TextDocumentSyncKind.Full
        self._server = _server_class()(name, version, text_document_sync_kind=kind)
        self._protocol = getattr(self._server, "protocol", None) or self._server.lsp

    def feature(self, method: str, options: Any = None) -> Callable[[Handler], Handler]:
        """Register a handler of a request or a notification; it gets the parameters alone."""

        def register(handler: Handler) -> Handler:
            def answer(params: Any) -> Any:  # the library writes attributes to it, which methods do not take
                return handler(params)

            self._server.feature(method, options)(answer)
            return handler

        return register

    def notify(self, method: str, params: Any) -> None:
        """Send a notification to the editor."""
        self._protocol.notify(method, params)

    @property
    def encoding(self) -> str:
        """How columns count, as agreed with the editor."""
        return str(getattr(self._server.server_capabilities.position_encoding, "value", UTF16))

    def can(self, *path: str) -> bool:
        """Whether the editor says that it can do something with texts, by the names of its capabilities."""
        found = self._server.client_capabilities.text_document
        for name in path:
            found = getattr(found, name, None)
        return bool(found)

    def serve(self, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        """Serve until the editor says `exit` or goes away."""
        self._server.start_io(stdin, stdout)


def request_failed(message: str) -> Exception:
    """Return the exception that makes a request fail with a message for the user."""
    from pygls.exceptions import JsonRpcException

    failed: Exception = JsonRpcException(message, code=REQUEST_FAILED)  # type: ignore[no-untyped-call]
    return failed


@cache
def _converter() -> Any:
    from lsprotocol.converters import get_converter

    return get_converter()


def why_malformed(method: str, message: dict[str, Any]) -> tuple[int, str] | None:
    """Return the error of a message whose method is unknown, or whose parameters do not fit it, if so."""
    from lsprotocol.types import METHOD_TO_TYPES

    known = METHOD_TO_TYPES.get(method)
    if known is None:
        return METHOD_NOT_FOUND, f"there is no method `{method}`"
    try:
        _converter().structure(message, known[0])
    except Exception:  # whatever the converter trips over
        return INVALID_PARAMS, f"the parameters of `{method}` do not have its shape"
    return None


def _server_class() -> Any:
    try:
        module = import_module("pygls.lsp.server")  # version 2
    except ImportError:
        module = import_module("pygls.server")  # version 1
    return module.LanguageServer
