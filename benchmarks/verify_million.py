"""Seconds and memory to verify a ledger of a million entries, as `gradwarden verify` does it, at each depth.

The ledger is what a governor writes for 500,000 steps of 11 examples under `policies/code_licences.policy`
(`verify_bench.write_run`): intents and outcomes in turn, about 580 bytes an entry. Each depth runs as a user
runs it, from process start to exit; its memory is the sum over its processes of what each has for itself and
its share of the rest (PSS), looked at in a run of its own. The peers in the same round are `sha256sum` of the
file, no more than which anything that reads it can do, a tree of pymerkle over the same lines, and the limit
of hashing in Python: one call of hashlib for each line and one for each node of the tree, and nothing else.
The last two do 100,000 of the lines, and are told times as much as the ledger has lines.

The bars are seconds, set where pymerkle took 10.9 s to append a million leaves. Other machines are faster or
slower, and a shared one at times: so each depth is told over pymerkle in the same round, too, beside what the
bar is over 10.9 s; by the clock, and by the processor, of which two share the work of a depth.

The last hundredth and the last tenth are verified, too, from what is remembered of the rest (`--since`).
Where the machine is shared, seconds by the clock say little: those of the processor, all processes together,
over two processors are the bound.

    python -m benchmarks.verify_million [--entries 1000000] [--rounds 3] [--folder FOLDER]

A FOLDER keeps the ledger for the next time; writing it takes minutes.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pymerkle

from benchmarks.bytecode import compiled_modules
from benchmarks.results import write_results
from benchmarks.verify_bench import POLICY, write_run
from gradwarden.policy import compile_policy, load_policy
from gradwarden.runtime import Signer

BATCH = 11
BARS = {"chain": 2.0, "entries": 4.0, "decisions": 8.0}
"""Seconds on two processors."""

PYMERKLE_SECONDS = 10.9
"""Of a million leaves, where the bars were set."""

MEMORY_MB = 200
ENTRIES = 1_000_000
PEER_ENTRIES = 100_000
LOOK_SECONDS = 0.05


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--entries", type=int, default=ENTRIES, help="other numbers write no results")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--folder", type=Path)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary, compiled_modules():
        ledger = written(given.folder or Path(temporary), given.entries)
        figures = measured(ledger, given.rounds)
    for name, value in figures.items():
        print(f"{name:16} {value}")
    if given.entries == ENTRIES:
        write_results("verify_million", figures, ["orjson", "cryptography", "pymerkle"])


def written(folder: Path, entries: int) -> Path:
    """Return a ledger of so many entries, written anew where the folder has none; its key lies beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    ledger = folder / f"{entries}.ledger"
    public = folder / f"{entries}.pub"
    if not public.exists():
        signer = Signer.generate("benchmark")
        write_run(ledger, compile_policy(load_policy(POLICY)), signer, entries // 2, BATCH)
        signer.public.save(public)
    return ledger


def measured(ledger: Path, rounds: int) -> dict[str, Any]:
    verify = [sys.executable, "-m", "gradwarden.cli", "verify", str(ledger)]
    verify += ["--key", str(ledger.with_suffix(".pub")), "--format", "json"]
    commands = {depth: [*verify, *(() if depth == "decisions" else ("--only", depth))] for depth in BARS}
    commands["sha256sum"] = ["sha256sum", str(ledger)]
    with ledger.open("rb") as file:
        lines = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
        file.seek(0)
        some = [line for line, _ in zip(file, range(PEER_ENTRIES), strict=False)]
    size = ledger.stat().st_size
    figures: dict[str, Any] = {"lines": lines, "bytes": size, "load_average": os.getloadavg()[0]}
    peers = {"pymerkle": append, "hashing": hash_tree}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in (*commands, *peers)}
    subprocess.run(commands["decisions"], check=True, capture_output=True)  # compiles what is imported
    for _ in range(rounds):
        for name, command in commands.items():
            runs[name].append(timed(lambda: run(command)))  # noqa: B023 - called here
        for name, work in peers.items():
            peer = timed(lambda: work(some))  # noqa: B023 - called here
            runs[name].append({clock: taken * lines / len(some) for clock, taken in peer.items()})
    for name, times in runs.items():
        figures[name] = told(times, BARS.get(name))
    figures["since"] = since(ledger, verify, lines, rounds)
    for depth in BARS:
        ratios = [
            one["processor"] / bare["processor"]
            for one, bare in zip(runs[depth], runs["hashing"], strict=True)
        ]
        figures[depth]["over_hashing"] = round(statistics.median(ratios), 2)
        figures[depth] |= over_pymerkle(runs[depth], runs["pymerkle"], BARS[depth])
        figures[depth]["peak_mb"] = peak_mb(commands[depth])
    return figures


