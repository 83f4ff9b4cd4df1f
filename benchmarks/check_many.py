"""`gradwarden check` of many policies at once: lines per second on one processor and on all, lints included.

Copies of the standard library, each with the modules that it imports, are laid out in one folder and checked
by one command, from process start to exit: on all processors, and held to one of them. Run it on an idle
machine; both times are of the clock.

    python -m benchmarks.check_many [--copies 8] [--repeats 3]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.bytecode import compiled_modules
from benchmarks.library_time import LIBRARY, seconds
from benchmarks.results import write_results
from gradwarden.cli.parallel import processors

ONE = """
import os, runpy, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
sys.argv = ["gradwarden", *sys.argv[1:]]
runpy.run_module("gradwarden.cli", run_name="__main__", alter_sys=True)
"""
"""Runs the command on one processor."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--copies", type=int, default=8)
    arguments.add_argument("--repeats", type=int, default=3)
    given = arguments.parse_args()
    figures: dict[str, float] = {"load_average": os.getloadavg()[0], "processors": processors()}
    with tempfile.TemporaryDirectory() as folder, compiled_modules():
        for number in range(given.copies):
            shutil.copytree(LIBRARY, Path(folder, str(number)))
        files = list(Path(folder).rglob("*.policy"))
        lines = figures["lines"] = sum(file.read_text("utf-8").count("\n") for file in files)
        commands = {
            "one": [sys.executable, "-c", ONE, "check", folder],
            "all": [sys.executable, "-m", "gradwarden.cli", "check", folder],
        }
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(given.repeats):
            for name, command in commands.items():
                runs[name].append(seconds(command))
    for name, taken in runs.items():
        figures[f"{name}_lines_per_second"] = lines / statistics.median(wall for wall, _ in taken)
        figures[f"{name}_cpu_seconds"] = statistics.median(cpu for _, cpu in taken)
    for name, value in figures.items():
        print(f"{name:24} {value:,.2f}")
    write_results("check_many", figures)


if __name__ == "__main__":
    main()
