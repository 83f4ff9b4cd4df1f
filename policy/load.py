"""Reads policies: a main text and the files it imports, each once, without circles.

Imports are relative to the importing file and name `*.policy` files. Reading is bounded: at most
`MAX_FILES` files of at most `MAX_FILE_BYTES` bytes each, nested at most `MAX_DEPTH` deep.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TypeAlias

from gradwarden.policy.checking.check import CheckedPolicy, check_types
from gradwarden.policy.errors import Diagnostic, PolicyError
from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import Program
from gradwarden.policy.source import Source, Span
from gradwarden.policy.syntax import tree as s
from gradwarden.policy.syntax.parse import MAX_TEXT, parse

MAX_FILE_BYTES = MAX_TEXT
MAX_FILES = 256
MAX_DEPTH = 32

SUFFIX = ".policy"

ReadText: TypeAlias = Callable[[Path], str | Diagnostic]
"""Returns the text of a file, or what stops it from being read."""

Parse: TypeAlias = Callable[[Source], tuple[s.File, list[Diagnostic]]]


@frozen
class Reading:
    """The files of a policy, the main one first, and what was wrong with reading and parsing them.

    complete: False where a part that was not read may have declared names that other parts use.
    """

    files: tuple[s.File, ...]
    faults: tuple[Diagnostic, ...]
    complete: bool


@dataclass(frozen=True)
class Policy:
    """A policy that parsed and type-checked.

    program: its compiled form before bands are bound to a model (`compile_policy` binds them). files: the
    paths read, the main one first. rules: where each rule is named. bands: where each band is. checked: what
    lints look at.
    """

    program: Program
    files: tuple[str, ...]
    rules: dict[str, Span]
    bands: dict[str, Span]
    checked: CheckedPolicy

    @cached_property
    def warnings(self) -> tuple[Diagnostic, ...]:
        """Findings that do not stop the policy, sorted by position. They are looked for when asked for."""
        from gradwarden.policy.linting.lint import lint

        return tuple(finding.diagnostic for finding in lint(self.checked))

    @property
    def name(self) -> str:
        return self.program.name

    @property
    def version(self) -> int:
        return self.program.version


def load_policy(path: str | os.PathLike[str], parse: Parse = parse) -> Policy:
    """Read, parse and check a policy file. Raises PolicyError with every diagnostic.

    Whoever loads several policies that import the same files gives a `parse` that remembers (`remembering`).
    """
    name = os.fspath(path)
    text = read_text(Path(name))
    if isinstance(text, Diagnostic):
        raise PolicyError([text])
    return _check(Source(name, text), Path(name).parent, parse)


def remembering() -> Parse:
    """Return a `parse` that parses a text under one name once; it remembers the last `MAX_FILES` texts."""

    @lru_cache(maxsize=MAX_FILES)
    def known(name: str, text: str) -> tuple[s.File, list[Diagnostic]]:
        return parse(Source(name, text))

    return lambda source: known(source.name, source.text)


def parse_policy(
    text: str, name: str = "<string>", directory: str | os.PathLike[str] | None = None
) -> Policy:
    """Parse and check a policy given as text. Raises PolicyError with every diagnostic.

    `name` stands for the text in diagnostics. `directory` is where its imports are looked up; without one,
    imports are refused.
    """
    return _check(Source(name, text.removeprefix("\ufeff")), None if directory is None else Path(directory))


def read_text(path: Path) -> str | Diagnostic:
    """Return the text of a policy file, or what stops it from being read."""
    where = Span(Source(str(path), ""), 0, 0)
    try:
        if path.exists() and not path.is_file():
            return Diagnostic("GW112", f"`{path}` is not a file", where)
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a valid path"
        return Diagnostic("GW112", f"`{path}` cannot be read: {reason.lower()}", where)
    if len(data) > MAX_FILE_BYTES:
        return Diagnostic("GW105", f"`{path}` is larger than {MAX_FILE_BYTES} bytes", where, "use `import`")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"line {line} of `{path}` is not valid UTF-8"
        return Diagnostic("GW110", message, where, "save the file as UTF-8")


def _check(source: Source, directory: Path | None, parse: Parse = parse) -> Policy:
    reading = read_files(source, directory, parse=parse)
    checked, found = check_types(reading.files, reading.faults, reading.complete)
    if checked is None:
        raise PolicyError(found)
    names = tuple(file.source.name for file in reading.files)
    return Policy(checked.program, names, checked.rules, checked.bands, checked)


def read_files(
    source: Source, directory: Path | None, read: ReadText = read_text, parse: Parse = parse
) -> Reading:
    """Return a text with all that it imports, parsed. Never raises.

    `directory` is where imports are looked up. An editor gives its own `read`, which knows texts that are not
    saved, and a `parse` that remembers.
    """
    reader = _Reader(read, parse)
    reader.read(source, directory, [])
    return Reading(tuple(reader.files), tuple(reader.faults), reader.complete)


class _Reader:
    """Reads a text and what it imports, depth first."""

    def __init__(self, read_text: ReadText, parse: Parse) -> None:
        self._read_text = read_text
        self._parse = parse
        self.files: list[s.File] = []
        self.faults: list[Diagnostic] = []
        self.complete = True
        self._read: set[str] = set()

    def read(self, source: Source, directory: Path | None, chain: Sequence[str]) -> None:
        """Parse a text, then its imports. `chain` holds the real paths of the files that led here."""
        file, faults = self._parse(source)
        self.files.append(file)
        self.faults += faults
        self.complete = self.complete and file.complete
        here = os.path.realpath(source.name) if directory is not None else source.name
        self._read.add(here)
        for item in file.items:
            if isinstance(item, s.Import):
                self._import(item, directory, [*chain, here])

    def _import(self, item: s.Import, directory: Path | None, chain: Sequence[str]) -> None:
        span, text = item.path.span, item.path.text
        if directory is None:
            self._fault("GW212", "a text that is not in a file cannot import", span)
            return
        if os.path.isabs(text) or "\\" in text or not text.endswith(SUFFIX):
            help = f"imports are relative paths of `{SUFFIX}` files, with `/` between folders"
            self._fault("GW212", f"`{text}` cannot be imported", span, help)
            return
        path = Path(os.path.normpath(directory / text))
        real = os.path.realpath(path)
        if real in chain:
            names = [Path(x).name for x in [*chain[chain.index(real) :], real]]
            circle = " -> ".join(f"`{name}`" for name in names)
            self._fault("GW210", f"files import each other in a circle: {circle}", span)
        elif real not in self._read:
            self._follow(path, real, span, chain)

    def _follow(self, path: Path, real: str, span: Span, chain: Sequence[str]) -> None:
        if len(self.files) >= MAX_FILES or len(chain) >= MAX_DEPTH:
            self._read.add(real)
            limit = f"a policy has at most {MAX_FILES} files, nested at most {MAX_DEPTH} deep"
            self._fault("GW105", limit, span)
            return
        text = self._read_text(path)
        if isinstance(text, Diagnostic):
            self._read.add(real)
            code = "GW209" if text.code == "GW112" else text.code
            self._fault(code, text.message, span, text.help)
            return
        self.read(Source(str(path), text), path.parent, chain)

    def _fault(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        self.faults.append(Diagnostic(code, message, span, help))
        self.complete = False
