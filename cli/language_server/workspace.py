"""The texts that an editor has open and the policies that they belong to.

A text that is open counts as the editor shows it, saved or not; every other one is read from disk. A file
without a header is part of the policies that import it, which are looked for in the editor's folders.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import cached_property, lru_cache
from pathlib import Path
from threading import RLock

from pygls.uris import from_fs_path, to_fs_path

from gradwarden.policy.checking.check import check
from gradwarden.policy.context import EPOCH_DAY
from gradwarden.policy.errors import Diagnostic
from gradwarden.policy.frozen import frozen
from gradwarden.policy.linting.lint import Given, lint
from gradwarden.policy.linting.subject import Finding
from gradwarden.policy.load import SUFFIX, Reading, read_files, read_text
from gradwarden.policy.source import Source
from gradwarden.policy.syntax import tree as s
from gradwarden.policy.syntax.names import Occurrence, occurrences
from gradwarden.policy.syntax.parse import parse

MAX_ENTRIES = 20_000
"""How many directory entries are looked at in search of policies."""

MAX_POLICIES = 2_000
MAX_VIEWS = 16
"""To how many policies a shared file is taken to belong."""

MAX_PROPOSED = 100

RESCAN_SECONDS = 5.0

_HEADER = re.compile(r"^[ \t]*policy[ \t]+\w", re.MULTILINE)
_IMPORT = re.compile(r'^[ \t]*import[ \t]*"([^"\n]+)"', re.MULTILINE)

_SKIPPED = frozenset({"__pycache__", "node_modules", "build", "dist", "venv"})


@frozen
class Buffer:
    """A text that is open. `path` is None for one that has no file yet."""

    uri: str
    text: str
    version: int | None
    path: Path | None

    @property
    def source(self) -> Source:
        return Source(self.uri if self.path is None else str(self.path), self.text)


@dataclass(frozen=True)
class View:
    """One policy as its texts are now. root: the place of its main file.

    What is found in it is looked for when it is asked for, so that a name can be looked up without.
    """

    root: str
    reading: Reading

    @property
    def files(self) -> tuple[s.File, ...]:
        return self.reading.files

    @cached_property
    def found(self) -> tuple[Finding, ...]:
        return tuple(judge(self.reading))

    @cached_property
    def names(self) -> tuple[Occurrence, ...]:
        return occurrences(self.files)

    def file(self, place: str) -> s.File | None:
        """Return the file at a place, as `place_of` gives it."""
        return next((file for file in self.files if place_of(file.source.name) == place), None)


def judge(reading: Reading) -> list[Finding]:
    """Return all findings of a policy: its errors, or where there are none what `check` warns of."""
    checked, found = check(reading.files, reading.faults, reading.complete)
    if checked is None:
        return [Finding(diagnostic) for diagnostic in found]
    return lint(checked, Given(today=(date.today() - EPOCH_DAY).days))


@lru_cache(maxsize=4096)
def place_of(name: str) -> str:
    """Return what identifies a file or a text that has none: its real path or its URI."""
    path = _path(name)
    return name if path is None else os.path.realpath(path)


@lru_cache(maxsize=4096)
def _path(name: str) -> Path | None:
    """Return the path that a URI or a path names; None for a URI that is not of a file."""
    if re.match(r"[a-zA-Z][\w+.-]+:", name):
        path = to_fs_path(name) if name.lower().startswith("file:") else None
        return None if path is None else Path(path)
    return Path(name)


@lru_cache(maxsize=512)
def parse_text(source: Source) -> tuple[s.File, list[Diagnostic]]:
    """Return what a text parses to; that of recent texts is remembered, and must not be changed."""
    return parse(source)


class Workspace:
    """Open texts, the folders of the editor, and the policies that were looked at."""

    def __init__(self, folders: Iterable[Path] = ()) -> None:
        self.folders = list(folders)
        self.buffers: dict[str, Buffer] = {}
        self._lock = RLock()
        self._views: dict[str, View] = {}
        self._parsed: dict[str, View] = {}
        self._disk: dict[str, tuple[tuple[int, int], str | Diagnostic]] = {}
        self._scanned: tuple[float, list[str]] = (float("-inf"), [])

    # --- texts ----------------------------------------------------------------------------------------------

    def open(self, uri: str, text: str, version: int | None) -> None:
        """Take in a text as it is shown now."""
        with self._lock:
            self.buffers[place_of(uri)] = Buffer(uri, text.removeprefix("\ufeff"), version, _path(uri))

    def close(self, uri: str) -> None:
        with self._lock:
            self.buffers.pop(place_of(uri), None)

    def forget_disk(self) -> None:
        """Look for policies anew when they are next asked for."""
        with self._lock:
            self._scanned = (float("-inf"), [])

    def buffer(self, uri: str) -> Buffer | None:
        return self.buffers.get(place_of(uri))

    def uri(self, name: str) -> str:
        """Return the URI of a file, as the editor spells it where it is open."""
        buffer = self.buffers.get(place_of(name))
        return buffer.uri if buffer else (from_fs_path(name) or name if _path(name) else name)

    def read(self, path: Path) -> str | Diagnostic:
        """Return the text of a file as the editor shows it, or as it is on disk."""
        place = os.path.realpath(path)
        if place in self.buffers:
            return self.buffers[place].text
        try:
            state = os.stat(place)
        except OSError:
            return read_text(path)
        stamp = (state.st_mtime_ns, state.st_size)
        if self._disk.get(place, (None,))[0] != stamp:
            self._disk[place] = (stamp, read_text(path))
        return self._disk[place][1]

    def text(self, name: str) -> str | None:
        """Return the text of a file by its name in a finding; None where it cannot be read."""
        path = _path(name)
        text = self.read(path) if path else None
        return text if isinstance(text, str) else None

    # --- policies -------------------------------------------------------------------------------------------

    def view(self, place: str) -> View:
        """Return a policy, by the place of its main file."""
        with self._lock:
            buffer = self.buffers.get(place)
            if buffer is None:
                text = self.read(Path(place))
                source = Source(place, text if isinstance(text, str) else "")
            else:
                source = buffer.source
            path = _path(source.name)
            reading = read_files(source, path.parent if path else None, self.read, parse_text)
            known = self._views.get(place)
            if known is None or not _same(known.reading, reading):
                known = View(place, reading)
                self._views[place] = known
                if not reading.faults:
                    self._parsed[place] = known
            return known

    def last_parsed(self, place: str) -> View | None:
        """Return a policy as it was when it last parsed without a fault."""
        return self._parsed.get(place)

    def views(self, uri: str) -> list[View]:
        """Return the policies that an open text belongs to."""
        return [self.view(root) for root in self.roots(place_of(uri))]

    def roots(self, place: str) -> list[str]:
        """Return the main files of the policies that a file belongs to: itself, where nothing imports it."""
        with self._lock:
            if place not in self.buffers and not os.path.exists(place):
                return []
            if self._has_header(place):
                return [place]
            return sorted(self._importers(place))[:MAX_VIEWS] or [place]

    def policies_with(self, place: str) -> list[str]:
        """Return the main files of all policies that a file is part of, whether it has a header or not."""
        with self._lock:
            headed = [place] if self._has_header(place) else []
            return [*headed, *sorted(self._importers(place) - set(headed))] or [place]

    def _has_header(self, place: str) -> bool:
        text = self.read(Path(place))
        return isinstance(text, str) and _HEADER.search(text) is not None

    def _importers(self, place: str) -> set[str]:
        """Return the files with a header that import a file, directly or not."""
        parents: dict[str, set[str]] = {}
        for file in self._known(place):
            for imported in self._imports(file):
                parents.setdefault(imported, set()).add(file)
        seen: set[str] = set()
        pending = [place]
        while pending:
            for parent in parents.get(pending.pop(), ()):
                if parent not in seen:
                    seen.add(parent)
                    pending.append(parent)
        return {file for file in seen if self._has_header(file)}

    def _imports(self, place: str) -> Iterator[str]:
        text = self.read(Path(place))
        if isinstance(text, str):
            for match in _IMPORT.finditer(text):
                yield os.path.realpath(os.path.join(os.path.dirname(place), match[1]))

    def _known(self, place: str) -> list[str]:
        """Return the policy files in the editor's folders, beside a file, and open."""
        when, found = self._scanned
        if time.monotonic() - when > RESCAN_SECONDS:
            folders = [os.path.realpath(folder) for folder in self.folders]
            found = list(_policy_files(folders))
            self._scanned = (time.monotonic(), found)
        beside = [] if place in found else _policy_files([os.path.dirname(os.path.dirname(place))], depth=2)
        return list(dict.fromkeys([*found, *beside, *self.buffers]))


