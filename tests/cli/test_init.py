"""`gradwarden init --from`: a policy derived from a manifest, under which every record is valid."""

from __future__ import annotations

import csv
import datetime
import json
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden.cli.manifest import open_manifest
from gradwarden.cli.scaffold import derive, policy_text, sample_tests
from gradwarden.policy import parse_policy
from gradwarden.policy.deriving import (
    MAX_LISTED,
    Column,
    name_fault,
    read_number,
    round_down,
    round_up,
    suggested_name,
)
from gradwarden.policy.evaluation.columns import encode_columns
from gradwarden.policy.syntax.format import format_policy
from gradwarden.policy.testing.runner import check_fit, run_cases
from gradwarden.policy.testing.test_file import parse_tests
from tests.cli.conftest import Run

# --- every record is valid under what is derived ------------------------------------------------------------

WORDS = ("a", "OTHER", "FITTING", "GPL-2.0", "one", "optional", 'say "x"', "a\\b", "é", "of", "true")
texts = st.sampled_from(WORDS) | st.text(max_size=6)
JSON_COLUMNS: dict[str, st.SearchStrategy[Any]] = {
    "flag": st.booleans(),
    "count": st.integers(-(2**53) + 1, 2**53 - 1) | st.integers(-30, 30),
    "share": st.floats(-(2**53) + 1, 2**53 - 1) | st.floats(0, 1) | st.integers(0, 3),
    "kind": st.sampled_from(WORDS),
    "text": texts,
    "tags": st.lists(st.sampled_from(WORDS), max_size=3),
    "day": st.dates().map(str),
    "nothing": st.none(),
}
CELL_COLUMNS: dict[str, st.SearchStrategy[str]] = {
    "flag": st.sampled_from(("true", "False", "TRUE")),
    "count": st.integers(-30, 30).map(str) | st.integers().map(str),
    "share": st.floats(allow_nan=False, allow_infinity=False).map(str) | st.sampled_from(("1e3", " 5", ".5")),
    "code": st.sampled_from(("007", "12", "1_0", "nan", "inf", "1e999", "+", "٣")),
    "kind": st.sampled_from(WORDS),
    "text": st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6),
    "tags": st.lists(st.sampled_from(("a", "b", "c d")), max_size=3).map(";".join),
    "day": st.dates().map(str) | st.sampled_from(("2026-02-30", "2026-01-01")),
}


@st.composite
def tables(draw: st.DrawFn, columns: dict[str, st.SearchStrategy[Any]], absent: Any) -> list[dict[str, Any]]:
    names = draw(st.lists(st.sampled_from(sorted(columns)), min_size=1, unique=True))
    optional = draw(st.sets(st.sampled_from(names)))
    rows = draw(st.integers(1, 12))
    return [
        {name: absent if name in optional and draw(st.booleans()) else draw(columns[name]) for name in names}
        for _ in range(rows)
    ]


def check_derived(path: Path) -> None:
    """The policy is canonical, every record is valid under it, and its tests pass."""
    derived = derive(path)
    assert not derived.faults
    text = policy_text(derived, path)
    assert format_policy(text) == text
    program = parse_policy(text).program
    for piece in open_manifest(path, program).pieces:
        columns = encode_columns(program, piece.columns, len(piece.places))
        assert [columns.problems(row) for row in columns.invalid_rows.tolist()] == []
    tests = parse_tests(sample_tests(program.attributes), Path("training_test.yaml"))
    check_fit(program, tests)
    assert [r.mismatches for r in run_cases(program, tests.cases)] == [(), ()]


