"""The script in docs/distributed.md runs under torchrun, and a job that is killed can be resumed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gradwarden.runtime import Signer
from gradwarden.runtime.ledger.reader import read_entries
from gradwarden.runtime.verification.verify import verify_ledger

PAGE = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text()
SCRIPT, *_ = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)

GLOO_TEARDOWN = "terminate called without an active exception"
"""What torch's gloo backend aborts with now and then when a process ends, after the script is through."""

KILLED = """
import os, signal, time
while governor.next_step == 2 and ledger is not None and ledger.head() is None:
    time.sleep(0.05)  # heads are signed by time, and this run would be over before the first
if governor.next_step == 3 and ledger is not None:
    ledger.flush()
if governor.next_step == 3 and rank == {rank}:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def launch(folder: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "job.py").write_text(script)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "job.py",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=200
    )


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    made = Signer.generate("run")
    made.save(tmp_path / "run.key")
    return made


def test_the_script_leaves_one_ledger_for_all(signer, tmp_path):
    for _ in range(3):
        for leftover in tmp_path.glob("job.*"):
            leftover.unlink()
        ran = launch(tmp_path, SCRIPT)
        if GLOO_TEARDOWN not in ran.stderr:
            break
    assert ran.returncode == 0, ran.stderr
    report = verify_ledger(tmp_path / "job.ledger", [signer.public])
    assert report.ok
    assert (report.facts["committed"], report.facts["decisions_replayed"]) == (4, 64)
    assert (tmp_path / "job.safetensors").exists()


@pytest.mark.parametrize(("rank", "wrap"), [(0, "fsdp"), pytest.param(1, "ddp", marks=pytest.mark.soak)])
def test_a_job_that_is_killed_in_a_step_is_incomplete_and_goes_on(signer, tmp_path, rank, wrap):
    line = "            losses = nn.functional"
    indented = "".join(f"            {text}\n" for text in KILLED.format(rank=rank).strip().splitlines())
    assert launch(tmp_path, SCRIPT.replace(line, indented + line, 1), wrap).returncode != 0
    assert verify_ledger(tmp_path / "job.ledger", [signer.public]).status == "INCOMPLETE"

    ran = launch(tmp_path, SCRIPT, wrap)
    assert ran.returncode == 0 or GLOO_TEARDOWN in ran.stderr, ran.stderr
    report = verify_ledger(tmp_path / "job.ledger", [signer.public])
    assert report.ok
    # Two steps were over; the end of the second may not have been on the disk yet.
    assert report.facts["committed"] - 4 in (1, 2)
    assert [entry.kind for entry in read_entries(tmp_path / "job.ledger")].count("resumed") == 1
