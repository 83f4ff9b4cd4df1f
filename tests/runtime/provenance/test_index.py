"""An index is what its ledger says, row by row, and is refused where it is not."""

from __future__ import annotations

import json
from base64 import b64encode
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.dataset
import pyarrow.parquet
import pytest

from gradwarden.runtime.errors import LedgerDamaged, TraceError
from gradwarden.runtime.ledger.keys import Signer
from gradwarden.runtime.provenance import tables
from gradwarden.runtime.provenance.index import build_index, check_index, index_folder, open_index
from tests.cli.conftest import step
from tests.runtime.provenance.small_runs import (
    Record,
    Writer,
    commitment,
    read_records,
    read_uses,
    write_run,
)


@pytest.fixture(autouse=True)
def small_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several partitions, and several row groups in each."""
    monkeypatch.setattr(tables, "BLOCK", 16)
    monkeypatch.setattr(tables, "ROWS", 8)


@pytest.fixture
def ledger(tmp_path: Path, run_signer: Signer) -> Path:
    return write_run(tmp_path / "run.ledger", run_signer, recording=True)


def read(path: Path, table: str) -> list[dict[str, Any]]:
    """Read a table as any engine that knows partitions does."""
    found = pyarrow.dataset.dataset(index_folder(path) / table, partitioning="hive").to_table()
    return found.to_pylist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("sealed", [True, False])
def test_every_use_of_the_ledger_is_a_row(tmp_path: Path, run_signer: Signer, sealed: bool) -> None:
    path = write_run(tmp_path / "run.ledger", run_signer, seed=3, sealed=sealed)
    index = build_index(path, [run_signer.public])
    names = {row["example"]: bytes(row["commitment"]).hex() for row in read(path, "examples")}
    steps = {row["step"]: row for row in read(path, "steps")}
    verdicts = {row["decision"]: row["verdict"] for row in read(path, "decisions")}
    rows = read(path, "uses")
    expected = list(read_uses(path))
    assert [
        (row["step"], names[row["example"]], verdicts[row["decision"]], row["learned"]) for row in rows
    ] == [(use.step, use.commitment, use.decision["verdict"], use.learned) for use in expected]
    assert all(steps[use.step]["entry"] == use.entry for use in expected)
    assert all(steps[use.step]["outcome"] == use.outcome for use in expected)
    assert all(row["block"] == row["step"] // 16 for row in rows)
    assert (index.uses, index.steps) == (len(expected), len(steps))
    groups = pyarrow.parquet.ParquetFile(index_folder(path) / "uses" / "block=0" / "part-0.parquet")
    assert groups.num_row_groups > 1


@pytest.mark.parametrize("sealed", [True, False])
def test_every_contribution_that_a_taken_step_records_is_a_row(
    tmp_path: Path, run_signer: Signer, sealed: bool
) -> None:
    """Of refused steps, and of one that was not heard of again, there are none."""
    writer = Writer(tmp_path / "run.ledger", run_signer, 3, recording=True)
    writer.train(40)
    writer.propose(4)
    writer.record()
    refusal = {"gate": "gradient", "reason": "not_finite", "detail": "a loss"}
    writer.ledger.append("refused", {"step": writer.next_step - 1, **refusal})
    writer.crash()
    writer.train(10)
    if not sealed:
        writer.propose(4)
        writer.record()
    writer.ledger.close({"steps": 0, "committed": 0, "refused": 0, "examples": 0} if sealed else None)
    build_index(writer.path)
    names = {row["example"]: bytes(row["commitment"]).hex() for row in read(writer.path, "examples")}
    added, moved = read(writer.path, "contributions"), read(writer.path, "moves")
    rows = [Record(row["step"], names[row["example"]], row["band"], row["norm"]) for row in added]
    rows += [Record(row["step"], "", row["band"], row["norm"]) for row in moved]
    assert Counter(rows) == Counter(read_records(writer.path))
    assert {row["norm"] is None for row in added} == {True, False}
    assert len({row["block"] for row in added}) > 1
    assert all(row["block"] == row["step"] // 16 for row in [*added, *moved])


def test_what_is_recorded_in_a_way_that_makes_no_sense_gives_no_row(
    tmp_path: Path, run_signer: Signer
) -> None:
    """`verify` tells of it; the rest of the index stands."""
    writer = Writer(tmp_path / "run.ledger", run_signer, 3)
    writer.known = 1
    writer.propose(2)
    for number, first, band, text in [
        *((0, 0, "shallow", "0.5"), (1, 0, "deep", "1"), (0, 2**52, "deep", "1"), (0, 0, "nowhere", "1")),
        *((0, 0, "deep", text) for text in ("one", "nan", "1e999", "-1", "")),
    ]:
        writer.ledger.append("contributed", {"step": number, "first": first, "norms": {band: [text] * 3}})
        writer.ledger.append("moved", {"step": number, "norms": {band: text}})
    writer.settle()
    writer.ledger.close()
    build_index(writer.path)
    added, moved = read(writer.path, "contributions"), read(writer.path, "moves")
    assert [(row["step"], row["band"], row["norm"]) for row in added] == [(0, "shallow", 0.5)] * 2
    assert [(row["band"], row["norm"]) for row in moved] == [("shallow", 0.5), ("deep", 1), ("nowhere", 1)]


@pytest.mark.parametrize("version", ["gradwarden/trace/1", "gradwarden/trace/99"])
def test_an_index_of_another_version_is_refused_and_made_anew(ledger: Path, version: str) -> None:
    index = build_index(ledger)
    told = json.loads((index.folder / "index.json").read_text())
    (index.folder / "index.json").write_text(json.dumps({**told, "format": version}))
    with pytest.raises(TraceError, match="was made by another version") as caught:
        open_index(ledger)
    assert "trace index" in str(caught.value.help)
    assert build_index(ledger) == index == open_index(ledger)


@pytest.mark.parametrize("table", ["contributions", "moves"])
def test_a_table_that_is_said_to_be_empty_is_found_by_making_it_again(ledger: Path, table: str) -> None:
    """Questions do not look into a table without rows."""
    folder = build_index(ledger).folder
    told = json.loads((folder / "index.json").read_text())
    for path, file in told["files"].items():
        file["rows"] = 0 if path.startswith(table) else file["rows"]
    (folder / "index.json").write_text(json.dumps(told))
    assert not open_index(ledger).has_rows(table)
    with pytest.raises(TraceError, match="something else of itself"):
        check_index(ledger)


def test_an_index_that_was_made_here_passes_both_checks(ledger: Path) -> None:
    built = build_index(ledger)
    assert open_index(ledger) == built
    assert check_index(ledger) == built
    assert [path.name for path in ledger.parent.iterdir() if "trace." in path.name] == []


def test_an_index_of_another_ledger_is_refused(ledger: Path, tmp_path: Path, run_signer: Signer) -> None:
    build_index(ledger)
    other = write_run(tmp_path / "other.ledger", run_signer, seed=1)
    index_folder(ledger).rename(index_folder(other))
    with pytest.raises(TraceError, match="was made from another ledger"):
        open_index(other)


def test_any_changed_file_is_refused(ledger: Path) -> None:
    index = build_index(ledger)
    for file in index.files:
        path = index.folder / file.path
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(TraceError, match="is not the file that was made"):
            open_index(ledger)
        path.write_bytes(content)
    (index.folder / index.files[0].path).unlink()
    with pytest.raises(TraceError, match="cannot be read"):
        open_index(ledger)


@pytest.mark.parametrize("change", ["root", "tip", "end", "files", "bands", "format"])
def test_what_an_index_says_of_itself_cannot_be_changed(ledger: Path, change: str) -> None:
    """A file that vouches for itself can be forged; making it again tells."""
    folder = build_index(ledger).folder
    told = json.loads((folder / "index.json").read_text())
    value = told[change]
    told[change] = [*value[:-1], "x"] if isinstance(value, list) else "00" * 32 if change == "root" else None
    (folder / "index.json").write_text(json.dumps(told))
    with pytest.raises(TraceError):
        check_index(ledger)


def test_a_forged_table_with_a_matching_digest_is_found_by_making_it_again(ledger: Path) -> None:
    folder = build_index(ledger).folder
    path = folder / "weights" / "part-0.parquet"
    table = pyarrow.parquet.read_table(path)
    columns = table.to_pydict()
    columns["weight"][0] = 0
    pyarrow.parquet.write_table(pyarrow.table(columns, schema=table.schema), path, row_group_size=8)
    told = json.loads((folder / "index.json").read_text())
    from hashlib import sha256

    told["files"]["weights/part-0.parquet"]["sha256"] = sha256(path.read_bytes()).hexdigest()
    (folder / "index.json").write_text(json.dumps(told))
    open_index(ledger)  # it cannot tell
    with pytest.raises(TraceError, match="has other rows"):
        check_index(ledger)


def test_an_index_lasts_while_its_ledger_grows(tmp_path: Path, run_signer: Signer) -> None:
    writer = Writer(tmp_path / "run.ledger", run_signer, 0)
    writer.train(3)
    writer.ledger.flush()
    index = build_index(writer.path)
    writer.train(3)
    writer.ledger.close()
    assert open_index(writer.path).behind > 0
    with pytest.raises(TraceError, match="the ledger has"):
        check_index(writer.path)
    assert build_index(writer.path).size > index.size


def test_no_index_is_made_of_a_ledger_that_was_altered(ledger: Path, run_signer: Signer) -> None:
    lines = ledger.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"epoch":0', b'"epoch":1')
    ledger.write_bytes(b"".join(lines))
    with pytest.raises(LedgerDamaged) as caught:
        build_index(ledger)
    assert caught.value.index == 2
    assert not index_folder(ledger).exists()


def test_an_index_can_be_made_of_what_given_keys_have_signed_only(ledger: Path) -> None:
    with pytest.raises(TraceError, match="no given key has signed it"):
        build_index(ledger, [Signer.generate("other").public])


def test_steps_out_of_turn_and_unknown_decisions_give_no_index(tmp_path: Path, run_signer: Signer) -> None:
    for number, spoil in enumerate([{"next_step": 7}, {"known": 99}]):
        writer = Writer(tmp_path / f"{number}.ledger", run_signer, 0)
        writer.train(8)
        vars(writer).update(spoil if number else {"next_step": 20})
        writer.train(8)
        writer.ledger.close()
        with pytest.raises(TraceError, match="no index can be made"):
            build_index(writer.path)


@pytest.mark.parametrize("number", [99, 2**53 - 1])
def test_a_decision_that_is_not_declared_gives_no_index_however_large_its_number(
    tmp_path: Path, run_signer: Signer, number: int
) -> None:
    writer = Writer(tmp_path / "run.ledger", run_signer, 0)
    body = {**step(0, number), "commitments": b64encode(commitment(0)).decode()}
    writer.ledger.append("step", body)
    writer.ledger.close()
    with pytest.raises(TraceError, match="a decision that is not declared"):
        build_index(writer.path)


def test_a_folder_that_is_no_index_is_never_removed(ledger: Path) -> None:
    index_folder(ledger).mkdir()
    (index_folder(ledger) / "thesis.tex").write_text("ten years")
    with pytest.raises(TraceError, match="is no index"):
        build_index(ledger)
    assert (index_folder(ledger) / "thesis.tex").exists()
