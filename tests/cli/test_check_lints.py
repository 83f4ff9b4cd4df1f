"""`gradwarden check`: mending, and lints that are told the day, the data or the planned run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run

CLUMSY = """policy clumsy version 1
examples { kind : one of a, b  consent : bool }
model { m = rest }
# grants
depth d { when consent == true and kind == a  reach all }  # kept
"""
MENDED = CLUMSY.replace("version 1", "version 1 language 1").replace("consent == true", "consent")

DATED = """policy dated version 1 language 1
examples { kind : one of a, b  received : date }
model { shallow = top 50%  deep = rest }
depth d { when kind == a  reach all }
suppress s { when kind == b  because "x" }
waive s { approved by "A"  until 2027-01-01  because "y" }
retain r { from 2026-02-01  until 2026-12-01 }
suppress early { when today < 2026-03-01  cap deep at 0  because "x" }
suppress stale { when today - received > 30 days  because "x" }
"""

PRIVATE = """policy private version 1 language 1
examples { kind : one of a, b  who : string }
model { m = rest }
depth d { reach all }
privacy p { when kind == b  within m  epsilon 3  delta 0.001  clip 1  unit who }
"""


@pytest.fixture
def clumsy(here: Path) -> Path:
    path = here / "clumsy.policy"
    path.write_text(CLUMSY)
    return path


def codes(run: Run, *arguments: object) -> list[str]:
    document = json.loads(run("check", *arguments, "--format", "json").stdout)
    return [finding["code"] for finding in document["findings"]]


def test_fix_mends_and_says_what(run: Run, clumsy: Path) -> None:
    result = run("check", clumsy, "--fix", "--strict")
    assert clumsy.read_text() == MENDED
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        f"mended {clumsy}:1:1: [GW501] the language version is not pinned",
        f"mended {clumsy}:5:16: [GW537] a condition is not compared with `true` or `false`",
        "1 file checked: no findings",
    ]
    assert run("check", clumsy, "--fix").stdout == "1 file checked: no findings\n"


def test_diff_shows_and_changes_nothing(run: Run, clumsy: Path) -> None:
    result = run("check", clumsy, "--diff")
    assert result.exit_code == 0
    assert "-policy clumsy version 1\n+policy clumsy version 1 language 1\n" in result.stdout
    assert f"+++ {clumsy} (mended)" in result.stdout
    assert run("check", clumsy, "--fix", "--diff").stdout == result.stdout
    assert clumsy.read_text() == CLUMSY


def test_json_lists_what_was_mended_and_links_pages(run: Run, clumsy: Path) -> None:
    found = json.loads(run("check", clumsy, "--format", "json").stdout)
    assert {finding["page"] for finding in found["findings"]} == {
        "docs/rules/GW501.md",
        "docs/rules/GW537.md",
    }
    document = json.loads(run("check", clumsy, "--fix", "--format", "json").stdout)
    assert [finding["code"] for finding in document["mended"]] == ["GW501", "GW537"]
    assert document["findings"] == []


def test_files_with_errors_and_shared_files_are_left_as_they_are(run: Run, clumsy: Path) -> None:
    broken = clumsy.with_name("broken.policy")
    broken.write_text(CLUMSY.replace("kind == a", "kind == z"))
    shared = clumsy.with_name("shared.policy")
    shared.write_text("let idle = kind == a and kind == a\n")
    clumsy.write_text(CLUMSY.replace("version 1\n", 'version 1\nimport "shared.policy"\n'))
    before = broken.read_text(), shared.read_text()
    assert run("check", ".", "--fix").exit_code == 1
    assert (broken.read_text(), shared.read_text()) == before
    assert "language 1" in clumsy.read_text()


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("2026-01-15", []),
        ("2026-02-01", ["GW519"]),
        ("2026-03-01", ["GW519", "GW519"]),
        ("2026-12-01", ["GW519", "GW519", "GW519"]),
        ("2027-01-01", ["GW517", "GW519", "GW519", "GW519"]),
        ("2023-06-01", ["GW518"]),
    ],
)
def test_dates_are_judged_by_the_day(run: Run, here: Path, at: str, expected: list[str]) -> None:
    (here / "dated.policy").write_text(DATED)
    assert sorted(codes(run, "dated.policy", "--at", at)) == expected


def test_the_length_of_an_epoch_is_held_against_terms(run: Run, here: Path) -> None:
    (here / "dated.policy").write_text(DATED)
    at = ("--at", "2026-11-20")
    assert "GW523" not in codes(run, "dated.policy", *at)
    assert "GW523" not in codes(run, "dated.policy", *at, "--epoch-days", "11")
    assert "GW523" in codes(run, "dated.policy", *at, "--epoch-days", "12")


def write_data(here: Path, *records: dict[str, object]) -> None:
    (here / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_grants_are_held_against_the_data(run: Run, here: Path) -> None:
    (here / "p.policy").write_text("""policy p version 1 language 1
