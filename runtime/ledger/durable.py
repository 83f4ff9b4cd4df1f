"""Files that are replaced as a whole and durably: after a crash a name has the old content, or the new one.

A draft beside the file is written and synced, takes the file's name, and then the folder is synced.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias

AnyPath: TypeAlias = str | os.PathLike[str]


def replace_durably(target: AnyPath, content: bytes) -> None:
    """Replace a file. Raises OSError."""
    with drafted(f"{os.fspath(target)}.new", target) as file:
        file.write(content)


@contextmanager
def drafted(draft: AnyPath, target: AnyPath) -> Iterator[BinaryIO]:
    """Open a draft, which takes the place of a file once all of it was written. Raises OSError."""
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        with os.fdopen(handle, "wb", closefd=False) as file:
            yield file
        os.fsync(handle)
    finally:
        os.close(handle)
    _rename(draft, target)


def put_in_place(draft: Path, target: Path) -> None:
    """Let a draft that somebody else has written take the place of a file. Raises OSError."""
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    _rename(draft, target)


def _rename(draft: AnyPath, target: AnyPath) -> None:
    os.replace(draft, target)
    sync_directory(target)


def sync_directory(path: AnyPath) -> None:
    """Make the directory entry of a file durable. Raises OSError."""
    handle = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
