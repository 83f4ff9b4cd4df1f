"""Crashes of every sort break no promise of a ledger; the whole campaign is `make soak`'s."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gradwarden.runtime.ledger import recovery
from gradwarden.runtime.ledger.writer import Writer
from tests.campaign.failures import faults
from tests.campaign.power import power_cuts
from tests.campaign.promises import Campaign
from tests.docs.pages import ROOT


def campaign(out: Path, *counts: object) -> dict[str, Any]:
    """Run a campaign in a process that has no threads, since it forks."""
    command = [sys.executable, "-m", "tests.campaign.crashes", "--out", out, *counts]
    result = subprocess.run(list(map(str, command)), cwd=ROOT, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(out.read_text("utf-8"))
    return report


def test_a_short_campaign_finds_nothing_and_meets_what_it_is_for(tmp_path: Path) -> None:
    counts = ("--kills", 10, "--images", 50, "--faults", 25, "--limits", 1, "--clocks", 12)
    report = campaign(tmp_path / "report.json", *counts)
    assert report["findings"] == []
    seen = {name for name, count in report["seen"].items() if count}
    assert {
        "promises before a kill",
        "second writers refused",
        "torn tails set aside",
        "images with holes",
        "crashes in a recovered ledger",
        "failed on opening",
        "failed in writing",
        "stopped by the kernel",
    } <= seen


def test_a_writer_that_does_not_sync_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Writer, "_sync", lambda self: None)
    broken = Campaign(tmp_path)
    power_cuts(broken, 25, 1)
    assert any("promised entries are lost" in finding["what"] for finding in broken.findings)


def test_a_recovery_that_knows_no_lost_blocks_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_lost_blocks", lambda rest, offset: False)
    broken = Campaign(tmp_path)
    power_cuts(broken, 50, 1)
    assert any("GW602" in finding["what"] for finding in broken.findings)


def test_a_writer_that_goes_on_after_a_failure_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Writer._write

    def stubborn(self: Writer, batch: Any) -> None:
        with suppress(OSError):
            write(self, batch)
        with self._done:
            self._queue.written = self._queue.size
            self._done.notify_all()

    monkeypatch.setattr(Writer, "_write", stubborn)
    broken = Campaign(tmp_path)
    faults(broken, 12, 1)
    assert broken.findings


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_a_thousand_kills_and_twenty_thousand_power_cuts_break_no_promise(tmp_path: Path) -> None:
    report = campaign(tmp_path / "report.json", "--sweep")
    assert report["findings"] == []
