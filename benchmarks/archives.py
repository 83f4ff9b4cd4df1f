"""What it costs to verify a ledger through its archives, beside the same ledger in one file.

The ledger is that of `verify_bench`, 100,000 entries. Both are verified by turns, whole and without
decisions; the peer in the same run decompresses the archives and hashes what comes: no reader can be faster.
Times are those of processors, of all processes together. Run with `python -m benchmarks.archives`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.results import write_results
from benchmarks.verify_bench import POLICY, write_run
from gradwarden.policy import compile_policy, load_policy
from gradwarden.runtime import Signer
from gradwarden.runtime.archiving import archive_ledger
from gradwarden.runtime.ledger.reader import open_ledger
from gradwarden.runtime.verification.verify import verify_ledger

RUNS = 3


def spent(work: Callable[[], object]) -> float:
    """Return the processor seconds of some work, those of its children included."""
    before = os.times()
    work()
    after = os.times()
    return sum(after[:4]) - sum(before[:4])


def hashed(path: Path) -> str:
    digest = hashlib.sha256()
    with open_ledger(path) as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def main() -> None:
    program, signer = compile_policy(load_policy(POLICY)), Signer.generate("benchmark")
    with tempfile.TemporaryDirectory() as folder:
        plain, archived = Path(folder) / "plain.ledger", Path(folder) / "archived.ledger"
        write_run(plain, program, signer)
        shutil.copy(plain, archived)
        making = spent(lambda: archive_ledger(archived, [signer.public]))
        files = [*Path(folder).glob("archived.ledger.archive-*.zst"), archived]
        whole, left = plain.stat().st_size, sum(file.stat().st_size for file in files)
        works: dict[str, Callable[[], object]] = {
            f"{name}, {how}": lambda path=path, only=only: verify_ledger(path, [signer.public], only=only)  # type: ignore[misc]
            for name, path in (("one file", plain), ("archived", archived))
            for how, only in (("chain", "chain"), ("decisions", None))
        }
        works["decompressed and hashed"] = lambda: hashed(archived)
        times: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(RUNS):
            for name, work in works.items():
                times[name].append(spent(work))
        seconds = {name: statistics.median(found) for name, found in times.items()}
    write_results(
        "archives",
        {
            "bytes": whole,
            "bytes_archived": left,
            "share": left / whole,
            "archiving_seconds": making,
            "seconds": seconds,
            "ratio_chain": seconds["archived, chain"] / seconds["one file, chain"],
            "ratio_decisions": seconds["archived, decisions"] / seconds["one file, decisions"],
        },
        ["zstandard"],
    )


if __name__ == "__main__":
    main()
