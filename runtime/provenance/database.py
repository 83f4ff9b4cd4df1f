"""The tables of an index as DuckDB reads them, and the uses of examples in some of its steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gradwarden.runtime.errors import RuntimeGovernanceError
from gradwarden.runtime.provenance import tables
from gradwarden.runtime.provenance.answers import Steps
from gradwarden.runtime.provenance.indexed import Index
from gradwarden.runtime.records.branches import Spans

LAST_STEP = (1 << 62) - 1

EVERY_STEP: Spans = ((0, LAST_STEP),)


class Database:
    """Asks the tables of an index in SQL."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._connection = _connect(index)

    def all(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows that a query gives."""
        rows: list[tuple[Any, ...]] = self._connection.execute(query, list(values)).fetchall()
        return rows

    def records(self, query: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Return them by the names of their columns."""
        rows = self.all(query, values)
        names = [column[0] for column in self._connection.description]
        return [dict(zip(names, row, strict=True)) for row in rows]

    def choose(self, commitments: Sequence[bytes]) -> None:
        """Make a table `chosen` of some commitments."""
        self._connection.execute("CREATE OR REPLACE TEMP TABLE chosen (commitment BLOB)")
        if commitments:
            self._connection.executemany("INSERT INTO chosen VALUES (?)", [[one] for one in commitments])

    def uses_in(self, steps: Steps, spans: Spans) -> str:
        """Return a query for all uses in some steps, as far as they are among `spans`."""
        first, last = steps[0], LAST_STEP if steps[1] is None else steps[1]
        parts = ["SELECT example, decision, learned, uses, first, last FROM sums WHERE false"]
        for begin, end in spans:
            if max(first, begin) <= min(last, end - 1):
                parts += self._between(max(first, begin), min(last, end - 1))
        return " UNION ALL ".join(parts)

    def rows_in(self, table: str, steps: Steps, spans: Spans) -> str:
        """Return a query for the rows of a table of steps in some steps, as far as they are among `spans`.

        Only the blocks are read in which these lie.
        """
        first, last = steps[0], LAST_STEP if steps[1] is None else steps[1]
        within = [(max(first, begin), min(last, end - 1)) for begin, end in spans]
        where = " OR ".join(f"step BETWEEN {begin:d} AND {end:d}" for begin, end in within if begin <= end)
        blocks = range(first // tables.BLOCK, last // tables.BLOCK + 1)
        files = self._index.paths(table, blocks) or self._index.paths(table)[:1]
        taken = columns_of(self._index, table)
        return f"SELECT {taken} FROM read_parquet({listed(files)}) WHERE {where or 'false'}"

    def _between(self, first: int, last: int) -> list[str]:
        """Return queries for the uses between two steps, summed as far as whole blocks lie within."""
        size, end = tables.BLOCK, self._index.steps
        stop = -(-end // size) if last >= end - 1 else (last + 1) // size
        whole = range(-(-first // size), stop)
        parts = []
        if inside := self._index.paths("sums", whole):
            parts.append(
                f"SELECT example, decision, learned, uses, first, last FROM read_parquet({listed(inside)})"
            )
        touched = range(first // size, min(last, end) // size + 1)
        ends = [block for block in touched if block not in whole]
        if edges := [path for block in ends for path in self._index.paths("uses", range(block, block + 1))]:
            parts.append(
                "SELECT example, decision, learned, 1 AS uses, step AS first, step AS last "
                f"FROM read_parquet({listed(edges)}) WHERE step BETWEEN {first:d} AND {last:d}"
            )
        return parts


def _connect(index: Index) -> Any:
    """Return a DuckDB connection in which every table of an index is a view of its files."""
    try:
        import duckdb  # type: ignore[import-not-found, import-untyped, unused-ignore]  # an extra
    except ImportError:
        raise RuntimeGovernanceError(
            "asking an index needs duckdb", help="pip install 'gradwarden[trace]'"
        ) from None
    # No extension is fetched or loaded: what reading Parquet takes is built in.
    quiet: dict[str, Any] = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
    db = duckdb.connect(":memory:", config=quiet)
    for table in tables.TABLES:
        files, taken = listed(index.paths(table)), columns_of(index, table)
        db.execute(f"CREATE VIEW {table} AS SELECT {taken} FROM read_parquet({files})")
    return db


def columns_of(index: Index, table: str) -> str:
    """Return the columns of a table as SQL selects them, with the rank where it is divided by rank."""
    rank = ["rank::INTEGER AS rank" if index.ranks else "0 AS rank"] if table in tables.OF_RANKS else []
    return ", ".join([*tables.TABLES[table], *rank])


def listed(paths: Sequence[str]) -> str:
    """Return paths as a list in SQL."""
    quoted = [f"'{path.replace(chr(39), chr(39) * 2)}'" for path in paths]
    return f"[{', '.join(quoted)}]"


def numbers(examples: Iterable[int]) -> str:
    """Return numbers as a list in SQL; one that nothing has where there are none."""
    return ", ".join(f"{example:d}" for example in examples) or "-1"
