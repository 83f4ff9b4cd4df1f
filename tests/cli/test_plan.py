"""`gradwarden plan`: counts over a data set, whatever its format, and the records it cannot use."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from gradwarden.cli import manifest
from tests.cli.conftest import Run

RECORDS: list[dict[str, Any]] = [
    {"id": 1, "kind": "a", "lines": 1, "topic": ["y"], "since": "2030-01-01"},
    {"id": 2, "kind": "a", "lines": 200, "topic": []},
    {"id": 3, "kind": "a", "lines": 1, "topic": ["x", "y"]},
    {"id": 4, "kind": "b", "lines": 1, "topic": []},
    {"id": 5, "kind": "z", "lines": 2000, "topic": []},
]


def write(path: Path, records: list[dict[str, Any]] = RECORDS) -> Path:
    """Write records in the format of a file's ending."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix in (".csv", ".tsv"):
        separator = "," if path.suffix == ".csv" else "\t"
        rows = [["id", "kind", "lines", "topic", "since"]]
        for r in records:
            rows.append([str(r["id"]), r["kind"], str(r["lines"]), ";".join(r["topic"]), r.get("since", "")])
        path.write_text("".join(separator.join(row) + "\n" for row in rows))
    else:
        import pyarrow as pa
        from pyarrow import parquet

        columns = {
            name: [record.get(name) for record in records] for name in ("id", "kind", "lines", "topic")
        }
        since = [date.fromisoformat(r["since"]) if "since" in r else None for r in records]
        parquet.write_table(pa.table({**columns, "since": since}), path)
    return path


def plan(run: Run, policy: Path, data: Path, *options: object) -> tuple[int, dict[str, Any]]:
    fixed = ("--at", "2026-01-01", "--set", "loss=0", "--format", "json")
    result = run("plan", policy, "--data", data, *fixed, *options)
    return result.exit_code, json.loads(result.stdout)


@pytest.mark.parametrize("name", ["data.jsonl", "data.csv", "data.tsv", "data.parquet"])
def test_every_format_gives_the_same_counts(run: Run, policy: Path, name: str) -> None:
    status, document = plan(run, policy, write(policy.with_name(name)))
    assert status == 1
    assert document["records"] == 5
    assert document["verdicts"] == {"admit": 0, "limit": 2, "defer": 0, "refuse": 2, "invalid": 1}
    assert document["bands"] == {
        "shallow": {"examples": 2, "weight": 2.0},
        "deep": {"examples": 1, "weight": 0.5},
    }
    assert {rule: count for rule, count in document["rules"].items() if count} == {
        "calm": 3,
        "granted": 3,
        "long": 1,
        "marked": 1,
        "people": 1,
    }
    assert [(p["attribute"], p["code"], p["records"]) for p in document["problems"]] == [
        ("kind", "unknown_value", 1),
        ("lines", "out_of_range", 1),
    ]
    [invalid] = document["invalid"]
    assert str(invalid["id"]) == "5"
    assert invalid["place"] == (5 if name in ("data.jsonl", "data.parquet") else 6)


def test_valid_records_do_not_fail(run: Run, policy: Path) -> None:
    assert plan(run, policy, write(policy.with_name("data.jsonl"), RECORDS[:4]))[0] == 0


def test_invalid_records_can_be_allowed(run: Run, policy: Path) -> None:
    assert plan(run, policy, write(policy.with_name("data.jsonl")), "--allow-invalid")[0] == 0


def test_the_pieces_of_a_long_manifest_add_up(
    run: Run, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest.open_manifest, "__defaults__", (7,))
    data = write(policy.with_name("data.jsonl"), RECORDS * 20)
    _, document = plan(run, policy, data, "--show", "3")
    assert document["records"] == 100
    assert document["verdicts"]["invalid"] == 20
    assert document["bands"]["deep"] == {"examples": 20, "weight": 10.0}
    assert [record["place"] for record in document["invalid"]] == [5, 10, 15]


