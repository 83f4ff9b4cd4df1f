"""`gradwarden archive`: what it says, and what `verify` says with and without the archives."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest

from tests.campaign.genuine import RUN, genuine
from tests.cli.conftest import Run

pytest.importorskip("zstandard")


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    base = genuine("plain")
    path = tmp_path / "run.ledger"
    path.write_bytes(base.content)
    Path(f"{path}.head").write_bytes(base.sidecar)
    (tmp_path / "run.pub").write_text(f"{RUN.public.vkey}\n")
    return path


def test_a_ledger_is_archived_and_verified_as_before(run: Run, ledger: Path) -> None:
    key = ledger.parent / "run.pub"
    before = json.loads(run("verify", ledger, "--key", key, "--format", "json").stdout)
    done = json.loads(run("archive", ledger, "--key", key, "--keep", 14, "--format", "json").stdout)
    assert (done["ok"], done["first"]) == (True, 0)
    assert Path(done["file"]).stat().st_size == done["compressed"] < done["bytes"]
    result = run("archive", ledger, "--key", key)
    assert result.exit_code == 0
    assert f"entries {done['end']:,} to" in result.stdout
    assert json.loads(run("verify", ledger, "--key", key, "--format", "json").stdout) == before
    result = run("archive", ledger)
    assert (result.exit_code, "nothing to archive" in result.stderr) == (2, True)


def test_what_is_missing_is_named(run: Run, ledger: Path) -> None:
    key = ledger.parent / "run.pub"
    (ledger.parent / "run.secret").write_text(sha256(b"plain").hexdigest() + "\n")
    done = json.loads(run("archive", ledger, "--format", "json").stdout)
    Path(done["file"]).unlink()
    result = run("verify", ledger, "--key", key)
    assert result.exit_code == 1
    assert result.stdout.startswith("INCOMPLETE")
    assert "warning[archive_missing]" in result.stderr
    assert "run.ledger.archive-0.zst" in result.stderr
    assert f"the first {done['end']} entries" in result.stdout.split("not checked")[1]
    result = run("log", ledger)
    assert (result.exit_code, "GW605" in result.stderr) == (2, True)
    for asked in (
        ("history", ledger),
        ("trace", "index", ledger),
        ("report", ledger, "--key", key, "-o", ledger.parent / "report.html"),
        ("receipt", "make", ledger, "--id", "ea0", "--secret", ledger.parent / "run.secret"),
    ):
        refused = run(*asked)
        assert (refused.exit_code, refused.stdout, "error[GW605]" in refused.stderr) == (2, "", True), asked
    head = ledger.parent / "kept.note"
    first = done["end"]
    head.write_bytes(genuine("plain").heads[first])
    grown = ledger.parent / "grown.proof"
    assert run("proof", ledger, "--from", head, "-o", grown).exit_code == 0
    assert run("verify-proof", grown, "--old", head, "--key", key).exit_code == 0