def over_pymerkle(times: list[dict[str, float]], peers: list[dict[str, float]], bar: float) -> dict[str, Any]:
    """Return what runs take over what the peer takes in the same round, the median, and whether that holds.

    By the clock, and by the processor, of which a run has two.
    """
    pairs = list(zip(times, peers, strict=True))
    wall = statistics.median(one["wall"] / peer["wall"] for one, peer in pairs)
    processor = statistics.median(one["processor"] / 2 / peer["processor"] for one, peer in pairs)
    most = bar / PYMERKLE_SECONDS
    return {
        "over_pymerkle": round(wall, 4),
        "over_pymerkle_by_processor": round(processor, 4),
        "bar_over_pymerkle": round(most, 4),
        "holds_over_pymerkle": wall <= most,
        "holds_over_pymerkle_by_processor": processor <= most,
    }


def since(ledger: Path, verify: list[str], lines: int, rounds: int) -> dict[str, Any]:
    """Verify the last hundredth, and the last tenth, of a ledger from what is remembered of the rest."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=ledger.parent) as folder:
        for name, part in (("hundredth", lines // 100), ("tenth", lines // 10)):
            memory, before = Path(folder, "memory"), Path(folder, "before.ledger")
            with ledger.open("rb") as file, before.open("wb") as kept:
                kept.writelines(line for line, _ in zip(file, range(lines - part), strict=False))
            remember = [*verify[:4], str(before), *verify[5:], "--remember", str(memory)]
            subprocess.run(remember, check=False, capture_output=True)  # it is not sealed
            before.unlink()
            command = [*verify, "--since", str(memory)]
            times = [timed(lambda: run(command)) for _ in range(rounds)]  # noqa: B023 - called here
            figures[name] = {**told(times, None), "new": part, "memory_bytes": memory.stat().st_size}
    return figures


def run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)


def append(lines: list[bytes]) -> None:
    """Append lines to the peer's tree, and ask it for the root."""
    tree = pymerkle.InmemoryTree(algorithm="sha256")
    for line in lines:
        tree.append_entry(line)
    tree.get_root()


def hash_tree(lines: list[bytes]) -> None:
    """Hash lines, and the nodes of the tree over them, with as little besides as Python can."""
    nodes = [sha256(b"\0" + line[:-1]).digest() for line in lines]
    while len(nodes) > 1:
        nodes = [sha256(b"\1" + a + b).digest() for a, b in zip(nodes[::2], nodes[1::2], strict=False)]


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Return seconds by the clock, and of all processors in this process and those that it starts."""
    start, used = time.perf_counter(), processor_seconds()
    work()
    return {"wall": time.perf_counter() - start, "processor": processor_seconds() - used}


def processor_seconds() -> float:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def told(times: list[dict[str, float]], bar: float | None) -> dict[str, Any]:
    """Return the medians of some runs, and whether the bar holds."""
    wall, processor = (statistics.median(run[clock] for run in times) for clock in ("wall", "processor"))
    figures: dict[str, Any] = {"seconds": wall, "processor_seconds": processor}
    if bar is not None:
        figures |= {"bar": bar, "holds": wall <= bar, "holds_by_processor": processor / 2 <= bar}
    return {name: round(value, 3) if type(value) is float else value for name, value in figures.items()}


def peak_mb(command: list[str]) -> float:
    """Return the most memory that a command and the processes that it starts have at once, in MB."""
    most = 0
    ended = threading.Event()

    def look(started: int) -> None:
        nonlocal most
        while not ended.wait(LOOK_SECONDS):
            most = max(most, sum(map(share_of_memory, family(started))))

    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        looking = threading.Thread(target=look, args=(process.pid,))
        looking.start()
        process.wait()
        ended.set()
        looking.join()
    return round(most / 1e3, 1)


def family(started: int) -> list[int]:
    """Return a process and those that it has started."""
    try:
        children = Path(f"/proc/{started}/task/{started}/children").read_text().split()
    except OSError:
        return [started]
    return [started, *(one for child in children for one in family(int(child)))]


def share_of_memory(process: int) -> int:
    """Return the PSS of a process in kilobytes, 0 of one that has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    main()