def policies_beside(path: Path) -> list[str]:
    """Return the policy files that a file can import, as they are written in it, the nearest first."""
    here = os.path.realpath(path)
    folder = os.path.dirname(here)
    found = set(_policy_files([folder, os.path.dirname(folder)], depth=3)) - {here}
    written = (os.path.relpath(file, folder).replace(os.sep, "/") for file in found)
    return sorted(written, key=lambda x: (x.count("/"), x))[:MAX_PROPOSED]


def _same(old: Reading, new: Reading) -> bool:
    """Whether two readings hold the same parsed files; those are remembered, so that identity tells."""
    return (
        len(old.files) == len(new.files)
        and all(a is b for a, b in zip(old.files, new.files, strict=True))
        and old.faults == new.faults
    )


def _policy_files(folders: Iterable[str], depth: int = 32) -> Iterator[str]:
    """Yield the real paths of the policy files under folders, within limits."""
    entries = count = 0
    for folder in folders:
        base = folder.rstrip(os.sep).count(os.sep)
        for directory, inside, names in os.walk(folder):
            entries += len(inside) + len(names)
            if entries > MAX_ENTRIES or count >= MAX_POLICIES:
                return
            if directory.count(os.sep) - base >= depth - 1:
                inside.clear()
            inside[:] = sorted(x for x in inside if not x.startswith(".") and x not in _SKIPPED)
            for name in sorted(names):
                if name.endswith(SUFFIX):
                    count += 1
                    yield os.path.realpath(os.path.join(directory, name))