@settings(max_examples=50)
@given(tables(JSON_COLUMNS, None))
def test_records_of_json_lines_are_valid_under_what_they_give(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data.jsonl")
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        check_derived(path)


@settings(max_examples=50)
@given(tables(CELL_COLUMNS, ""))
def test_records_of_csv_are_valid_under_what_they_give(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data.csv")
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["id", *rows[0]])
            writer.writeheader()
            writer.writerows([{"id": number, **row} for number, row in enumerate(rows)])
        check_derived(path)


@settings(max_examples=25)
@given(tables(JSON_COLUMNS, None))
def test_records_of_parquet_are_valid_under_what_they_give(rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data.parquet")
        columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
        for name, convert in (("share", float), ("day", datetime.date.fromisoformat)):
            if name in columns:
                columns[name] = [None if value is None else convert(value) for value in columns[name]]
        parquet.write_table(pa.table(columns), path)
        check_derived(path)


# --- what is proposed ---------------------------------------------------------------------------------------


def proposed(values: list[Any], cells: bool = False) -> str:
    column = Column("x", cells)
    for start in range(0, len(values), 2):
        column.see(values[start : start + 2])
    assert column.fault() is None
    return column.declaration().removeprefix("x : ")


@pytest.mark.parametrize(
    ("values", "declaration"),
    [
        ([True, False], "bool  # true or false"),
        ([3, 87], "integer 0..100  # seen 3 to 87"),
        ([-3, 3.0], "integer -5..5  # seen -3 to 3"),
        ([0.25, 1], "number 0..1 places 2  # seen 0.25 to 1"),
        ([Decimal("0.125"), 7], "number 0..10 places 3  # seen 0.125 to 7"),
        ([1e-12], "number 0..1 places 9  # seen 1e-12 to 1e-12"),
        ([12345678.123456789], "number 0..20000000 places 8  # seen 12345678.1235 to 12345678.1235"),
        (["2026-01-02", "2025-12-31"], "date  # seen 2025-12-31 to 2026-01-02"),
        ([datetime.date(2026, 1, 2)], "date  # seen 2026-01-02 to 2026-01-02"),
        (["a", "B"] * 3, 'one of "B", a  # 2 values seen'),
        (["a", "B"] * 2, "string  # texts of at most 1 characters seen"),
        ([f"w{i}" for i in range(MAX_LISTED + 1)] * 3, "string  # texts of at most 3 characters seen"),
        (["a\nb"] * 9, "string  # texts of at most 3 characters seen"),
        ([["a"], ["b", "a"], []], "set of a, b  # 2 members seen"),
        ([[]], "set of none_seen  # 0 members seen"),
        ([None, 5], "integer 0..5 optional  # seen 5 to 5; absent in 1 of 2"),
        ([None], "string optional  # no value seen; absent in 1 of 1"),
    ],
)
def test_types_follow_from_values(values: list[Any], declaration: str) -> None:
    assert proposed(values) == declaration


@pytest.mark.parametrize(
    ("cells", "declaration"),
    [
        (["true", "False"], "bool  # true or false"),
        (["1", "2.50"], "number 0..5 places 1  # seen 1 to 2.5"),
        (["007", "012", "012"], "string  # texts of at most 3 characters seen"),
        (["a;b", "a", None, "b; a", "a", "b", "a"], "set of a, b  # 2 members seen"),
        (["a;b"], "string  # texts of at most 3 characters seen"),
        (["nan", "1"], "string  # texts of at most 3 characters seen"),
        (["99999999999999999999"], "string  # texts of at most 20 characters seen"),
    ],
)
def test_cells_are_read_as_their_type_will_read_them(cells: list[Any], declaration: str) -> None:
    assert proposed(cells, cells=True) == declaration


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ([1, "a"], "numbers and texts"),
        ([True, 1], "true and false and numbers"),
        ([{}], "objects"),
        ([float("nan")], "not finite"),
        ([10**20], "beyond 9,007,199,254,740,991"),
        ([["a", 1]], "a list that holds more than texts"),
        ([["a", None]], "a list that holds more than texts"),
        ([[f"m{i}" for i in range(64)]], "more than 63 distinct"),
        ([datetime.datetime(2026, 1, 1)], "instants"),
        (["x" * 70_000], "texts of 70,000 characters"),
    ],
)
def test_what_no_type_holds_is_told(values: list[Any], fault: str) -> None:
    column = Column("x")
    column.see(values)
    assert fault in (column.fault() or "")


