"""Writes a job's log of logs: an ordinary ledger whose entries bind the signed heads of the ranks' ledgers.

    with Binder.open(folder, signer, ranks=8) as binder:
        binder.bind()         # as often as you like: reads files, sends no message
        binder.seal()         # once every rank's ledger is sealed

Whoever can read the folder can bind: rank 0 does so while it trains, or a process beside the job. What is
bound can no longer be taken back by a rank: its ledger must hold that head for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from gradwarden.runtime.errors import JobError
from gradwarden.runtime.jobs.follower import Follower, RankHead, bound_heads
from gradwarden.runtime.jobs.layout import MOST_RANKS, Placement, listed, log_path, rank_path
from gradwarden.runtime.ledger.entries import JOB_OPENING
from gradwarden.runtime.ledger.keys import PublicKey, Signer
from gradwarden.runtime.ledger.ledger import Ledger
from gradwarden.runtime.ledger.reader import read_entries
from gradwarden.runtime.ledger.writer import Durability

JOB_FORMAT = "gradwarden/job/1"

HEADS_PER_ENTRY = 200
"""Heads of ranks in one `bound` entry; an entry may not pass 65,535 bytes."""


class Binder:
    """Binds the ledgers of a job's ranks. One process at a time has it."""

    def __init__(
        self, ledger: Ledger, followers: Sequence[Follower], heads: dict[int, RankHead], bindings: int
    ) -> None:
        self.job = ledger.origin
        self._ledger = ledger
        self._followers = tuple(followers)
        self._heads = heads
        self._bindings = bindings

    @classmethod
    def open(
        cls,
        folder: Path,
        signer: Signer,
        *,
        ranks: int,
        every: int = 100,
        lag: int = 300,
        placement: Placement = "anywhere",
        durability: Durability = "group",
        keys: Sequence[PublicKey] = (),
    ) -> Binder:
        """Begin a job's log of logs in a folder, or go on with it.

        ranks: how many processes train. every: the steps from one binding to the next. lag: how many steps a
        rank's signed head may be behind the most advanced one at a binding; a verifier reports more.
        placement: see `layout`. Raises JobError for a log of logs of another job, LedgerError where it cannot
        be written.
        """
        terms = job_terms(ranks=ranks, every=every, lag=lag, placement=placement)
        ledger = Ledger.open(log_path(folder), signer, durability, keys=keys)
        try:
            if ledger.entries_on_open:
                check_terms(job_opening(folder), terms)
            else:
                ledger.append(JOB_OPENING, _opening(ledger, terms))
                ledger.flush()
            return cls._over(folder, ledger, ranks)
        except BaseException:
            ledger.close()
            raise

    @classmethod
    def resume(cls, folder: Path, signer: Signer, keys: Sequence[PublicKey] = ()) -> Binder:
        """Go on with a log of logs that somebody has begun, on its own terms. Raises LedgerError."""
        ranks = job_opening(folder)["ranks"]
        ledger = Ledger.open(log_path(folder), signer, keys=keys)
        try:
            return cls._over(folder, ledger, ranks)
        except BaseException:
            ledger.close()
            raise

    @classmethod
    def _over(cls, folder: Path, ledger: Ledger, ranks: int) -> Binder:
        """Return a binder that goes on from what a log of logs says."""
        entries = read_entries(log_path(folder), allow_partial_tail=True)
        bound = [entry.body for entry in entries if entry.kind == "bound"]
        heads = bound_heads(iter(bound))
        followers = [
            Follower(rank_path(folder, rank), ledger.origin, rank, ranks, heads.get(rank))
            for rank in range(ranks)
        ]
        return cls(ledger, followers, heads, 1 + max((body["binding"] for body in bound), default=-1))

    def bind(self) -> bool:
        """Read how far each rank's ledger is signed, and bind that; return whether there was anything new.

        Raises JobError, and binds nothing, where a rank's ledger does not continue what was bound.
        """
        heads = {follower.rank: follower.advance() for follower in self._followers}
        if heads == self._heads:
            return False
        listed = [heads[rank].body() for rank in sorted(heads)]
        parts = [listed[at : at + HEADS_PER_ENTRY] for at in range(0, len(listed), HEADS_PER_ENTRY)]
        for part, several in enumerate(parts):
            body = {"binding": self._bindings, "part": part, "parts": len(parts), "heads": several}
            self._ledger.append("bound", body)
        self._ledger.sign()
        self._heads = heads
        self._bindings += 1
        return True

    @property
    def over(self) -> bool:
        """Whether every rank's ledger is sealed, as far as it was read."""
        return all(follower.sealed is not None for follower in self._followers)

    def seal(self) -> None:
        """Bind the ends of the ranks' ledgers and seal the job. Raises JobError where one is not sealed."""
        self.bind()
        seals = {follower.rank: follower.sealed for follower in self._followers}
        open_ranks = [rank for rank, seal in seals.items() if seal is None]
        if open_ranks:
            raise JobError(
                f"the job cannot be sealed: {_ranks(open_ranks)} not",
                help="close the governor of every rank first",
            )
        found = [seal for seal in seals.values() if seal is not None]
        self._ledger.close(job_seal(found))

    def close(self) -> None:
        """Release the log of logs, unsealed, with everything written. Safe to repeat."""
        self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self.close()
        return False


def job_seal(seals: Sequence[dict[str, Any] | Any]) -> dict[str, int]:
    """Return the seal of a job from those of its ranks: their greatest counts, and all their examples."""
    counts = {name: max(seal[name] for seal in seals) for name in ("steps", "committed", "refused")}
    return {**counts, "examples": sum(seal["examples"] for seal in seals)}


def _opening(ledger: Ledger, terms: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": JOB_FORMAT,
        "origin": ledger.origin,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "keys": list(ledger.vkeys),
        **terms,
    }


def job_terms(*, ranks: int, every: int, lag: int, placement: Placement) -> dict[str, Any]:
    """Return the terms of a job, as its opening holds them. Raises JobError for terms that make no sense."""
    if not 1 <= ranks <= MOST_RANKS:
        raise JobError(f"a job has 1 to {MOST_RANKS:,} ranks, not {ranks:,}")
    if every < 1 or lag < 0:
        raise JobError(f"a job is bound every so many steps, not every {every} with a lag of {lag}")
    return {"ranks": ranks, "every": every, "lag": lag, "placement": placement}


def job_opening(folder: Path) -> dict[str, Any]:
    """Return the opening of a job's log of logs. Raises JobError where there is none, LedgerError."""
    first = next(iter(read_entries(log_path(folder), allow_partial_tail=True)), None)
    if first is None or first.kind != JOB_OPENING:
        raise JobError(
            f"`{log_path(folder)}` does not begin as a log of logs does", help="rank 0 of a job begins it"
        )
    return first.body


def check_terms(opened: dict[str, Any], terms: dict[str, Any]) -> None:
    """Raise JobError where a job was begun on other terms."""
    for name, value in terms.items():
        if opened[name] != value:
            raise JobError(
                f"the job was begun with {name} = {opened[name]}, not {value}",
                help="go on with the same terms, or begin a new job in another folder",
            )


def _ranks(numbers: Sequence[int]) -> str:
    shown = listed(numbers)
    return f"the ledger of rank {shown} is" if len(numbers) == 1 else f"the ledgers of ranks {shown} are"
