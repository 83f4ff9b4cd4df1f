"""How fast weights are hashed tensor by tensor, beside plain SHA-256 of the same file in the same run.

The file is of safetensors, with tensors of the sizes of a decoder's: 1 GiB where nothing else is said, in
the page cache. Digest and peers take turns; gigabytes are told by processor time of the whole process, which
load beside it changes little, and by the clock. The plain peer is `hashlib.file_digest`, which no number of
threads helps; `blocks` is SHA-256 of a block that stays in the processor's cache, the hash's own limit.
Run with `python -m benchmarks.weights_bench [--mib N] [--rounds N]`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from benchmarks.results import write_results
from gradwarden.runtime.digests import file_digest
from gradwarden.runtime.weights.stored import StoredWeights
from gradwarden.runtime.weights.tree import hash_weights

WIDTH = 1_024
BLOCK = [("q", 1), ("k", 1), ("v", 1), ("o", 1), ("up", 4), ("down", 4)]
"""The matrices of a decoder's block, and their sizes in WIDTH * WIDTH values."""


def write_weights(path: Path, size: int) -> None:
    """Write weights of at least a size in bytes, in bfloat16, with the small tensors of a model, too."""
    header: dict[str, Any] = {}
    at = block = 0
    while at < size:
        rows = [(f"blocks.{block}.{name}.weight", [factor * WIDTH, WIDTH]) for name, factor in BLOCK]
        rows += [(f"blocks.{block}.norm{number}.weight", [WIDTH]) for number in (1, 2)]
        for name, shape in rows:
            length = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + length]}
            at += length
        block += 1
    told = json.dumps(header).encode()
    told += b" " * (-len(told) % 8)
    piece = os.urandom(1 << 20)
    with path.open("wb") as file:
        file.write(len(told).to_bytes(8, "little") + told)
        for start in range(0, at, len(piece)):
            file.write(piece[: at - start])


def tensors(path: Path, threads: int) -> None:
    with StoredWeights([path]) as weights:
        hash_weights(weights, threads)


def blocks(size: int) -> None:
    block, found = bytes(1 << 16), sha256()
    for _ in range(size >> 16):
        found.update(block)
    found.digest()


def taken(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of processor time, and by the clock, that something takes."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.process_time() - processor, time.perf_counter() - clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1_024)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "weights.safetensors")
        write_weights(path, options.mib << 20)
        size = path.stat().st_size
        cases: dict[str, Callable[[], object]] = {
            "plain": lambda: file_digest(path),
            "blocks": lambda: blocks(size),
            "tensors_1_thread": lambda: tensors(path, 1),
            "tensors_2_threads": lambda: tensors(path, 2),
        }
        rounds = [{name: taken(work) for name, work in cases.items()} for _ in range(options.rounds)]
    figures: dict[str, Any] = {"bytes": size, "rounds": options.rounds, "load": os.getloadavg()[0]}
    for name in cases:
        for place, kind in enumerate(("per_core", "by_the_clock")):
            median = statistics.median(size / one[name][place] for one in rounds) / 1e9
            figures[f"{name}_gb_per_second_{kind}"] = round(median, 3)
    for peer in ("plain", "blocks"):
        for name in ("tensors_1_thread", "tensors_2_threads"):
            ratio = statistics.median(one[peer][0] / one[name][0] for one in rounds)
            figures[f"{name}_over_{peer}_per_core"] = round(ratio, 3)
    for name, value in figures.items():
        print(f"{name:44} {value:,}")
    write_results("weights", figures)


if __name__ == "__main__":
    main()
