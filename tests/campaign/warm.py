"""Runs tests in forks of one process that has imported what takes long, and nothing of this project.

    python -m tests.campaign.warm MODULE...

reads one job a line, `{"tests": [...], "limit": seconds}`, and answers each with one line: what became of
each test, and the end of what pytest wrote. It runs in the root of the tree under test.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pytest

Fate: TypeAlias = Literal["green", "red", "error", "skipped", "missing", "endless"]
"""Of a test: `red` where its body failed; `error` where it could not begin; `endless` where it had no end."""

OPTIONS = (
    *("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly"),
    *("--hypothesis-profile=mutants", "--hypothesis-seed=0"),
)

TAIL = 4_000
"""Characters of what pytest wrote that are told."""


class Fates:
    """A plugin that notes what becomes of tests; of a test that has failed no further case is run."""

    def __init__(self, tests: Sequence[str]) -> None:
        self.fates: dict[str, Fate] = dict.fromkeys(tests, "missing")

    def _of(self, node: str) -> list[str]:
        return [test for test in self.fates if node == test or node.startswith(f"{test}[")]

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        own = self._of(item.nodeid)
        if own and all(self.fates[test] == "red" for test in own):
            pytest.skip("another case has failed")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            own = [test for test in self.fates if test.startswith(f"{report.nodeid}::")]
            self.fates |= dict.fromkeys(own, "error")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for test in self._of(report.nodeid):
            if report.failed:
                self.fates[test] = "red" if report.when == "call" else "error"
            elif report.skipped and self.fates[test] == "missing":
                self.fates[test] = "skipped"
            elif report.when == "call" and self.fates[test] in ("missing", "skipped"):
                self.fates[test] = "green"


def run(tests: Sequence[str], limit: float) -> dict[str, Any]:
    """Run tests in a fork. limit: seconds, after which they are given up."""
    with tempfile.TemporaryDirectory() as folder:
        answer, log = Path(folder) / "answer", Path(folder) / "log"
        child = os.fork()
        if child == 0:
            _run_here(tests, answer, log)
        in_time = _wait(child, limit)
        fates = json.loads(answer.read_text("utf-8")) if in_time and answer.exists() else {}
        return {
            "fates": {test: fates.get(test, "error" if in_time else "endless") for test in tests},
            "log": log.read_text("utf-8", "replace")[-TAIL:] if log.exists() else "",
        }


def _run_here(tests: Sequence[str], answer: Path, log: Path) -> None:
    """Run tests in this process, and end it."""
    os.setsid()
    written = os.open(log, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(written, stream)
    noted = Fates(tests)
    try:
        pytest.main([*OPTIONS, *tests], plugins=[noted])
        answer.write_text(json.dumps(noted.fates), "utf-8")
    finally:
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(0)


def _wait(child: int, limit: float) -> bool:
    """Wait for a fork; return whether it ended in time. It and what it started is ended otherwise."""
    until = time.monotonic() + limit
    while time.monotonic() < until:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main() -> None:
    for name in sys.argv[1:]:
        with suppress(ImportError):
            importlib.import_module(name)
    with redirect_stdout(io.StringIO()):
        pytest.main(["--version"])  # imports its plugins
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(run(job["tests"], job["limit"])), flush=True)


if __name__ == "__main__":
    main()
