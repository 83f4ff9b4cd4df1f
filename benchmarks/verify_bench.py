"""Seconds to verify a ledger of 100,000 entries of a governed run, without and with replaying its decisions.

The ledger is what a governor writes for 50,000 steps of 16 examples under `policies/code_licences.policy`
(intent and outcome of each step; exposures and a signal are read), made without a model. A second, of 10,000
steps, has signals that differ from example to example. The peer in the same
run is `hashlib.sha256` over the file: no verification can be faster than reading it once.
Run with `python -m benchmarks.verify_bench`.
"""

from __future__ import annotations

import hashlib
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bytecode import compiled_modules
from benchmarks.results import write_results
from gradwarden.policy import Program, compile_policy, load_policy
from gradwarden.policy.context import Context
from gradwarden.policy.decision import VERDICTS, step_verdict
from gradwarden.runtime import Ledger, Signer
from gradwarden.runtime.commitments import Committer
from gradwarden.runtime.records.recorder import Recorder
from gradwarden.runtime.roster import Roster
from gradwarden.runtime.verification.verify import verify_ledger

POLICY = Path(__file__).parents[1] / "policies" / "code_licences.policy"
STEPS = 50_000
BATCH = 16
EXAMPLES = 20_000
RUNS = 5
LICENCES = ("MIT", "Apache-2.0", "MPL-2.0", "GPL-3.0-only", "unknown")


def example(number: int, chance: random.Random) -> tuple[str, dict[str, Any]]:
    metadata = {
        "package": "benchmark",
        "license": chance.choice(LICENCES),
        "expression": "MIT",
        "sha256": "0" * 64,
        "lines": chance.randrange(1, 2_000),
        "bytes": chance.randrange(1, 80_000),
        "entropy": 2.0 + 4.0 * chance.random(),
        "vendored": chance.random() < 0.2,
        "generated": chance.random() < 0.1,
        "near_duplicate": False,
        "held_out": chance.random() < 0.05,
    }
    return f"example {number}", metadata


def write_run(
    path: Path,
    program: Program,
    signer: Signer,
    steps: int = STEPS,
    batch: int = BATCH,
    *,
    measured: bool = False,
) -> None:
    """Write the ledger of a run whose every step commits, or is refused where nothing was admitted.

    measured: whether signals differ from example to example, as those of a real run do.
    """
    chance = random.Random(0)
    ledger = Ledger.open(path, signer=signer, durability="os")
    committer = Committer(bytes(32))
    roster, recorder = Roster(program, committer), Recorder(ledger)
    recorder.open(
        program,
        {
            "run": "benchmark",
            "origin": ledger.origin,
            "dataset": None,
            "keys": [ledger.vkey],
            "engine": "fused",
            "normaliser": None,
            "clip_norm": None,
            "secret_commitment": committer.secret_commitment,
            "privacy": [],
        },
    )
    roster.add(example(number, chance) for number in range(EXAMPLES))
    committed = exposed = 0
    for step in range(steps):
        rows = np.array(chance.sample(range(EXAMPLES), batch))
        ratios = [chance.random() for _ in range(batch)] if measured else [0.9] * batch
        signals = {"loss_ratio": np.array(ratios)}
        context = Context(step, at=date(2026, 1, 1), exposures=roster.exposures(rows), signals=signals)
        admitted = roster.admit(rows, context)
        recorder.classes(roster.new_classes())
        recorder.propose(
            admitted,
            roster.commitments(rows),
            context,
            step_verdict({VERDICTS[code] for code in admitted.verdicts.tolist()}),
        )
        learned = admitted.micro.any(axis=1)
        roster.expose(rows[learned])
        exposed += int(learned.sum())
        hit = admitted.micro.any(axis=0)
        active = [band for band, reached in zip(program.band_names, hit, strict=True) if reached]
        committed += bool(active)
        if active:
            norms = {band: "0.5" if band in active else None for band in program.band_names}
            recorder.commit(step, active, norms, "2.5", {})
        else:
            recorder.refuse(step, "admission", "nothing_admitted", "no example may shape any band")
    totals = {"steps": steps, "committed": committed, "refused": steps - committed, "examples": exposed}
    ledger.close(totals)


def timed(work: Callable[[], object]) -> dict[str, float]:
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return {"median": statistics.median(times), "best": min(times)}


def main() -> None:
    program = compile_policy(load_policy(POLICY))
    signer = Signer.generate("benchmark")
    with tempfile.TemporaryDirectory() as folder, compiled_modules():
        path = Path(folder, "run.ledger")
        write_run(path, program, signer)

        varied = Path(folder, "measured.ledger")
        write_run(varied, program, signer, steps=STEPS // 5, measured=True)

        def verify(decisions: bool, path: Path = path) -> None:
            only = None if decisions else "entries"
            report = verify_ledger(path, [signer.public], program=program, only=only)
            if not report.ok:
                raise SystemExit(f"the benchmark's ledger does not verify: {report.findings[:1]}")

        report = verify_ledger(path, [signer.public])
        figures = {
            "entries": report.facts["entries"],
            "decisions": report.facts["decisions_replayed"],
            "bytes": path.stat().st_size,
            "verify_chain_seconds": timed(lambda: verify(False)),
            "verify_and_replay_seconds": timed(lambda: verify(True)),
            "verify_and_replay_a_fifth_with_measured_signals_seconds": timed(lambda: verify(True, varied)),
            "sha256_of_file_seconds": timed(lambda: hashlib.sha256(path.read_bytes()).digest()),
            "load_average": os.getloadavg()[0],
        }
    for name, value in figures.items():
        print(f"{name:28} {value}")
    write_results("verify", figures, ["orjson", "cryptography"])


if __name__ == "__main__":
    main()
