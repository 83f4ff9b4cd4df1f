"""What is broken on purpose, and which tests must notice: the tables in `mutations/*.toml`.

A table is a list of mutants. `of`: the rows of the pages whose promise it breaks. `breaks`: in words.
`file`: of the tree; `old`, which occurs once in it, is replaced by `new`. `tests`: each of them must fail.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TABLES = Path(__file__).parent / "mutations"

FIELDS = ("of", "breaks", "file", "old", "new", "tests")


class TableError(ValueError):
    """A mutant that cannot be made, or that names a test which is not there."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one file. tests: node ids, of functions or of single cases."""

    of: tuple[str, ...]
    breaks: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, text: str) -> str:
        """Return the text of the file with the change. Raises TableError where it is not the file meant."""
        if text.count(self.old) != 1:
            raise TableError(f"{self.file}: what is replaced occurs {text.count(self.old)} times: {self.old}")
        return text.replace(self.old, self.new)

    @property
    def title(self) -> str:
        """The rows and what is broken."""
        return f"{', '.join(self.of)}: {self.breaks}"


def table_names() -> list[str]:
    """Return the names of the tables."""
    return sorted(path.stem for path in TABLES.glob("*.toml"))


def read_table(name: str) -> list[Mutant]:
    """Return the mutants of a table. Raises TableError for one that is not of the form above."""
    found = tomllib.loads((TABLES / f"{name}.toml").read_text("utf-8"))["mutant"]
    return [_mutant(name, number, entry) for number, entry in enumerate(found, start=1)]


def _mutant(table: str, number: int, entry: dict[str, Any]) -> Mutant:
    where = f"{table}, mutant {number}"
    if tuple(entry) != FIELDS:
        raise TableError(f"{where}: its fields are {', '.join(FIELDS)}, in this order")
    mutant = Mutant(
        tuple(map(str, entry["of"])),
        entry["breaks"],
        entry["file"],
        entry["old"],
        entry["new"],
        tuple(entry["tests"]),
    )
    if not mutant.of or not mutant.tests or mutant.old == mutant.new:
        raise TableError(f"{where}: it is of no row, names no test or changes nothing")
    return mutant


def named_tests(mutants: Collection[Mutant]) -> Iterator[tuple[str, str]]:
    """Yield the file and the function of each test that the mutants name."""
    for mutant in mutants:
        for test in mutant.tests:
            path, _, name = test.partition("::")
            yield path, re.sub(r"\[.*", "", name)
