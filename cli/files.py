"""Writes result files so that a crash leaves the old content or the new, never half of one; shows changes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import click


def write_text(path: Path, text: str) -> None:
    """Replace a file's content by text in UTF-8, as `write_bytes` does. Raises OSError."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file's content, keeping its mode; a link is followed. Raises OSError."""
    import tempfile

    target = path.resolve()
    if target.is_dir():
        raise IsADirectoryError(21, "is a directory", str(path))
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, _mode(target))
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _mode(target: Path) -> int:
    """Return the mode of an existing file, or the one that the umask gives a new file."""
    try:
        return target.stat().st_mode & 0o777
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        return 0o666 & ~umask


def echo_diff(path: Path, old: str, new: str, done: str) -> None:
    """Write the difference of two texts of a file to standard output; `done` says what makes it."""
    import difflib

    lines = difflib.unified_diff(
        old.splitlines(keepends=True), new.splitlines(keepends=True), str(path), f"{path} ({done})"
    )
    for line in lines:
        click.echo(_coloured(line.rstrip("\n")))


def _coloured(line: str) -> str:
    colours = {"+": "green", "-": "red", "@": "cyan"}
    bold = line.startswith(("+++", "---"))
    return click.style(line, bold=True) if bold else click.style(line, fg=colours.get(line[:1]))
