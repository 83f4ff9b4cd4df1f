"""Entries per second appended under each durability, and seconds to verify 100,000 entries.

Every entry is a `step` of 16 examples, the kind that makes up nearly all of a run's ledger. The peer in the
same run is pymerkle 7, which keeps a tree over the same lines: no chain, no signatures, no disk.
Run with `python -m benchmarks.ledger_bench`.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from base64 import b64encode
from pathlib import Path
from typing import Any, get_args

import pymerkle

from benchmarks.results import write_results
from gradwarden.runtime import Ledger, Signer
from gradwarden.runtime.ledger.chain import run_links, verify_chain
from gradwarden.runtime.ledger.links import Links
from gradwarden.runtime.ledger.reader import read_entries
from gradwarden.runtime.ledger.writer import Durability

ENTRIES = 100_000
EXAMPLES = 16
DISTINCT = 2_000
RUNS = 5
PEER_ENTRIES = 20_000
GROUP = 64
FEW = 5
STEPS_PER_SECOND = 100

SEAL = {"steps": ENTRIES, "committed": 0, "refused": 0, "examples": 0}


def opening(ledger: Ledger) -> dict[str, Any]:
    zero = "0" * 64
    return {
        "format": "gradwarden/ledger/1",
        "run": "benchmark",
        "origin": ledger.origin,
        "at": "2026-01-01T00:00:00+00:00",
        "policy": {"name": "benchmark", "version": 1, "digest": zero},
        "model_map": "",
        "dataset": None,
        "bands": ["shallow", "middle", "deep"],
        "code": {},
        "keys": [ledger.vkey],
        "engine": "fused",
        "normaliser": None,
        "clip_norm": None,
        "secret_commitment": zero,
        "privacy": [],
    }


def step(number: int, chance: random.Random, count: int = EXAMPLES) -> dict[str, Any]:
    return {
        "step": number,
        "epoch": 0,
        "today": 20_000,
        "count": count,
        "commitments": b64encode(chance.randbytes(32 * count)).decode(),
        "classes": [chance.randrange(40) for _ in range(count)],
        "exposures": [chance.randrange(3) for _ in range(count)],
        "signals": {"loss_ratio": [chance.randrange(10_000_000) for _ in range(count)]},
        "slots": {},
        "spent": [],
        "decision": [chance.randrange(8) for _ in range(count)],
        "verdict": "admit",
    }


def append(path: Path, signer: Signer, durability: Durability, bodies: list[dict[str, Any]]) -> float:
    """Write a sealed ledger; return entries per second from the first append until all are durable."""
    ledger = Ledger.open(path, signer, durability=durability)
    ledger.append("opened", opening(ledger))
    start = time.perf_counter()
    for number in range(ENTRIES):
        ledger.append("step", bodies[number % DISTINCT])
    ledger.flush()
    rate = ENTRIES / (time.perf_counter() - start)
    ledger.close(SEAL)
    return rate


def append_in_groups(path: Path, signer: Signer) -> dict[str, float]:
    """Write a ledger of smaller steps, about 570 bytes a line, in groups of `GROUP`.

    Each group is durable before the next begins.

    Return entries per second by the clock and per second of processor time; how much of an entry's processor
    time the thread that appends takes; and the share of both in training that makes so many steps a second,
    each with an intent and an outcome.
    """
    chance = random.Random(2)
    bodies = [step(number, chance, FEW) for number in range(DISTINCT)]
    ledger = Ledger.open(path, signer, durability="group")
    ledger.append("opened", opening(ledger))
    start, used, own = time.perf_counter(), time.process_time(), time.thread_time()
    for first in range(0, ENTRIES, GROUP):
        for number in range(first, first + GROUP):
            last = ledger.append("step", bodies[number % DISTINCT])
        ledger.wait(last)
    wall, used = time.perf_counter() - start, time.process_time() - used
    own, count = time.thread_time() - own, -(-ENTRIES // GROUP) * GROUP
    ledger.close(SEAL | {"steps": count})
    return {
        "per_second": count / wall,
        "per_processor_second": count / used,
        "own_thread": own / used,
        "share_of_training": 2 * STEPS_PER_SECOND * used / count,
    }


def append_waiting(path: Path, signer: Signer, bodies: list[dict[str, Any]]) -> float:
    """Return steps per second where each step waits until its intent is durable, as a training loop does."""
    ledger = Ledger.open(path, signer)
    ledger.append("opened", opening(ledger))
    start = time.perf_counter()
    for body in bodies:
        ledger.wait(ledger.append("step", body))
    rate = len(bodies) / (time.perf_counter() - start)
    ledger.close(SEAL)
    return rate


def seconds(work: Any) -> dict[str, float]:
    """Time some work: by the clock, and in this process's processor time."""
    times, processor = [], []
    for _ in range(RUNS):
        start, used = time.perf_counter(), time.process_time()
        work()
        times.append(time.perf_counter() - start)
        processor.append(time.process_time() - used)
    return {"median": statistics.median(times), "best": min(times), "processor": min(processor)}


def peer_rate(lines: list[bytes]) -> float:
    tree = pymerkle.InmemoryTree(algorithm="sha256")
    start = time.perf_counter()
    for line in lines:
        tree.append_entry(line)
    tree.get_root()
    return len(lines) / (time.perf_counter() - start)


def main() -> None:
    chance = random.Random(1)
    bodies = [step(number, chance) for number in range(DISTINCT)]
    signer = Signer.generate("benchmark")
    figures: dict[str, Any] = {"entries": ENTRIES, "examples_per_entry": EXAMPLES, "runs": RUNS}
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
        for durability in get_args(Durability):
            used = time.process_time()
            rates = [append(Path(folder, f"{durability}-{i}"), signer, durability, bodies) for i in range(3)]
            figures[f"append_processor_seconds_{durability}"] = (time.process_time() - used) / 3
            figures[f"appended_per_second_{durability}"] = statistics.median(rates)
        groups = [append_in_groups(Path(folder, f"groups-{i}"), signer) for i in range(3)]
        for name in groups[0]:
            figures[f"in_groups_of_{GROUP}_{name}"] = statistics.median(group[name] for group in groups)
        figures["steps_per_second_waiting"] = append_waiting(Path(folder, "waiting"), signer, bodies)
        path = Path(folder, "group-0")
        figures["bytes"] = path.stat().st_size
        keys = [signer.public]
        figures["verify_seconds"] = seconds(lambda: verify_chain(path, keys))
        figures["verify_seconds_one_process"] = seconds(lambda: run_links(Links(keys), path))
        lines = [entry.line for entry, _ in zip(read_entries(path), range(PEER_ENTRIES), strict=False)]
        figures["pymerkle_appended_per_second"] = peer_rate(lines)
    figures["load_average"] = os.getloadavg()[0]
    for name, value in figures.items():
        print(f"{name:34} {value}")
    write_results("ledger", figures, ["orjson", "cryptography", "pymerkle"])


if __name__ == "__main__":
    main()