@given(st.integers(-(10**15), 10**15))
def test_round_ranges_take_in_what_was_seen(value: int) -> None:
    assert round_down(value) <= value <= round_up(value)
    assert round_up(value) in (0, 2**53 - 1) or str(round_up(value)).strip("0") in ("1", "2", "5")
    assert round_up(value) <= max(0, 5 * value)


@given(st.text(max_size=80), st.sets(st.sampled_from(("license_type", "_1", "attribute"))))
def test_a_suggested_name_can_be_declared(name: str, taken: set[str]) -> None:
    suggestion = suggested_name(name, taken)
    assert name_fault(suggestion) is None
    assert suggestion not in taken


def test_suggestions_stay_close() -> None:
    names = ("License Type", "licenseType", "2nd", "today", "id", "", "Größe")
    wanted = ["license_type", "license_type", "_2nd", "today_2", "id_2", "attribute", "gr_e"]
    assert [suggested_name(name, ()) for name in names] == wanted


def test_numbers_in_cells() -> None:
    assert [read_number(cell) for cell in ("5", "-0.5", "1e2", "0")] == [5, -0.5, 100.0, 0]
    assert {
        read_number(cell) for cell in ("", "1_0", "nan", "0x1", "00", "-01", "٣", "1e999", "9" * 5000)
    } == {None}


# --- the command --------------------------------------------------------------------------------------------


def test_what_is_derived_passes_check_fmt_test_and_plan(run: Run, here: Path) -> None:
    rows = [{"id": i, "kind": "ab"[i % 2], "score": i / 10, "tags": ["x"]} for i in range(10)]
    (here / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run("init", "new", "--from", "d.jsonl")
    assert result.exit_code == 0, result.stderr
    assert "score : number 0..1 places 1  # seen 0 to 0.9" in Path("new/training.policy").read_text()
    assert run("check", "new", "--model-map", "new/model.yaml", "--strict").exit_code == 0
    assert run("fmt", "new", "--check").exit_code == 0
    assert run("test", "new", "--min-coverage", "90").exit_code == 0
    assert run("plan", "new/training.policy", "--data", "d.jsonl").exit_code == 0


def test_names_and_values_that_do_not_fit_are_reported_and_nothing_is_written(run: Run, here: Path) -> None:
    (here / "d.jsonl").write_text('{"License Type": "x", "until": 1, "mixed": 1}\n{"mixed": "a"}\n')
    result = run("init", "new", "--from", "d.jsonl")
    assert result.exit_code == 1
    assert "error[GW494]: the name `License Type` is not made of lower-case letters" in result.stderr
    assert "for example to `license_type`" in result.stderr
    assert "error[GW494]: the name `until` is a word of the language" in result.stderr
    assert "error[GW495]: no type holds `mixed`: it holds numbers and texts" in result.stderr
    assert not (here / "new").exists()


def test_lines_that_hold_no_record_are_counted(run: Run, here: Path) -> None:
    (here / "d.jsonl").write_text('{"a": 1}\nnonsense\n[]\n')
    result = run("init", "new", "--from", "d.jsonl")
    assert result.exit_code == 0
    assert "2 lines of `d.jsonl` hold no record" in result.stderr


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl", "", "holds no records"),
        ("d.csv", "", "is empty"),
        ("d.csv", "a,a\n1,2\n", "two columns named `a`"),
        ("d.xlsx", "x", "told by its ending"),
        ("d.parquet", "x", "not a Parquet file"),
        ("none.jsonl", None, "no such file"),
        ("d.jsonl", json.dumps({f"a{i}": 1 for i in range(1001)}), "more than 1,000 attributes"),
    ],
)
def test_misuse_is_told(run: Run, here: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (here / name).write_text(content)
    result = run("init", "new", "--from", name)
    assert (result.exit_code, message in result.stderr) == (2, True)
    assert not (here / "new").exists()