examples { kind : one of a, b, c  good : bool }
model { shallow = top 50%  deep = rest }
depth d { when kind == a  reach all }
depth e { when kind == b  reach shallow at 0.5 }
suppress s { when not good  cap deep at 0.25  because "x" }
suppress t { when kind == a and step < 10  cap deep at 0  because "x" }
""")
    write_data(here, {"kind": "a", "good": False}, {"kind": "c", "good": True}, {"kind": "z", "good": True})
    result = run("check", "p.policy", "--data", "data.jsonl", "--strict")
    assert result.exit_code == 1
    assert "`d` grants `deep` at 1, and no example of the data gets more than 0.25" in result.stderr
    assert "no example of the data matches `e`" in result.stderr
    assert "no example of the data has `b` in `kind`" in result.stderr
    assert result.stdout == "1 file checked: 2 warnings, 1 note\n"
    write_data(here, {"kind": "a", "good": True}, {"kind": "b", "good": False})
    assert (
        run("check", "p.policy", "--data", "data.jsonl", "--strict").stdout == "1 file checked: no findings\n"
    )
    write_data(here)
    assert codes(run, "p.policy", "--data", "data.jsonl") == []


def test_delta_is_held_against_the_units_of_the_data(run: Run, here: Path) -> None:
    (here / "private.policy").write_text(PRIVATE)
    records = [{"kind": "b", "who": f"p{n % 999}"} for n in range(2_000)]
    write_data(here, *records, {"kind": "a", "who": "other"})
    assert codes(run, "private.policy", "--data", "data.jsonl") == []
    write_data(here, *records, {"kind": "b", "who": "other"}, {"kind": "a", "who": "x"})
    assert codes(run, "private.policy", "--data", "data.jsonl") == ["GW526"]


def test_a_budget_is_held_against_the_planned_run(run: Run, here: Path) -> None:
    from gradwarden.runtime.privacy.accounting import steps_within

    (here / "private.policy").write_text(PRIVATE)
    lasts = steps_within(3.0, 0.001, 0.1, 1.0)
    terms = ("--sampling-rate", "0.1", "--noise-multiplier", "1")
    assert codes(run, "private.policy", "--steps", lasts, *terms) == []
    result = run("check", "private.policy", "--steps", lasts + 1, *terms)
    assert f"the budget of `p` lasts {lasts:,} of {lasts + 1:,} steps" in result.stderr


def test_a_planned_run_without_the_accounting_library_is_told_so(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradwarden.runtime.privacy import accounting

    def missing(_name: str) -> None:
        raise ImportError

    (here / "private.policy").write_text(PRIVATE.replace("0.001", "0.0017"))
    accounting._library.cache_clear()
    monkeypatch.setattr(accounting, "import_module", missing)
    result = run(
        "check", "private.policy", "--steps", 77, "--sampling-rate", "0.123", "--noise-multiplier", "1.234"
    )
    accounting._library.cache_clear()
    assert result.exit_code == 2
    assert "pip install 'gradwarden[privacy]'" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing argument"),
        (["clumsy.policy", "--steps", "5"], "go together"),
        (["clumsy.policy", "--at", "soon"], "not a date"),
        (["clumsy.policy", "--epoch-days", "0"], "--epoch-days"),
        (["clumsy.policy", "clumsy.policy", "other.policy", "--data", "x.jsonl"], "about one policy"),
        (["clumsy.policy", "--data", "absent.jsonl"], "no such file"),
        (["clumsy.policy", "--data", "data.txt"], "told by its ending"),
        (["--explain", "GW999"], "no code `GW999`"),
    ],
)
def test_misuse_is_told(run: Run, clumsy: Path, arguments: list[str], said: str) -> None:
    result = run("check", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_explain_shows_the_page_of_a_code_or_a_name(run: Run) -> None:
    page = run("check", "--explain", "GW510").stdout
    assert page.startswith("# GW510: unreachable-rule\n")
    assert "## How to mend it" in page
    assert run("check", "--explain", "gw510").stdout == page
    assert run("check", "--explain", "unreachable-rule").stdout == page
    assert "undeclared attribute" in run("check", "--explain", "GW201").stdout
    assert "did you mean `unreachable-rule`?" in run("check", "--explain", "unreachable-rules").stderr
