"""Reads data-set manifests: one record of metadata per example, as JSONL, CSV or Parquet, piece by piece.

A record's `id` names the example and is not metadata. CSV cells are text; they become what the policy
declares: numbers, `true` and `false`, the members of a set separated by `;`. An empty cell is an absent
value, or the empty set where a set is required. A cell that cannot be read so is left as text, for the schema
check to name.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from gradwarden.cli.failures import InputError
from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import AttributeSpec, Program

PIECE = 65_536
"""Records that are decided together."""

MAX_CELLS = 8_000_000
"""Records times names of a piece: where every record has names of its own, pieces are shorter."""

MAX_LINE = 16 << 20
"""The longest line of a JSONL or CSV manifest, in bytes."""

BUFFER = 1 << 20
"""Bytes read ahead of each column of a Parquet file, so that a row group need not fit into memory."""

FORMATS = {
    ".jsonl": "JSONL",
    ".ndjson": "JSONL",
    ".csv": "CSV",
    ".tsv": "CSV",
    ".parquet": "Parquet",
    ".pq": "Parquet",
}

ID = "id"

ENCODING = "save the file as UTF-8"


@frozen
class Piece:
    """Records that follow each other in a manifest.

    columns: raw values by attribute, or a pyarrow Table. places: for each record the line (JSONL, CSV) or row
    (Parquet) that it stands on, from 1. ids: its id, None where it has none. malformed: lines that hold no
    record, with the reason. done: bytes (JSONL, CSV) or rows (Parquet) read so far.
    """

    columns: Any
    places: Sequence[int]
    ids: Sequence[object]
    malformed: Sequence[tuple[int, str]]
    done: int


@frozen
class Manifest:
    """An opened manifest: its pieces, the total of their `done`, and the unit of both."""

    pieces: Iterator[Piece]
    total: int
    unit: str
    place: str
    """What a place is called: `line` or `row`."""


def open_manifest(path: Path, program: Program, size: int = PIECE) -> Manifest:
    """Open a manifest by the ending of its name. Raises InputError, OSError."""
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        endings = ", ".join(f"`{ending}`" for ending in FORMATS)
        raise InputError(
            f"`{path}`: the format of a manifest is told by its ending", help=f"one of {endings}"
        )
    if kind == "Parquet":
        return _open_parquet(path, size)
    total = path.stat().st_size
    read = _jsonl if kind == "JSONL" else _csv
    return Manifest(read(path, program, size), total, "bytes", "line")


def _lines(file: BinaryIO, path: Path) -> Iterator[tuple[int, str | None]]:
    """Yield (number, text) of every line, None for what is no text. Raises InputError for one too long."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise InputError(f"`{path}:{number}`: the line is longer than {MAX_LINE >> 20} MiB")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            yield number, None
        else:
            yield number, text


def text_lines(file: BinaryIO, path: Path) -> Iterator[str]:
    """Yield every line of a format whose records may go over several: none can be left out."""
    for number, line in _lines(file, path):
        if line is None:
            raise InputError(f"`{path}:{number}` is not UTF-8 text", help=ENCODING)
        yield line


