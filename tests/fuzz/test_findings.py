"""What the fuzzers found, an input each: every one crashed, hung or broke a promise before it was mended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gradwarden.cli import manifest
from gradwarden.cli.failures import InputError
from gradwarden.policy import ModelMap, PolicyError, format_policy, parse_policy
from gradwarden.policy.errors import COMPARED
from gradwarden.policy.program_json import program_from_json
from gradwarden.policy.source import Source
from gradwarden.policy.testing.yaml_text import MAX_FAULTS, read_yaml
from tests.fuzz.targets import programs

HEADER = "policy p version 1 language 1\nmodel { deep = rest }\n"


def _faults(text: str) -> PolicyError:
    with pytest.raises(PolicyError) as caught:
        parse_policy(text)
    return caught.value


@pytest.mark.parametrize(
    "text",
    [
        "curriculum c { during step0..5 reach all }",
        "curriculum c { during step0.5\n.. 25 reach all }",
        "depthd { reach all }",
        "depth d { reachall }",
        "suppress s { capdeep at 0 }",
        "retain r { untilstep 5 }",
        "maxweight 2",
    ],
)
def test_a_keyword_ends_where_its_word_ends(text: str) -> None:
    with pytest.raises(PolicyError) as caught:
        format_policy(text)
    assert caught.value.diagnostics[0].code in ("GW101", "GW102")


@pytest.mark.parametrize("deep", ["-" * 80_000, "(" * 80_000, "not " * 25_000, "a implies " * 15_000])
def test_a_fault_far_down_is_told_in_time_that_grows_with_the_text(deep: str) -> None:
    assert len(_faults(f"{HEADER}depth d {{ when {deep} }}").diagnostics) <= 2


def test_faults_of_single_tokens_are_counted_like_others() -> None:
    error = _faults(HEADER + "gradient { deep at most 1e9999 }\n" * 20_000)
    assert [d.code for d in error.diagnostics].count("GW109") == 100
    assert "GW114" in [d.code for d in error.diagnostics]


def test_suggestions_are_not_sought_without_end() -> None:
    attributes = "".join(f"attribute_{i} : bool\n" for i in range(999))
    rules = "".join(f"depth d{i} {{ when atribute_{i} reach all }}\n" for i in range(3_000))
    error = _faults(f"{HEADER}examples {{\n{attributes}}}\n{rules}")
    suggested = [d for d in error.diagnostics if d.help and d.help.startswith("did you mean")]
    assert 1 <= len(suggested) <= 10
    long = "a" * (COMPARED + 1)
    assert "did you mean" not in str(
        _faults(f'{HEADER}examples {{ k : one of "{long}" }}\nlet x = k == "{long}b"')
    )


@pytest.mark.parametrize("unit", ["a: 1\n", "*a : 1\n", "- &x 1\n", "- !t 2\n"])
def test_faults_of_a_yaml_text_are_kept_up_to_a_limit(unit: str) -> None:
    with pytest.raises(PolicyError) as caught:
        read_yaml(Source("x.yaml", unit * 100_000))
    assert len(caught.value.diagnostics) == MAX_FAULTS


def test_half_a_character_is_no_yaml() -> None:
    with pytest.raises(PolicyError, match="GW410"):
        read_yaml(Source("x.yaml", "a: \ud800"))
    with pytest.raises(PolicyError, match="GW400"):
        ModelMap.from_yaml("a: \ud800")


def test_a_deeply_nested_model_map_is_refused_at_once() -> None:
    for text in ("[" * 200_000, "a: " + "{b: " * 200_000, "- " * 200_000 + "x"):
        with pytest.raises(PolicyError, match=r"GW400.*nest"):
            ModelMap.from_yaml(text)


def test_a_header_of_many_columns_is_checked_in_one_pass(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text(",".join(f"c{i}" for i in range(100_000)) + ",c7\n")
    with pytest.raises(InputError, match="two columns named `c7`"):
        list(manifest.open_manifest(path, programs()[0][0]).pieces)


def test_records_with_names_of_their_own_make_shorter_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "MAX_CELLS", 100)
    path = tmp_path / "data.jsonl"
    rows: list[dict[str, Any]] = [{f"name_{i}": i} for i in range(45)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pieces = list(manifest.open_manifest(path, programs()[0][0]).pieces)
    assert [len(piece.places) for piece in pieces] == [10, 10, 10, 10, 5]
    assert all(len(piece.columns) <= 10 for piece in pieces)


def test_whole_numbers_of_a_program_are_written_as_such() -> None:
    """JSON Schema takes 1.0 for an integer, also in a list of weights."""
    text = json.dumps(programs()[0][1], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert '"max_weight":1000000' in text
    grants = text.index('"weights":[')
    weights = text[: grants + 11] + "1.0," + text[grants + 11 :]
    for hostile in (weights, text.replace('"max_weight":1000000', '"max_weight":1e6')):
        with pytest.raises(PolicyError, match="GW442"):
            program_from_json(hostile)


@pytest.mark.parametrize(
    ("hostile", "code"),
    [
        ('{"and":' * 100_000, "GW440"),
        ("[" * 1_000_000, "GW440"),
        ('{"format":1,"format":1}', "GW440"),
        ('{"max_weight":NaN}', "GW440"),
        ('{"max_weight":-Infinity}', "GW440"),
        ('{"max_weight":' + "9" * 5_000 + "}", "GW440"),
        ('{"max_weight":' + "9" * 400 + "}", "GW441"),
        ('"\\ud800"', "GW441"),
        ("\ud800", "GW440"),
        ("", "GW440"),
        ("\ufeff{}", "GW440"),
        ("null", "GW441"),
    ],
    ids=range(12),
)
def test_hostile_json_is_no_program(hostile: str, code: str) -> None:
    with pytest.raises(PolicyError, match=code):
        program_from_json(hostile)
