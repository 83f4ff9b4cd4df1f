"""The tables of an index, and how they lie in its folder: Parquet, partitioned as Hive does it.

    uses/block=3/part-0.parquet      an example in a step: 65,536 steps to a block
    sums/block=3/part-0.parquet      the uses of an example in a block under one decision (`sums`)
    steps/block=3/part-0.parquet     a step and its outcome
    contributions/block=3/…          what an example added to a band, in a step that records it
    moves/block=3/…                  how far such a step moved a band
    examples/part-0.parquet          numbers and commitments
    decisions/part-0.parquet, weights/…, rules/…      what was decided, and who had a part in it
    programs/…, policy_rules/…       what governed, from which step on
    spending/…                       privacy budgets, step by step
    events/…                         all other entries that say something of the run

Of a job of many ranks the tables of OF_RANKS are divided by rank first (`uses/rank=1/block=3/…`); the others
are of all ranks, which name an example, a program and a decision by one number.

Any engine that reads Parquet reads a table as it stands, `block` included. Numbers of examples, decisions and
programs count from 0 in the order of the ledger. The same ledger gives the same rows in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.errors import RuntimeGovernanceError
from gradwarden.runtime.provenance.sums import Sums

BLOCK = 65_536
"""Steps in a partition."""

ROWS = 1 << 20
"""Rows of a row group; a partition's last one may have fewer."""

LOOSE = 4_096
"""Rows that come one by one and are kept together."""

TABLES: dict[str, dict[str, str]] = {
    "uses": {"step": "int64", "example": "int32", "decision": "int32", "learned": "bool"},
    "sums": {
        "example": "int32",
        "decision": "int32",
        "learned": "bool",
        "uses": "int64",
        "first": "int64",
        "last": "int64",
    },
    "steps": {
        "step": "int64",
        "entry": "int64",
        "epoch": "int64",
        "today": "int64",
        "count": "int32",
        "verdict": "string",
        "outcome": "string",
        "gate": "string",
        "reason": "string",
        "detail": "string",
    },
    "contributions": {"step": "int64", "example": "int32", "band": "string", "norm": "float64"},
    "moves": {"step": "int64", "band": "string", "norm": "float64"},
    "examples": {"example": "int32", "commitment": "commitment"},
    "decisions": {"decision": "int32", "program": "int32", "verdict": "string"},
    "weights": {"decision": "int32", "band": "string", "weight": "int64"},
    "rules": {"decision": "int32", "rule": "string", "part": "string"},
    "programs": {
        "program": "int32",
        "entry": "int64",
        "first_step": "int64",
        "name": "string",
        "version": "int64",
        "digest": "string",
    },
    "policy_rules": {"program": "int32", "rule": "string", "kind": "string", "because": "string"},
    "spending": {"step": "int64", "rule": "string", "steps": "int64", "epsilon": "string"},
    "events": {"entry": "int64", "step": "int64", "kind": "string", "body": "string"},
}
"""The columns of each table, and their types.

uses.learned: whether the model may have learned from it: the decision gave some band weight, and the step was
committed or its outcome was lost in a crash. steps.outcome: `committed`, `refused`, `lost`, or `open` where
the ledger ends with the intent. contributions: of examples with weight in the band, in recorded steps that
were committed or lost; norm: of what was added to the gradient, null for a private example. moves.norm: of
what the band's parameters changed by. weights.weight: in millionths. rules.part: `rule` (it bore on the
decision), `advisory`, `waived`, or an obligation. spending: what a committed step says that privacy rules
have spent.
"""

OF_RANKS = ("uses", "sums", "steps", "contributions", "moves", "spending", "events")
"""Tables that have files for each rank of a job."""

PARTITIONED = {"uses": "step", "steps": "step", "sums": "first", "contributions": "step", "moves": "step"}
"""Tables that are cut into blocks, and the column whose steps say into which."""


@frozen
class Made:
    """A file of an index. path: within its folder. rows: that it holds."""

    path: str
    rows: int


def arrow() -> tuple[Any, Any]:
    """Return pyarrow and its Parquet module. Raises RuntimeGovernanceError where it is not installed."""
    try:
        import pyarrow as pa  # type: ignore[import-untyped]  # it ships no types
        import pyarrow.parquet as pq  # type: ignore[import-untyped]
    except ImportError:
        raise RuntimeGovernanceError(
            "an index needs pyarrow", help="pip install 'gradwarden[trace]'"
        ) from None
    return pa, pq


def schema_of(table: str) -> Any:
    """Return the Arrow schema of a table."""
    pa, _ = arrow()
    types = {"bool": pa.bool_(), "commitment": pa.binary(32)}
    return pa.schema(
        [(name, types.get(kind) or pa.type_for_alias(kind)) for name, kind in TABLES[table].items()]
    )


