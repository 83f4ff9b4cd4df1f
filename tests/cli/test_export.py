"""`gradwarden export tiles`: what it writes and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gradwarden.runtime.ledger.merkle import leaf_hash
from tests.cli.conftest import Run

Write = Callable[..., Path]


def test_a_ledger_is_exported_with_its_head(run: Run, write_ledger: Write, here: Path) -> None:
    ledger = write_ledger()
    done = run("export", "tiles", ledger, "log", "--format", "json")
    document = json.loads(done.stdout)
    assert (done.exit_code, document["ok"], document["tiles"], document["bundles"]) == (0, True, 1, 1)
    size = document["size"]
    assert (here / "log" / "checkpoint").read_bytes() == Path(f"{ledger}.head").read_bytes()
    leaves = b"".join(leaf_hash(line) for line in ledger.read_bytes().splitlines()[:size])
    assert (here / "log" / "tile" / "0" / f"000.p/{size}").read_bytes() == leaves
    again = run("export", "tiles", ledger, "log")
    assert (again.exit_code, "0 of them new" in again.stdout) == (0, True)


def test_another_ledger_is_not_written_over_it(run: Run, write_ledger: Write) -> None:
    run("export", "tiles", write_ledger(), "log")
    refused = run("export", "tiles", write_ledger(sealed=False, name="other.ledger"), "log")
    assert refused.exit_code == 1
    assert "GW613" in refused.stderr
    head = run("export", "tiles", "other.ledger", "new", "--head", "run.ledger.head", "--format", "json")
    assert (head.exit_code, json.loads(head.stdout)["ok"]) == (1, False)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["tiles", "missing", "log"], "missing"),
        (["tiles", "run.ledger", "run.ledger"], "run.ledger"),
        (["tiles", "run.ledger", "spoilt"], "GW610"),
        (["boxes", "run.ledger", "log"], "tiles"),
        (["tiles", "run.ledger", "log", "--head", "missing"], "missing"),
    ],
)
def test_misuse_is_told(run: Run, write_ledger: Write, here: Path, arguments: list[str], told: str) -> None:
    write_ledger()
    (here / "spoilt").mkdir()
    (here / "spoilt" / "checkpoint").write_bytes(b"\xff\n\n")
    result = run("export", *arguments)
    assert result.exit_code == 2
    assert told in result.stderr
    assert "GW999" not in result.stderr
