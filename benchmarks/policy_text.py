"""Lines of policy parsed and type-checked per second, on one core: the standard library, modules included.

Every policy is read with all that it imports, as `gradwarden check` reads one, but from memory, and what
several import is read for each; garbage in circles is looked for as seldom as there. Times are of the
processor. The peer in the same run is Lark's own driver of the same grammar, which parses alone. Beside each
figure stands what it would be where a loop of five million additions takes 0.27 s, as on an idle recent core;
the loop is timed before and after, since the speed of a shared machine changes.

    python -m benchmarks.policy_text [--repeats 7]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.results import write_results
from gradwarden.cli import collect_rarely
from gradwarden.policy.checking.check import check_types
from gradwarden.policy.load import Reading, read_files
from gradwarden.policy.source import Source
from gradwarden.policy.syntax.build import Builder
from gradwarden.policy.syntax.parse import parse, recovery

LIBRARY = Path(__file__).parents[1] / "policies"
LOOP_SECONDS = 0.27


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def loop() -> None:
    total = 0
    for i in range(5_000_000):
        total += i


def readings() -> list[Reading]:
    return [
        read_files(Source(str(path), path.read_text("utf-8")), path.parent)
        for path in sorted(LIBRARY.glob("*.policy"))
    ]


def parse_and_check(policies: Sequence[Reading]) -> None:
    for policy in policies:
        files = [parse(file.source)[0] for file in policy.files]
        checked, found = check_types(files, [], complete=True)
        assert checked is not None, found


def parse_by_lark(policies: Sequence[Reading]) -> None:
    for policy in policies:
        for file in policy.files:
            assert recovery().parse_whole(file.source, Builder(file.source)) is not None


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--repeats", type=int, default=7)
    repeats = arguments.parse_args().repeats
    collect_rarely()
    policies = readings()
    lines = sum(file.source.text.count("\n") for policy in policies for file in policy.files)
    figures: dict[str, float] = {"load_average": os.getloadavg()[0], "repeats": repeats, "lines": lines}
    calls = {"parse_and_check": parse_and_check, "parse_by_lark": parse_by_lark}
    for name, call in calls.items():
        call(policies)
        rates, scaled = [], []
        for _ in range(repeats):
            before, taken, after = seconds(loop), seconds(lambda: call(policies)), seconds(loop)  # noqa: B023 - called here
            rates.append(lines / taken)
            scaled.append(lines / taken * (before + after) / 2 / LOOP_SECONDS)
        figures[f"{name}_lines_per_second"] = statistics.median(rates)
        figures[f"{name}_lines_per_second_scaled"] = statistics.median(scaled)
    for name, value in figures.items():
        print(f"{name:44} {value:,.2f}")
    write_results("policy_text", figures)


if __name__ == "__main__":
    main()
