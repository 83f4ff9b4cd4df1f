"""`gradwarden plan` over millions of rows of Parquet: rows per second, and the memory that it takes at most.

The manifest is written piece by piece, with text columns and an `id`, in row groups of a million rows and
once more in a single row group, which a reader cannot hold as a whole. The verb runs as a user runs it, in a
process of its own; the peak is that process's resident memory (`ru_maxrss`), Python and Arrow included.

    python -m benchmarks.plan_bench [--rows 10000000]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.policy_eval_cases import STATIC_POLICY, examples
from benchmarks.policy_rules import policy_text
from benchmarks.results import write_results

PIECE = 250_000
LIMIT_MB = 500

MEASURED = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run([sys.executable, "-m", "gradwarden.cli", *sys.argv[1:]], capture_output=True, text=True)
wall = time.perf_counter() - start
used = resource.getrusage(resource.RUSAGE_CHILDREN)
cpu = used.ru_utime + used.ru_stime
out = json.loads(done.stdout)
print(json.dumps({"wall": wall, "cpu": cpu, "peak": used.ru_maxrss, "records": out["records"]}))
"""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--rows", type=int, default=10_000_000)
    rows = arguments.parse_args().rows
    figures: dict[str, Any] = {"rows": rows, "load_average": os.getloadavg()[0], "runs": []}
    with tempfile.TemporaryDirectory() as folder:
        policies = {"12 rules": STATIC_POLICY, "100 rules": policy_text()}
        for name, text in policies.items():
            Path(folder, f"{name}.policy").write_text(text)
        for layout, group in (("row groups of a million", 1_000_000), ("one row group", rows)):
            data = Path(folder, "manifest.parquet")
            write(data, rows, group)
            for name in policies:
                run = {"policy": name, "layout": layout, "bytes": data.stat().st_size}
                run |= planned(Path(folder, f"{name}.policy"), data, rows)
                figures["runs"].append(run)
                print(f"{name}, {layout}: {run['rows_per_second']:,.0f} rows/s, peak {run['peak_mb']:.0f} MB")
    write_results("plan", figures, ("pyarrow",))


def write(path: Path, rows: int, group: int) -> None:
    """Write a manifest of random examples, never holding more than a row group."""
    drawn = examples(PIECE)
    schema = drawn.schema.append(pa.field("id", pa.string()))
    with pq.ParquetWriter(path, schema) as writer:
        pieces = _pieces(drawn, rows)
        if group >= rows:
            writer.write_table(pa.concat_tables(pieces), row_group_size=group)
            return
        for piece in _by_group(pieces, group):
            writer.write_table(piece, row_group_size=group)


def _pieces(drawn: pa.Table, rows: int) -> Iterator[pa.Table]:
    for start in range(0, rows, PIECE):
        some = drawn.slice(0, min(PIECE, rows - start))
        ids = pa.array([f"example-{i}" for i in range(start, start + some.num_rows)])
        yield some.append_column("id", ids)


def _by_group(pieces: Iterator[pa.Table], group: int) -> Iterator[pa.Table]:
    held: list[pa.Table] = []
    for piece in pieces:
        held.append(piece)
        if sum(table.num_rows for table in held) >= group:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def planned(policy: Path, data: Path, rows: int) -> dict[str, float]:
    """Run `plan` and return what it took."""
    command = ["plan", str(policy), "--data", str(data), "--format", "json"]
    ran = subprocess.run(
        [sys.executable, "-c", MEASURED, *command], capture_output=True, text=True, check=True
    )
    taken = json.loads(ran.stdout)
    assert taken["records"] == rows
    return {
        "wall_seconds": taken["wall"],
        "cpu_seconds": taken["cpu"],
        "rows_per_second": rows / taken["wall"],
        "rows_per_cpu_second": rows / taken["cpu"],
        "peak_mb": taken["peak"] / 1024,
        "within_limit": taken["peak"] / 1024 < LIMIT_MB,
    }


if __name__ == "__main__":
    main()