def test_lines_that_are_no_record_are_invalid_records(run: Run, policy: Path) -> None:
    good = json.dumps(RECORDS[0])
    lines = ["[1]", "{", '{"kind": "a", "kind": "b"}', "", good, "{}", '"' + "[" * 20_000]
    (policy.parent / "data.jsonl").write_text("\n".join(lines) + "\n")
    status, document = plan(run, policy, policy.with_name("data.jsonl"))
    assert status == 1
    assert document["records"] == 6
    assert [(r["place"], r["problems"][0]["code"]) for r in document["invalid"]] == [
        (1, "malformed"),
        (2, "malformed"),
        (3, "malformed"),
        (6, "missing"),
        (7, "malformed"),
    ]


def test_rows_of_another_length_than_the_header_are_invalid(run: Run, policy: Path) -> None:
    (policy.parent / "data.csv").write_text("kind,lines,topic\na,1,\na,1\na,1,,\n\n")
    _, document = plan(run, policy, policy.with_name("data.csv"))
    assert document["records"] == 3
    assert [record["problems"][0]["detail"] for record in document["invalid"]] == [
        "2 cells where the header has 3",
        "4 cells where the header has 3",
    ]


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ("12", None),
        ("1e2", None),
        (" 7", None),
        ("1_0", "wrong_type"),
        ("ten", "wrong_type"),
        ("nan", "not_finite"),
    ],
)
def test_csv_numbers(run: Run, policy: Path, cell: str, problem: str | None) -> None:
    (policy.parent / "data.csv").write_text(f'kind,lines,topic\na,{cell},"x; y"\n')
    _, document = plan(run, policy, policy.with_name("data.csv"))
    assert [p["code"] for p in document["problems"]] == ([problem] if problem else [])


def test_an_empty_manifest_is_an_empty_plan(run: Run, policy: Path) -> None:
    (policy.parent / "data.jsonl").write_text("")
    status, document = plan(run, policy, policy.with_name("data.jsonl"))
    assert (status, document["records"]) == (0, 0)
    assert run("plan", policy, "--data", "data.jsonl").exit_code == 0


def test_the_words_list_counts_and_reasons(run: Run, policy: Path) -> None:
    data = write(policy.with_name("data.jsonl"))
    result = run("plan", policy, "--data", data, "--at", "2026-01-01")
    assert result.exit_code == 1
    assert "sample version 2 over 5 records" in result.stdout
    assert "limit           2  40.0%" in result.stdout
    assert "  line 5 (5): " in result.stdout
    assert "`z` is not a declared value" in result.stdout


def test_the_clock_is_part_of_the_plan(run: Run, policy: Path) -> None:
    data = write(policy.with_name("data.jsonl"), RECORDS[:1])
    result = run("plan", policy, "--data", data, "--at", "2030-01-01", "--format", "json")
    assert json.loads(result.stdout)["verdicts"]["refuse"] == 1


def test_control_characters_of_a_record_do_not_reach_the_terminal(run: Run, policy: Path) -> None:
    (policy.parent / "data.jsonl").write_text(
        json.dumps({**RECORDS[0], "id": "\x1b[31m", "kind": "\x1b]0;x\x07"})
    )
    assert "\x1b" not in run("plan", policy, "--data", "data.jsonl").stdout


