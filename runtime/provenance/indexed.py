"""What an index says of itself: which ledgers it was made from, up to where, and which files it has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.jobs.layout import log_path, rank_path
from gradwarden.runtime.ledger.reader import open_ledger, size_of

FORMAT = "gradwarden/trace/2"

FORMATS = re.compile(r"gradwarden/trace/[0-9]{1,9}")
"""What indexes of other versions say that they are."""

NUMBERS = ("size", "end", "steps", "uses", "examples")
TEXTS = ("origin", "run", "root", "tip")


@frozen
class IndexFile:
    """A file of an index, and what it must be."""

    path: str
    rows: int
    sha256: str


@frozen
class RankEnd:
    """How far an index covers the ledger of one rank of a job: see `Index`."""

    rank: int
    size: int
    root: str
    end: int
    tip: str


@frozen
class Index:
    """An index that was made from the ledger in hand, or from all those in the folder of a job.

    size, root: the entries that it covers. end: the byte after them; tip: the leaf hash of the last (hex); of
    a job, all of its log of logs. ranks: the same of each rank's ledger; none of a ledger by itself. bands:
    of the first program. steps, uses, examples: how many it holds.
    """

    ledger: Path
    folder: Path
    origin: str
    run: str
    size: int
    root: str
    end: int
    tip: str
    bands: tuple[str, ...]
    steps: int
    uses: int
    examples: int
    files: tuple[IndexFile, ...]
    ranks: tuple[RankEnd, ...] = ()

    @property
    def ends(self) -> list[tuple[Path, int, str]]:
        """Each ledger, the byte up to which it is covered, and the leaf hash of the last entry there."""
        if not self.ranks:
            return [(self.ledger, self.end, self.tip)]
        own = [(rank_path(self.ledger, one.rank), one.end, one.tip) for one in self.ranks]
        return [(log_path(self.ledger), self.end, self.tip), *own]

    @property
    def behind(self) -> int:
        """Bytes that the ledgers have grown since."""
        grown = 0
        for path, end, _ in self.ends:
            with open_ledger(path) as file:
                grown += size_of(file) - end
        return grown

    def paths(self, table: str, blocks: range | None = None) -> list[str]:
        """Return the files of a table; of one that is partitioned, of some blocks only."""
        return [
            str(self.folder / file.path)
            for file in self.files
            if file.path.startswith(f"{table}/") and (blocks is None or block_of(file.path) in blocks)
        ]

    def has_rows(self, table: str) -> bool:
        """Whether a table has any rows."""
        return any(file.rows for file in self.files if file.path.startswith(f"{table}/"))

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            **{name: getattr(self, name) for name in (*TEXTS, *NUMBERS)},
            "bands": list(self.bands),
            **({"ranks": [_end_to_json(one) for one in self.ranks]} if self.ranks else {}),
            "files": {file.path: {"rows": file.rows, "sha256": file.sha256} for file in self.files},
        }


def block_of(path: str) -> int:
    """Return the block of a file of a table that is partitioned."""
    return next(int(part.removeprefix("block=")) for part in path.split("/") if part.startswith("block="))


def _end_to_json(end: RankEnd) -> dict[str, Any]:
    return {name: getattr(end, name) for name in end.__match_args__}
