"""The example end to end, in small: packages in, a verified ledger and a table out, tampering found."""

import json
from io import StringIO

import pytest
from rich.console import Console

from examples.code_licences.model import GPTConfig
from examples.code_licences.settings import Settings
from examples.code_licences.train import run, schedule
from examples.run_files import RunFiles
from gradwarden.runtime.ledger.reader import read_entries

SMALL = Settings(steps=5, batch=8, cap=200_000, model=GPTConfig(layers=2, width=16, heads=2, context=32))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "out"
    console = Console(file=StringIO(), width=120)
    holds = run(SMALL, folder, console)
    return holds, RunFiles(folder), console.file.getvalue()


def test_the_ledger_holds_and_the_tampering_is_found(outcome):
    holds, _, printed = outcome
    assert holds
    assert "The change was found." in printed


def test_the_ledger_seals_what_the_summary_says(outcome):
    _, files, _ = outcome
    summary = json.loads(files.summary.read_text())
    last = [entry for entry in read_entries(files.ledger) if entry.kind == "sealed"]
    assert last[0].body["committed"] == summary["steps"]["committed"] == 5
    seen = sum(group["examples"] for group in summary["learned_from"].values())
    assert seen == 5 * 8


def test_what_may_not_be_learned_from_gave_nothing(outcome):
    _, files, _ = outcome
    for licence, group in json.loads(files.summary.read_text())["learned_from"].items():
        if licence in ("unknown", "other") or "GPL" in licence:
            assert not any(group["weights"].values())
        if licence == "MPL-2.0":
            assert group["weights"]["middle"] == group["weights"]["deep"] == 0


def test_the_ledger_names_no_file(outcome):
    _, files, _ = outcome
    ledger = files.ledger.read_text()
    for line in (files.folder / "manifest.jsonl").read_text().splitlines():
        assert json.loads(line)["id"] not in ledger


def test_every_family_is_in_the_table_even_where_nothing_is_installed(outcome):
    _, _, printed = outcome
    table = printed.partition("What the model learned from what")[2]
    for family in ("permissive", "weak copyleft", "strong copyleft", "proprietary", "unknown"):
        assert family in table


def test_an_earlier_run_is_moved_aside_not_overwritten(tmp_path):
    files = RunFiles(tmp_path / "out")
    assert files.make_room() is None
    for text in ("first", "second"):
        files.ledger.write_text(text)
        files.make_room()
    assert (tmp_path / "out.earlier-1" / "run.ledger").read_text() == "first"
    assert (tmp_path / "out.earlier-2" / "run.ledger").read_text() == "second"


def test_the_learning_rate_rises_then_falls_to_a_tenth():
    settings = Settings(steps=100, warmup=10)
    assert schedule(0, settings) == pytest.approx(0.1)
    assert schedule(10, settings) == pytest.approx(1.0)
    assert schedule(100, settings) == pytest.approx(0.1)
