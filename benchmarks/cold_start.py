"""Time from starting Python to the verdict of `gradwarden check` on one file, as a user waits for it.

The peer in the same run is `python -c pass`: what the interpreter alone costs on this machine. Modules
are compiled beforehand, as they are where a package is installed.
Run with `python -m benchmarks.cold_start`.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.bytecode import compiled_modules
from benchmarks.results import write_results

POLICY = Path(__file__).parents[1] / "policies" / "code_licences.policy"
RUNS = 15


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    check = [sys.executable, "-m", "gradwarden.cli", "check", str(POLICY)]
    bare = [sys.executable, "-c", "pass"]
    with compiled_modules():
        seconds(check), seconds(bare)
        pairs = [(seconds(check), seconds(bare)) for _ in range(RUNS)]
    figures = {
        "check_seconds_median": statistics.median(a for a, _ in pairs),
        "check_seconds_worst": max(a for a, _ in pairs),
        "bare_python_seconds_median": statistics.median(b for _, b in pairs),
        "ratio_median": statistics.median(a / b for a, b in pairs),
        "runs": RUNS,
    }
    for name, value in figures.items():
        print(f"{name:30} {value:.3f}")
    write_results("cold_start", figures)


if __name__ == "__main__":
    main()
