"""Crashes: real ones by SIGKILL, and imagined ones at any byte, in any order of use."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from gradwarden.runtime import Ledger, Signer
from gradwarden.runtime.ledger.chain import verify_chain
from gradwarden.runtime.ledger.reader import read_entries

WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from conftest import Cases
from gradwarden.runtime import Ledger, Signer
cases = Cases()
ledger = Ledger.open(sys.argv[2], Signer.load(sys.argv[3]), durability=sys.argv[4])
if not ledger.entries_on_open:
    ledger.append("opened", cases.opened(ledger))
step = 0
while True:
    for _ in range(step % 40):
        ledger.append("step", cases.step(step))
    index = ledger.append("committed", cases.committed(step))
    ledger.wait(index)
    print(index, flush=True)
    step += 1
"""


def run_until_killed(path: Path, key: Path, durability: str, seconds: float, *, early: bool) -> int:
    """Run a writer and kill it; return the last index it was told is durable, -1 for none.

    The time counts from its first durable entry, or from its start where the kill is to come early.
    """
    arguments = [str(Path(__file__).parent), str(path), str(key), durability]
    with subprocess.Popen([sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = b"" if early else process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
    told = (first + rest).split(b"\n")[:-1]
    assert process.returncode == -signal.SIGKILL
    return int(told[-1]) if told else -1


def survive(path: Path, tmp_path: Path, signer: Signer, kills: int, longest: float) -> None:
    key = tmp_path / "run.key"
    signer.save(key)
    chance = random.Random(20_260_131)
    durable = -1
    for number in range(kills):
        durability, early = ("every", "group", "os")[number % 3], number % 4 == 3
        seconds = chance.uniform(0, longest)
        durable = max(durable, run_until_killed(path, key, durability, seconds, early=early))
        report = verify_chain(path, [signer.public])
        assert report.status in ("INCOMPLETE", "UNTRUSTED")
        assert report.size > durable
    Ledger.open(path, signer).close({"steps": 0, "committed": 0, "refused": 0, "examples": 0})
    assert verify_chain(path, [signer.public]).status == "OK"
    assert sum(entry.kind == "resumed" for entry in read_entries(path)) >= kills // 2


def test_sigkill_at_any_moment_loses_nothing_durable(path: Path, tmp_path: Path, signer: Signer) -> None:
    survive(path, tmp_path, signer, kills=6, longest=0.3)


@pytest.mark.soak
@pytest.mark.timeout(1_800)
def test_many_sigkills(path: Path, tmp_path: Path, signer: Signer) -> None:
    survive(path, tmp_path, signer, kills=60, longest=1.0)


class Crashes(RuleBasedStateMachine):
    """Append, wait, close, reopen and crash in any order: what was durable stays, and the chain holds."""

    cases: Any
    signer: Signer

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "run.ledger"
        self.beside = Path(f"{self.path}.head")
        self.ledger = self.cases.begin(self.path, self.signer, durability="os")
        self.ledger.flush()
        self.durable = 1

    @rule(count=st.integers(1, 30))
    def append(self, count: int) -> None:
        for step in range(count):
            self.ledger.append("committed", self.cases.committed(step))

    @rule()
    def wait(self) -> None:
        self.ledger.flush()
        self.durable = len(self.ledger)

    @rule()
    def reopen(self) -> None:
        self.ledger.close()
        self.durable = len(self.ledger)
        self.ledger = Ledger.open(self.path, self.signer, durability="os")

    @rule(share=st.floats(0, 1), garbage=st.sampled_from([b"", b"\x00" * 40, b'{"body":\n']))
    def crash(self, share: float, garbage: bytes) -> None:
        """Go back to what the disk held after the last wait, with any part of what followed."""
        sidecar = self.beside.read_bytes() if self.beside.exists() else None
        held = self.path.stat().st_size
        self.ledger.close()
        content = self.path.read_bytes()
        self.path.write_bytes(content[: held + round(share * (len(content) - held))] + garbage)
        if sidecar is None:
            self.beside.unlink(missing_ok=True)
        else:
            self.beside.write_bytes(sidecar)
        self.ledger = Ledger.open(self.path, self.signer, durability="os")
        assert self.ledger.entries_on_open >= self.durable

    @invariant()
    def durable_entries_stand(self) -> None:
        report = verify_chain(self.path, [self.signer.public])
        assert report.status in ("INCOMPLETE", "UNTRUSTED")
        assert report.size >= self.durable

    def teardown(self) -> None:
        self.ledger.close(self.cases.seal)
        assert verify_chain(self.path, [self.signer.public]).status == "OK"
        shutil.rmtree(self.folder)


def test_crashes_in_any_order(cases: Any, signer: Signer) -> None:
    Crashes.cases, Crashes.signer = cases, signer
    run_state_machine_as_test(Crashes, settings=settings(max_examples=15, stateful_step_count=12))
