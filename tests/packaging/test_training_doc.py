"""The code in docs/training.md runs as it stands, and does what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gradwarden.runtime.ledger.keys import PublicKey
from gradwarden.runtime.ledger.reader import read_entries
from gradwarden.runtime.verification.verify import verify_ledger

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
SCRIPT = next(block for block in BLOCKS if block.startswith("# train.py"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def names(folder: Path) -> dict[str, Any]:
    """What the page's program has defined when it has run, without the script for several processes."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    before = Path.cwd()
    os.chdir(folder)
    try:
        for block in BLOCKS:
            if block != SCRIPT:
                exec(compile(block, "docs/training.md", "exec"), found)
    finally:
        os.chdir(before)
    return found


def report_of(folder: Path, ledger: str) -> Any:
    return verify_ledger(folder / ledger, [PublicKey.load(folder / "run.pub")])


def test_the_program_leaves_a_ledger_that_verifies(names, folder):
    report = report_of(folder, "run.ledger")
    assert report.ok
    assert report.facts["committed"] == 8 + 1 + 1 + 4 + 1 + 1
    assert [entry.kind for entry in read_entries(folder / "run.ledger")].count("resumed") == 1


def test_the_program_in_half_precision_leaves_a_ledger_that_verifies(names, folder):
    report = report_of(folder, "half.ledger")
    assert report.ok
    assert report.facts["committed"] + report.facts["refused"] == 4
    assert report.facts["committed"] > 0


def test_the_program_that_packs_leaves_a_ledger_that_verifies(names, folder):
    report = report_of(folder, "packed.ledger")
    assert report.ok
    assert report.facts["committed"] == 1


def test_the_private_program_leaves_a_ledger_that_verifies(names, folder):
    report = report_of(folder, "private.ledger")
    assert report.ok
    assert report.facts["committed"] == len(names["sampler"])


GLOO_TEARDOWN = "terminate called without an active exception"
"""What torch's gloo backend aborts with now and then when a process ends, after the script is through."""


def run_script(folder: Path) -> subprocess.CompletedProcess[str]:
    for leftover in folder.glob("parallel.*"):
        leftover.unlink()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "train.py"], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def test_the_script_for_several_processes_leaves_one_ledger_for_all(names, folder):
    (folder / "train.py").write_text(SCRIPT)
    ran = run_script(folder)
    for _ in range(3):
        if GLOO_TEARDOWN not in ran.stderr:
            break
        ran = run_script(folder)
    assert ran.returncode == 0, ran.stderr
    report = report_of(folder, "parallel.ledger")
    assert report.ok
    assert (report.facts["committed"], report.facts["decisions_replayed"]) == (4, 64)
    assert (folder / "parallel.safetensors").exists()


def test_the_influence_that_the_page_measures_is_indirect_below_the_mask(names):
    shallow, deep = names["report"].band("shallow"), names["report"].band("deep")
    assert shallow.first_direct == 1
    assert not deep.direct
    assert deep.after(1).distance == 0.0
    assert deep.after(2).distance > 0.0