def test_parquet_needs_pyarrow_and_says_so(run: Run, policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(policy.with_name("data.parquet"))
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    result = run("plan", policy, "--data", "data.parquet")
    assert result.exit_code == 2
    assert "gradwarden[parquet]" in result.stderr


def test_one_line_that_is_not_text_does_not_hide_the_others(run: Run, policy: Path) -> None:
    good = json.dumps(RECORDS[0]).encode()
    (policy.parent / "data.jsonl").write_bytes(
        good + b'\n{"kind": "\xff"}\n' + good + b"\n" + b"[" * 20_000 + b"\n"
    )
    status, document = plan(run, policy, policy.with_name("data.jsonl"))
    assert (status, document["records"]) == (1, 4)
    assert [(r["place"], r["problems"][0]["detail"]) for r in document["invalid"]] == [
        (2, "not UTF-8 text"),
        (4, "not valid JSON: nested too deeply"),
    ]


def test_few_are_not_shown_as_none_nor_most_as_all(run: Run, policy: Path) -> None:
    data = write(policy.with_name("data.jsonl"), RECORDS[:1] * 2_999 + RECORDS[3:4])
    words = run("plan", policy, "--data", data, "--at", "2026-01-01", "--set", "loss=0").stdout
    assert "limit       2,999  >99.9%" in words
    assert "refuse          1   <0.1%" in words
    assert "deep        2,999  >99.9%         1,499.5" in words


def test_a_manifest_without_records_is_warned_of(run: Run, policy: Path) -> None:
    (policy.parent / "data.jsonl").write_text("\n")
    result = run("plan", policy, "--data", "data.jsonl", "--format", "json")
    assert json.loads(result.stdout)["records"] == 0
    assert "warning[GW900]: `data.jsonl` holds no records" in result.stderr


def test_what_holds_the_bands_is_part_of_the_plan(run: Run, policy: Path) -> None:
    policy.write_text(policy.read_text() + "maintain kept { within deep  drift at most 2% }\n")
    data = write(policy.with_name("data.jsonl"))
    _, document = plan(run, policy, data)
    assert document["maintained"] == [
        {"rule": "kept", "bands": ["deep"], "terms": "drift at most 2%", "level": "hard"}
    ]
    words = run("plan", policy, "--data", data, "--at", "2026-01-01").stdout
    assert "maintains  bands  how               level" in words
    assert "kept       deep   drift at most 2%  hard" in words


WARD = """
policy ward version 1 language 1
examples { phi : bool   patient : string optional }
model { shallow = top 50%   deep = rest }
depth open { when not phi  reach all }
depth closed { when phi and has patient  reach shallow }
privacy patients { when phi and has patient  within shallow  epsilon 3  delta 1e-6  clip 1.0  unit patient }
"""


@pytest.fixture
def ward(run: Run, tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "ward.policy").write_text(WARD)
    (tmp_path / "ward.jsonl").write_text(
        '{"id": 1, "phi": true, "patient": "ann"}\n{"id": 2, "phi": false}\n'
    )
    return str(tmp_path / "ward.policy"), str(tmp_path / "ward.jsonl")


def test_the_noise_that_makes_a_budget_last_is_planned(run: Run, ward: tuple[str, str]) -> None:
    policy, data = ward
    options = ["--steps", "1000", "--sampling-rate", "0.01"]
    result = run("plan", policy, "--data", data, *options, "--format", "json")
    assert result.exit_code == 0
    planned = json.loads(result.stdout)["privacy"]
    (rule,) = planned["rules"]
    # The figures of docs/privacy.md, from the accounting library.
    assert (rule["rule"], rule["unit"], rule["noise_multiplier"]) == ("patients", "patient", 0.866)
    assert planned["lasting"]
    assert 1000 <= rule["lasts"] < 1010
    assert 2.9 < float(rule["epsilon"]) <= 3.0


def test_a_budget_that_does_not_last_fails_and_says_what_would(run: Run, ward: tuple[str, str]) -> None:
    policy, data = ward
    options = ["--steps", "5000", "--sampling-rate", "0.01", "--noise-multiplier", "1"]
    result = run("plan", policy, "--data", data, *options)
    assert result.exit_code == 1
    assert "2,061" in result.stdout
    assert "a spent budget refuses the rule's examples" in result.stdout
    needed = json.loads(run("plan", policy, "--data", data, *options, "--format", "json").stdout)
    noise = str(needed["privacy"]["rules"][0]["needed_noise_multiplier"])
    options[-1] = noise
    assert run("plan", policy, "--data", data, *options).exit_code == 0


def test_options_of_a_planned_run_go_together(run: Run, ward: tuple[str, str]) -> None:
    policy, data = ward
    for options in (["--steps", "5"], ["--sampling-rate", "0.1"], ["--noise-multiplier", "1"]):
        result = run("plan", policy, "--data", data, *options)
        assert result.exit_code == 2
        assert "go together" in result.stderr
