"""Texts by their content: which id a run knows a text by, so that an auditor can ask for the text itself.

The digest of a text is the SHA-256 of its normal form in UTF-8: Unicode NFC, every run of white space one
space, none at the ends. So a copy that was wrapped or indented anew is the same text; a near copy is not.

A run that names its examples by `content_id` needs nothing more. Any other keeps a content index beside its
data, JSON Lines of `{"id": …, "sha256": …}`. An index tells whoever guesses a text that it was in the data:
keep it like the data.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from gradwarden.runtime.errors import MemorizationError

MAX_LINE = 1 << 20
"""Characters of a line of an index."""

_SCHEME = "sha256:"


def content_digest(text: str) -> str:
    """Return the digest of a text, in hex."""
    normal = " ".join(unicodedata.normalize("NFC", text).split())
    return sha256(normal.encode("utf-8", "surrogatepass")).hexdigest()


def content_id(text: str) -> str:
    """Return an id that says which text it is: `sha256:` and the digest."""
    return _SCHEME + content_digest(text)


class ContentIndex:
    """The ids of texts, by their content; several where a text came under several ids."""

    def __init__(self) -> None:
        self._ids: dict[str, dict[str, None]] = {}

    @classmethod
    def of(cls, texts: Iterable[tuple[str, str]]) -> ContentIndex:
        """Return the index of (id, text) pairs."""
        index = cls()
        for name, text in texts:
            index.add(name, content_digest(text))
        return index

    def __len__(self) -> int:
        """Return of how many different texts the index tells."""
        return len(self._ids)

    def add(self, name: str, digest: str) -> None:
        self._ids.setdefault(digest, {})[name] = None

    def ids(self, text: str) -> list[str]:
        """Return the ids under which a text came, none where it did not."""
        return list(self._ids.get(content_digest(text), ()))

    def save(self, path: Path) -> None:
        """Write the index, ordered by digest."""
        lines = [
            json.dumps({"id": name, "sha256": digest}, sort_keys=True)
            for digest in sorted(self._ids)
            for name in self._ids[digest]
        ]
        path.write_text("".join(f"{line}\n" for line in lines), "ascii")

    @classmethod
    def load(cls, path: Path) -> ContentIndex:
        """Read an index. Raises OSError, and MemorizationError where a line is none of an index."""
        index = cls()
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), ""), 1):
                index.add(*_entry(line, f"{path}:{number}"))
        return index


def _entry(line: str, place: str) -> tuple[str, str]:
    try:
        match json.loads(line) if len(line) <= MAX_LINE else None:
            case {"id": str(name), "sha256": str(digest), **rest} if not rest:
                if re.fullmatch("[0-9a-f]{64}", digest):
                    return name, digest
    except (ValueError, RecursionError):
        pass
    raise MemorizationError(
        f"`{place}` is no line of a content index",
        help='a line is {"id": "…", "sha256": "…"}, the digest in lower-case hex',
    )
