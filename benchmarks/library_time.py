"""`gradwarden check --strict policies` and `gradwarden test policies`: the whole library, as CI does it.

Each verb runs in a process of its own, from start to exit. The peer in the same run is `python -c pass`: what
the interpreter alone costs on this machine. Processor time is what an idle core would need.
Modules are compiled beforehand, as they are where a package is installed.

    python -m benchmarks.library_time [--repeats 5]
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.bytecode import compiled_modules
from benchmarks.results import write_results

LIBRARY = Path(__file__).parents[1] / "policies"


def seconds(command: list[str]) -> tuple[float, float]:
    """Run a command; return its wall time and its processor time."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--repeats", type=int, default=5)
    repeats = arguments.parse_args().repeats
    verb = [sys.executable, "-m", "gradwarden.cli"]
    commands = {
        "bare_python": [sys.executable, "-c", "pass"],
        "check": [*verb, "check", "--strict", str(LIBRARY)],
        "test": [*verb, "test", str(LIBRARY)],
    }
    figures: dict[str, float] = {"load_average": os.getloadavg()[0], "repeats": repeats}
    for name, command in commands.items():
        with compiled_modules():
            seconds(command)
            runs = [seconds(command) for _ in range(repeats)]
        figures[f"{name}_wall_seconds"] = statistics.median(wall for wall, _ in runs)
        figures[f"{name}_cpu_seconds"] = statistics.median(cpu for _, cpu in runs)
    for kind in ("wall", "cpu"):
        figures[f"together_{kind}_seconds"] = (
            figures[f"check_{kind}_seconds"] + figures[f"test_{kind}_seconds"]
        )
    for name, value in figures.items():
        print(f"{name:30} {value:.3f}")
    write_results("library_time", figures)


if __name__ == "__main__":
    main()
