"""How far the ledgers of a job's ranks were gone through, all of them together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from gradwarden.runtime.jobs.layout import rank_path, ranks_found

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (bytes read, bytes in all)."""


def size_of_ranks(folder: Path) -> int:
    """Return the bytes of the ledgers of all ranks in a folder."""
    return sum(rank_path(folder, rank).stat().st_size for rank in ranks_found(folder))


def over_ranks(folder: Path, progress: Progress | None) -> Callable[[int], Progress | None]:
    """Return what gives the progress through one rank's ledger as that through those of all, in order."""
    begins: dict[int, int] = {}
    total = 0
    for rank in ranks_found(folder):
        begins[rank] = total
        total += rank_path(folder, rank).stat().st_size

    def of(rank: int) -> Progress | None:
        return None if progress is None else lambda read, _: progress(begins[rank] + read, total)

    return of
