"""`gradwarden history`: which steps led to the weights of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.campaign.genuine import genuine
from tests.cli.conftest import Run


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """Saves after 2 steps, goes back to that after 4 and after 6, saves after 7."""
    path = tmp_path / "run.ledger"
    path.write_bytes(genuine("rewound").content)
    return path


def test_the_history_of_each_checkpoint_is_told(run: Run, ledger: Path) -> None:
    found = json.loads(run("history", ledger, "--format", "json").stdout)
    assert found["checkpoint"] is None
    spans = {
        name: [(one["first"], one["last"]) for one in found[name]["stretches"]]
        for name in ("effective", "abandoned")
    }
    assert spans == {"effective": [(0, 1), (6, 6)], "abandoned": [(2, 5)]}
    assert (found["effective"]["steps"], found["abandoned"]["steps"]) == (3, 4)
    assert [one["abandoned"] for one in found["rewinds"]] == [[[2, 4]], [[4, 6]]]
    early = json.loads(run("history", ledger, "two.safetensors", "--format", "json").stdout)
    digest = early["checkpoint"]["digest"]
    assert early["effective"]["stretches"] == [
        {"first": 0, "last": 1, "lost": 0, "committed": 2, "refused": 0}
    ]
    assert json.loads(run("history", ledger, digest[:8], "--format", "json").stdout) == early


def test_people_are_told_the_same(run: Run, ledger: Path) -> None:
    result = run("history", ledger, "model.safetensors")
    assert result.exit_code == 0
    assert "3 steps led to them; 4 steps abandoned" in result.stdout
    assert result.stdout.count("went back to `two.safetensors`") == 2
    told = run("log", ledger, "--kind", "rewound").stdout
    assert "to two.safetensors; abandoned steps: 2..3" in told


def test_what_cannot_be_told_is_misuse(run: Run, ledger: Path) -> None:
    result = run("history", ledger, "none.safetensors")
    assert (result.exit_code, "names no checkpoint" in result.stderr) == (2, True)
    content = ledger.read_bytes()
    ledger.write_bytes(content.replace(b'"loss":"', b'"loss":"1', 1))
    result = run("history", ledger)
    assert (result.exit_code, "see `gradwarden verify`" in result.stderr) == (2, True)
