"""Where the files of a job lie, and what its ledgers are called.

    job/job.ledger            the log of logs: signed heads of the ranks' ledgers, bound at intervals
    job/job.secret            the secret of the commitments, the same for all ranks; no part of the evidence
    job/rank-0000.ledger      one ordinary ledger for each rank

A job is called by the origin of its log of logs; the ledger of rank N has the origin `<job>/rank-N`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

Placement = Literal["anywhere", "by_example"]
"""Which rank may have an example: any, or the one that its commitment says (`home`)."""

MOST_RANKS = 65_536
"""Ranks of one job."""

MOST_LISTED = 8
"""Ranks that a message names one by one."""

_RANK_FILE = re.compile(r"rank-([0-9]{4}|[1-9][0-9]{4,8})\.ledger")


def log_path(folder: Path) -> Path:
    return folder / "job.ledger"


def secret_path(folder: Path) -> Path:
    return folder / "job.secret"


def rank_path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:04d}.ledger"


def rank_origin(job: str, rank: int) -> str:
    return f"{job}/rank-{rank}"


def listed(ranks: Sequence[int]) -> str:
    """Return the first few ranks' numbers in words."""
    return ", ".join(map(str, ranks[:MOST_LISTED])) + (", …" if len(ranks) > MOST_LISTED else "")


def named_ranks(ranks: Sequence[int]) -> str:
    """Name some ranks, the first few of many."""
    return f"rank{'s' if len(ranks) != 1 else ''} {listed(ranks)}"


def ranks_found(folder: Path) -> Iterator[int]:
    """Yield the numbers of the ranks that have a ledger in a folder, in order."""
    names = sorted(path.name for path in folder.iterdir())
    yield from sorted(int(found[1]) for name in names if (found := _RANK_FILE.fullmatch(name)))


def home(commitment: bytes, ranks: int) -> int:
    """Return the rank that an example belongs to under the placement `by_example`.

    The first eight bytes of its commitment as a number, modulo the number of ranks. Commitments are salted
    hashes, so examples spread evenly, and a verifier can check it without knowing any id.
    """
    return int.from_bytes(commitment[:8], "big") % ranks