class _Collector:
    """Gathers records into pieces."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._clear()

    def _clear(self) -> None:
        self._records: list[Mapping[str, object]] = []
        self._places: list[int] = []
        self._malformed: list[tuple[int, str]] = []
        self._names: dict[str, None] = {}

    @property
    def full(self) -> bool:
        if len(self._records) + len(self._malformed) >= self._size:
            return True
        return len(self._records) * len(self._names) >= MAX_CELLS

    def add(self, place: int, record: Mapping[str, object]) -> None:
        self._places.append(place)
        self._records.append(record)
        self._names.update(dict.fromkeys(record))

    def reject(self, place: int, reason: str) -> None:
        self._malformed.append((place, reason))

    def piece(self, done: int) -> Piece:
        """Return what was gathered, and begin again. A value that a record lacks is None in its column."""
        self._names.pop(ID, None)
        columns = {name: [record.get(name) for record in self._records] for name in self._names}
        ids = [record.get(ID) for record in self._records]
        piece = Piece(columns, self._places, ids, self._malformed, done)
        self._clear()
        return piece


def _jsonl(path: Path, _program: Program, size: int) -> Iterator[Piece]:
    collector = _Collector(size)
    with path.open("rb") as file:
        for number, line in _lines(file, path):
            if line is None and number == 1:  # the file as a whole is something else
                raise InputError(f"`{path}:1` is not UTF-8 text", help=ENCODING)
            if line is None:
                collector.reject(number, "not UTF-8 text")
            elif line.strip():
                _read_json(line, number, collector)
            if collector.full:
                yield collector.piece(file.tell())
        yield collector.piece(file.tell())


def _read_json(line: str, number: int, collector: _Collector) -> None:
    try:
        record = json.loads(line, object_pairs_hook=_unique)
    except RecursionError:
        collector.reject(number, "not valid JSON: nested too deeply")
    except ValueError as error:
        message = getattr(error, "msg", None) or str(error)
        collector.reject(number, f"not valid JSON: {message.lower()}")
    else:
        if isinstance(record, dict):
            collector.add(number, record)
        else:
            collector.reject(number, "not a JSON object")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a key is repeated")
    return record


def _csv(path: Path, program: Program, size: int) -> Iterator[Piece]:
    readers = {spec.name: _cell_reader(spec) for spec in program.attributes}
    sets = {spec.name for spec in program.attributes if spec.type == "set" and not spec.optional}
    collector = _Collector(size)
    with path.open("rb") as file:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        rows = csv.reader(text_lines(file, path), delimiter=delimiter, strict=True)
        header = _header(path, rows)
        while (row := _next_row(path, rows)) is not None:
            if len(row) != len(header):
                if row:
                    collector.reject(rows.line_num, f"{len(row)} cells where the header has {len(header)}")
            else:
                cells = zip(header, row, strict=True)
                record = {
                    name: readers.get(name, _text)(cell) for name, cell in cells if cell or name in sets
                }
                collector.add(rows.line_num, record)
            if collector.full:
                yield collector.piece(file.tell())
        yield collector.piece(file.tell())


def _header(path: Path, rows: Any) -> list[str]:
    header = _next_row(path, rows)
    if not header:
        raise InputError(f"`{path}` is empty; its first line must name the columns")
    repeated = sorted(name for name, count in Counter(header).items() if count > 1)
    if repeated:
        raise InputError(f"`{path}` has two columns named `{repeated[0]}`")
    return header


def _next_row(path: Path, rows: Any) -> list[str] | None:
    try:
        row: list[str] | None = next(rows, None)
    except csv.Error as error:
        raise InputError(f"`{path}:{rows.line_num}` is not valid CSV: {error}") from None
    return row


def _cell_reader(spec: AttributeSpec) -> Callable[[str], object]:
    match spec.type:
        case "number":
            return _number
        case "bool":
            return lambda cell: {"true": True, "false": False}.get(cell.lower(), cell)
        case "set":
            return lambda cell: [member.strip() for member in cell.split(";") if member.strip()]
        case _:
            return _text


def _text(cell: str) -> object:
    return cell


def _number(cell: str) -> object:
    if "_" in cell:  # Python would read `1_000` as a number; no CSV means one by it
        return cell
    for read in (int, float):
        try:
            return read(cell)
        except ValueError:
            continue
    return cell


def _open_parquet(path: Path, size: int) -> Manifest:
    try:
        from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]  # it ships no types
    except ModuleNotFoundError:
        raise InputError(
            "reading Parquet needs pyarrow, which is not installed", help="pip install 'gradwarden[parquet]'"
        ) from None
    path.stat()  # so that a missing file is told as such
    try:
        file = parquet.ParquetFile(path, buffer_size=BUFFER)
    except (ArrowException, OSError) as error:
        raise InputError(f"`{path}` is not a Parquet file: {_first_line(error)}") from None
    return Manifest(_parquet(path, file, size), file.metadata.num_rows, "rows", "row")


def _parquet(path: Path, file: Any, size: int) -> Iterator[Piece]:
    import pyarrow

    done = 0
    batches = file.iter_batches(batch_size=size)
    while True:
        try:
            batch = next(batches, None)
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"`{path}` is damaged: {_first_line(error)}") from None
        if batch is None:
            return
        table = pyarrow.Table.from_batches([batch])
        named = ID in table.column_names
        ids = _Cells(table.column(ID)) if named else [None] * table.num_rows
        places = range(done + 1, done + table.num_rows + 1)
        done += table.num_rows
        yield Piece(table.drop_columns([ID]) if named else table, places, ids, (), done)


class _Cells(Sequence[object]):
    """A pyarrow column whose values are made when they are asked for."""

    def __init__(self, column: Any) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, row: Any) -> Any:
        from gradwarden.policy.evaluation.arrow import scalar_value

        return scalar_value(self._column[row])


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "unreadable").splitlines()[0][:200]
