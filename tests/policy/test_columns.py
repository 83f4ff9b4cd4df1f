"""Columns of every form hold what the scalar encoder makes of each row, and find the same faults."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden.policy.context import Context
from gradwarden.policy.evaluation.arrays import CODES
from gradwarden.policy.evaluation.batch import decide_columns
from gradwarden.policy.evaluation.columns import Columns, ColumnsError, encode_columns
from gradwarden.policy.evaluation.values import encode_metadata
from gradwarden.policy.program import AttributeSpec, Program
from tests.policy.test_values import program_of
from tests.strategies import ATTRIBUTES, SPECS, examples, valid_examples

pa = pytest.importorskip("pyarrow", reason="Arrow columns need the `parquet` extra")

PROGRAM = program_of(*ATTRIBUTES)


def rows_of(columns: Columns, row: int) -> dict[str, int | str]:
    """The encoded values that are present in one row."""
    found: dict[str, int | str] = {}
    for name, column in columns.encoded.items():
        if column.present is None or column.present[row]:
            value = column.values[row]
            is_text = SPECS[name].type == "string"
            found[name] = column.dictionary[value] if is_text else int(value)
    return found


def check(rows: list[dict[str, Any]], columns: Columns) -> None:
    assert columns.count == len(rows)
    invalid = set(columns.invalid_rows.tolist())
    for i, row in enumerate(rows):
        values, problems = encode_metadata(ATTRIBUTES, row)
        assert rows_of(columns, i) == values
        assert columns.problems(i) == problems
        assert (i in invalid) == bool(problems)
        found = [(name, CODES[codes[i]]) for name, codes in columns.faults.items() if codes[i]]
        assert found == [(problem.attribute, problem.code) for problem in problems]


def raw_columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = [*SPECS, *(name for row in rows for name in row if name not in SPECS)]
    return {name: [row.get(name) for row in rows] for name in names}


def boxed(values: list[Any]) -> np.ndarray[Any, Any]:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def masked(values: list[Any]) -> Any:
    return np.ma.array(boxed(values), mask=[value is None for value in values])


@given(st.lists(examples, max_size=8), st.sampled_from((list, tuple, boxed, masked)))
@settings(max_examples=150)
def test_lists_and_object_arrays(rows: list[dict[str, Any]], form: Callable[[list[Any]], Any]) -> None:
    columns = {name: form(values) for name, values in raw_columns(rows).items()}
    check(rows, encode_columns(PROGRAM, columns))


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Examples as a Parquet file holds them: one type per column."""
    return [
        row
        | {
            "age": float(row["age"]),
            "score": float(row["score"]),
            "consent": bool(row["consent"]),
            "tags": list(row["tags"]),
            "erase": None if isinstance(row.get("erase"), str) else row.get("erase"),
        }
        for row in rows
    ]


@given(st.lists(valid_examples(), min_size=1, max_size=8), st.integers(0, 8), st.booleans())
@settings(max_examples=100)
def test_arrow_tables(rows: list[dict[str, Any]], cut: int, coded: bool) -> None:
    rows = plain(rows)
    table: dict[str, Any] = {}
    for name, values in raw_columns(rows).items():
        array = pa.array(values)
        if coded and pa.types.is_string(array.type):
            array = array.dictionary_encode()
        kind = array.type
        table[name] = pa.chunked_array([array[:cut], array[cut:]], kind)
    check(rows, encode_columns(PROGRAM, pa.table(table)))
    check(rows, encode_columns(PROGRAM, {n: c.combine_chunks() for n, c in table.items()}))


ODD_ARROW = [
    ("number", pa.array([1, None, 300], pa.int16())),
    ("number", pa.array([1, None, 300], pa.uint64())),
    ("number", pa.array([1.5, None, float("nan")], pa.float32())),
    ("number", pa.array([True, None, False])),
    ("number", pa.array(["1", None, "2"])),
    ("number", pa.array([1, None, 2]).dictionary_encode()),
    ("number", pa.array([None, None, None])),
    ("number", pa.array([0, None, 1], pa.timestamp("ns"))),
    ("date", pa.array([0, None, 10**9], pa.date32())),
    ("date", pa.array([0, None, 86_400_000], pa.date64())),
    ("date", pa.array([0, None, 10**18 + 1], pa.timestamp("ns"))),
    ("date", pa.array(["1970-01-02", None, "1970-13-02"])),
    ("bool", pa.array([True, None, False])),
    ("bool", pa.array([1, None, 0])),
    ("set", pa.array([["a"], None, ["b", "a"]])),
    ("set", pa.array([["a", None], None, ["c"]])),
    ("set", pa.array([[1], None, []])),
    ("set", pa.array([["a"], None, []], pa.large_list(pa.large_string()))),
    ("set", pa.array(["a", None, "b"])),
    ("enum", pa.array(["a", None, "z"], pa.large_string())),
    ("enum", pa.array([b"a", None, b"b"])),
    ("string", pa.array(["a", None, "toolong"])),
    (
        "string",
        pa.chunked_array([pa.array(["a"]).dictionary_encode(), pa.array([None, "b"]).dictionary_encode()]),
    ),
]


