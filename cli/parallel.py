"""Spreads work on many files over processors, where there is enough of it.

Processes take a while to start, so what one does in about a second is not divided.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

WORTH_IT = 256 << 10
"""How many bytes of files are worth more than one process: some 7,000 lines of policy."""

CHUNKS = 4
"""Into how many parts the files of one process are cut, since some take longer than others."""

Result = TypeVar("Result")


def over_files(work: Callable[[Path], Result], files: Sequence[Path]) -> list[Result]:
    """Return what `work` gives for each file, in order. It is pickled, and so is what it gives or raises."""
    workers = min(processors(), len(files))
    if workers < 2 or sum(map(_size, files)) < WORTH_IT:
        return [work(file) for file in files]
    from concurrent.futures import ProcessPoolExecutor

    from gradwarden.cli import collect_rarely

    with ProcessPoolExecutor(workers, initializer=collect_rarely) as pool:
        return list(pool.map(work, files, chunksize=-(-len(files) // (workers * CHUNKS))))


def processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