class TableWriter:
    """Writes one table of an index in row groups of ROWS rows.

    Rows of a partitioned table come in the order of steps. under: where its files lie within its folder.
    """

    def __init__(self, folder: Path, table: str, under: str = "") -> None:
        self._under = under
        self.made: list[Made] = []
        self._pa, self._pq = arrow()
        self._root, self._table = folder, table
        self._schema = schema_of(table)
        self._file: Any = None
        self._place = ""
        self._block = 0
        self._waiting: list[Any] = []
        self._loose: dict[str, list[Any]] = {name: [] for name in TABLES[table]}
        self._count = self._rows = 0

    def add_row(self, values: Mapping[str, Any]) -> None:
        """Add one row; what is missing in it is null."""
        for name, column in self._loose.items():
            column.append(values.get(name))
        if len(column) >= LOOSE:
            self._gather()

    def add(self, columns: Mapping[str, Sequence[Any] | np.ndarray[Any, Any]]) -> None:
        """Add rows: values by column, equally many of each."""
        self._gather()
        if len(columns[next(iter(columns))]):
            self._add(columns)

    def _gather(self) -> None:
        """Add the rows that came one by one."""
        if any(self._loose.values()):
            self._add(self._loose)
            self._loose = {name: [] for name in self._loose}

    def _add(self, columns: Mapping[str, Sequence[Any] | np.ndarray[Any, Any]]) -> None:
        made = [self._pa.array(columns[field.name], field.type) for field in self._schema]
        batch = self._pa.RecordBatch.from_arrays(made, schema=self._schema)
        if self._table not in PARTITIONED:
            self._keep(batch)
            return
        blocks = np.asarray(columns[PARTITIONED[self._table]], np.int64) // BLOCK
        borders = [0, *(np.flatnonzero(np.diff(blocks)) + 1).tolist(), len(blocks)]
        for start, stop in pairwise(borders):
            if blocks[start] != self._block:
                self._end()
                self._block = int(blocks[start])
            self._keep(batch.slice(start, stop - start))

    def close(self) -> None:
        """Write what is left. A table without rows has one file that says which columns it has."""
        self._gather()
        if not self.made and self._file is None and not self._waiting:
            self._open()
        self._end()

    def _keep(self, batch: Any) -> None:
        self._waiting.append(batch)
        self._count += batch.num_rows
        if self._count >= ROWS:
            self._write(self._count - self._count % ROWS)

    def _write(self, count: int) -> None:
        """Write that many of the rows that wait; the last row group may be a short one."""
        if count:
            rows = self._pa.Table.from_batches(self._waiting, self._schema)
            self._open().write_table(rows.slice(0, count), row_group_size=ROWS)
            self._waiting = rows.slice(count).to_batches()
            self._count -= count
            self._rows += count

    def _open(self) -> Any:
        if self._file is None:
            within = f"block={self._block}/" if self._table in PARTITIONED else ""
            self._place = f"{self._table}/{self._under}{within}part-0.parquet"
            path = self._root / self._place
            path.parent.mkdir(parents=True)
            self._file = self._pq.ParquetWriter(path, self._schema, compression="lz4", write_statistics=True)
        return self._file

    def _end(self) -> None:
        self._write(self._count)
        if self._file is not None:
            self._file.close()
            self.made.append(Made(self._place, self._rows))
            self._file, self._rows = None, 0


class Tables:
    """Writers of all tables of one index."""

    def __init__(self, folder: Path, rank: int | None = None) -> None:
        """rank: the one of a job whose ledger comes first; None for the ledger of a run."""
        self._folder = folder
        self._made: list[Made] = []
        self._writers = {table: TableWriter(folder, table) for table in TABLES}
        self._sums = Sums(BLOCK, self._writers["sums"].add)
        if rank is not None:
            self._open(rank)

    def next_rank(self, rank: int) -> None:
        """Take the rows of another rank's ledger from now on."""
        self._close(OF_RANKS)
        self._open(rank)

    def _open(self, rank: int) -> None:
        for table in OF_RANKS:
            self._writers[table] = TableWriter(self._folder, table, f"rank={rank}/")
        self._sums = Sums(BLOCK, self._writers["sums"].add)

    def add(self, table: str, **columns: Any) -> None:
        """Add rows to a table; those of `sums` follow from those of `uses`."""
        if table == "uses":
            self._sums.add(**columns)
        self._writers[table].add(columns)

    def add_row(self, table: str, **values: Any) -> None:
        """Add one row to a table."""
        self._writers[table].add_row(values)

    def close(self) -> Iterator[Made]:
        """Write what is left; yield every file."""
        self._close(TABLES)
        yield from self._made

    def _close(self, tables: Iterable[str]) -> None:
        self._sums.close()
        for table in tables:
            self._writers[table].close()
            self._made += self._writers[table].made
