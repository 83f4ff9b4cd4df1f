"""Many files are checked by several processes, with the same findings as by one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gradwarden.cli import parallel

BAD = Path(__file__).parents[1] / "corpus" / "bad"

CHECK = """
import sys
from gradwarden.cli import main, parallel
if __name__ == "__main__":
    number = int(sys.argv.pop(1))
    parallel.WORTH_IT, parallel.processors = 0, lambda: number
    main()
"""


def test_several_processes_find_what_one_finds(tmp_path: Path) -> None:
    script = tmp_path / "check.py"
    script.write_text(CHECK, "utf-8")
    runs = [
        subprocess.run(
            [sys.executable, script, number, "check", BAD, "--format", "json"],
            capture_output=True,
            text=True,
            check=False,
        )
        for number in ("1", "2")
    ]
    assert "GW101" in runs[0].stdout
    assert (runs[0].returncode, runs[0].stdout, runs[0].stderr) == (
        runs[1].returncode,
        runs[1].stdout,
        runs[1].stderr,
    )


NAMES = """
import os, sys
from pathlib import Path
from gradwarden.cli import parallel
def name_and_process(file):
    return file.name, os.getpid()
if __name__ == "__main__":
    parallel.WORTH_IT, parallel.processors = 0, lambda: 2
    results = parallel.over_files(name_and_process, [Path(str(number)) for number in range(20)])
    print(" ".join(name for name, _ in results), os.getpid() in {process for _, process in results})
"""


def test_results_come_from_other_processes_in_the_order_of_the_files(tmp_path: Path) -> None:
    script = tmp_path / "names.py"
    script.write_text(NAMES, "utf-8")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert run.stdout == f"{' '.join(map(str, range(20)))} False\n"


def test_little_work_stays_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / f"{number}.policy" for number in range(9)]
    for file in files:
        file.write_text("x", "utf-8")
    monkeypatch.setattr(parallel, "processors", lambda: 2)
    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", None)
    assert parallel.over_files(lambda file: file.name, files) == [file.name for file in files]


def test_a_file_that_is_not_there_is_left_to_the_work(tmp_path: Path) -> None:
    assert parallel.over_files(Path.exists, [tmp_path / "a", tmp_path / "b"]) == [False, False]