@pytest.mark.parametrize(("kind", "column"), ODD_ARROW)
@pytest.mark.parametrize("optional", [True, False])
def test_arrow_columns_of_every_type(kind: Any, column: Any, optional: bool) -> None:
    spec = AttributeSpec("x", kind, optional, hi=4 if kind == "string" else 1000, values=("a", "b"))
    columns = encode_columns(program_of(spec), {"x": column})
    for i in range(3):
        values, problems = encode_metadata((spec,), columns.metadata(i))
        assert columns.problems(i) == problems
        codes = columns.faults.get("x")
        assert (0 if codes is None else codes[i]) == (CODES.index(problems[0].code) if problems else 0)
        held = columns.encoded["x"]
        present = held.present is None or bool(held.present[i])
        assert present == ("x" in values)
        if present:
            value = held.values[i]
            assert (held.dictionary[value] if kind == "string" else int(value)) == values["x"]


ODD_NUMPY = [
    np.arange(-3, 3, dtype=np.int8),
    np.array([0, 2**63], np.uint64),
    np.array([0.5, np.nan, np.inf], np.float16),
    np.array([True, False]),
    np.array(["2026-01-01", "NaT"], "M8[D]"),
    np.array(["2026-01-01", "NaT"], "M8[s]"),
    np.array(["a", "toolong"]),
    np.array([b"a"]),
    np.array([1j]),
    np.ma.array([1, 2], mask=[False, True]),
    np.ma.array(["a", "b"], mask=[False, True]),
    np.array([3, 1, 2])[::2],
]


@pytest.mark.parametrize("column", ODD_NUMPY, ids=lambda column: str(column.dtype))
@pytest.mark.parametrize("kind", ["number", "date", "bool", "set", "enum", "string"])
def test_numpy_columns_of_every_dtype(kind: Any, column: Any) -> None:
    spec = AttributeSpec("x", kind, hi=4 if kind == "string" else 30_000, values=("a", "b"))
    columns = encode_columns(program_of(spec), {"x": column})
    for i in range(len(column)):
        values, problems = encode_metadata((spec,), {"x": column[i]})
        assert columns.problems(i) == problems
        codes = columns.faults.get("x")
        assert (0 if codes is None else codes[i]) == (CODES.index(problems[0].code) if problems else 0)
        if not problems:
            held = columns.encoded["x"]
            value = held.values[i]
            assert (held.dictionary[value] if kind == "string" else int(value)) == values["x"]


def test_a_column_more_is_harmless_where_it_is_empty() -> None:
    spec = AttributeSpec("x", "number", hi=10)
    columns = encode_columns(program_of(spec), {"x": [1, 2], "extra": pa.array([None, 5])})
    assert columns.invalid_rows.tolist() == [1]
    assert [problem.code for problem in columns.problems(1)] == ["unknown_attribute"]


def test_values_are_held_in_the_narrowest_integers() -> None:
    held = encode_columns(PROGRAM, raw_columns([])).encoded
    widths = {"age": np.int16, "born": np.int16, "level": np.int8, "license": np.uint8, "score": np.int32}
    assert {name: held[name].values.dtype for name in widths} == {n: np.dtype(w) for n, w in widths.items()}


def test_a_table_of_no_rows_and_one_of_no_columns() -> None:
    assert len(decide_columns(PROGRAM, raw_columns([]), Context())) == 0
    empty = program_of()
    decisions = decide_columns(empty, encode_columns(empty, {}, 3), Context())
    assert decisions.verdict_counts()["admit"] == 3


def test_two_dimensional_columns_are_refused() -> None:
    with pytest.raises(ColumnsError, match="not one-dimensional"):
        encode_columns(program_of(AttributeSpec("x", "number")), {"x": np.zeros((2, 2))})


def test_many_rows_and_many_text_values_cross_chunks() -> None:
    """A million distinct keys are not needed to leave the small tables: a few chunks and wide codes do."""
    program: Program = program_of(AttributeSpec("x", "string", hi=10), AttributeSpec("y", "number", hi=10))
    words = [f"w{i % 700}" for i in range(40_000)]
    values = [i % 12 for i in range(40_000)]
    columns = encode_columns(program, {"x": words, "y": values})
    held = columns.encoded["x"]
    assert [held.dictionary[code] for code in held.values] == words
    assert columns.invalid_rows.tolist() == [i for i in range(40_000) if i % 12 == 11]


def test_the_language_does_not_import_pyarrow() -> None:
    imports = "import sys; from gradwarden.policy.evaluation import admission, batch"
    code = f"{imports}; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
