"""Which files are near copies of another, by their lines (`gradwarden.runtime.memorization.duplicates`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gradwarden.runtime.memorization.duplicates import clusters, lines


def near_duplicates(
    files: Iterable[tuple[str, bytes]], advance: Callable[[], None] = lambda: None
) -> dict[str, str]:
    """Return, for each file that nearly repeats an earlier one, the id of that earlier file.

    `files` are (id, content) in order of precedence; only files that repeat nothing count as originals.
    """
    found = clusters(((name, lines(content)) for name, content in files), advance=advance)
    return {name: first for name, first in found.items() if name != first}
