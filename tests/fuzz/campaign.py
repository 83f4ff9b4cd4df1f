"""A fuzzing campaign: many generated inputs, each with a seed of its own, in one process.

    python -m tests.fuzz.campaign --inputs 1000000 --out fuzz.json

A finding is an exception that is no `GradwardenError`, a broken promise, an input that takes longer than
`SLOW` seconds of processor time, or memory beyond `MEMORY`. `--only TARGET --seed N` repeats one input.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.targets import TARGETS, remove_folder, shown

SLOW = 0.5
"""Seconds of processor time from which an input is a finding."""

HANG = 20
"""Seconds after which an input is given up."""

MEMORY = 3 << 30
"""Bytes of address space that the process may take."""

MAX_FINDINGS = 50


class HangError(Exception):
    """An input that does not come to an end."""


@dataclass
class Tally:
    """What became of the inputs of one target."""

    inputs: int = 0
    taken: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    slowest_seed: int = -1


@dataclass
class Campaign:
    """The state of a campaign; `report` is what it found so far."""

    tallies: dict[str, Tally] = field(default_factory=dict)
    findings: list[dict[str, Any]] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    def feed(self, name: str, seed: int) -> None:
        """Generate one input and run it."""
        target, tally = TARGETS[name], self.tallies.setdefault(name, Tally())
        value = target.generate(Random(f"{name}:{seed}"))
        begun = time.process_time()
        signal.alarm(HANG)
        try:
            tally.taken += target.run(value)
        except Exception as error:
            self.find(name, seed, value, error)
        finally:
            signal.alarm(0)
        spent = time.process_time() - begun
        tally.inputs += 1
        tally.seconds += spent
        if spent > tally.slowest:
            tally.slowest, tally.slowest_seed = spent, seed
        if spent > SLOW:
            self.note("slow", name, seed, value, f"{spent:.2f} s")

    def find(self, name: str, seed: int, value: Any, error: Exception) -> None:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        kind = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
        self.note(kind, name, seed, value, "".join(traceback.format_exception(error))[-3000:])

    def note(self, kind: str, name: str, seed: int, value: Any, detail: str) -> None:
        self.kinds[kind] += 1
        if self.kinds[kind] <= 3 and len(self.findings) < MAX_FINDINGS:
            text = shown(value)[:4000]
            self.findings.append(
                {"kind": kind, "target": name, "seed": seed, "input": text, "detail": detail}
            )
            print(f"finding: {kind} (--only {name} --seed {seed})", file=sys.stderr, flush=True)

    def report(self) -> dict[str, Any]:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "inputs": sum(tally.inputs for tally in self.tallies.values()),
            "processor_seconds": round(sum(tally.seconds for tally in self.tallies.values()), 1),
            "slowest_seconds": round(max((t.slowest for t in self.tallies.values()), default=0.0), 4),
            "peak_memory_bytes": peak,
            "kinds": dict(self.kinds),
            "targets": {
                name: {**vars(tally), "seconds": round(tally.seconds, 1), "slowest": round(tally.slowest, 4)}
                for name, tally in self.tallies.items()
            },
            "findings": self.findings,
        }


def run(inputs: int, first_seed: int, only: str | None, out: Path | None) -> Campaign:
    """Feed `inputs` inputs with consecutive seeds, shared among the targets."""
    campaign = Campaign()
    names = [name for name, target in TARGETS.items() for _ in range(target.share)]
    for number in range(first_seed, first_seed + inputs):
        campaign.feed(only or Random(number).choice(names), number)
        if out is not None and number % 5_000 == 0:
            out.write_text(json.dumps(campaign.report(), indent=1, ensure_ascii=True) + "\n", "utf-8")
    if out is not None:
        out.write_text(json.dumps(campaign.report(), indent=1, ensure_ascii=True) + "\n", "utf-8")
    return campaign


def _hang(_signal: int, _frame: object) -> None:
    raise HangError(f"not done after {HANG} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--only", choices=[*TARGETS], help="one target instead of all")
    parser.add_argument("--out", type=Path, help="where to write the report")
    given = parser.parse_args()
    signal.signal(signal.SIGALRM, _hang)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for name, target in TARGETS.items():  # what is loaded once is no input's time
        target.run(target.generate(Random(name)))
    try:
        campaign = run(given.inputs, given.seed, given.only, given.out)
    finally:
        remove_folder()
    report = campaign.report()
    print(json.dumps({key: value for key, value in report.items() if key != "findings"}, indent=1))
    return 1 if campaign.findings else 0


if __name__ == "__main__":
    sys.exit(main())
