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
from gradwarden.runtime.jobs.layout import MOST_RANKS, Placement, log_path, rank_path
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

    def __init__(self, ledger: Ledger, followers: Sequence[Follower], heads: dict[int, RankHead]) -> None:
        self.job = ledger.origin
        self._ledger = ledger
        self._followers = tuple(followers)
        self._heads = heads
        self._bindings = 0

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
        terms = {"ranks": ranks, "every": every, "lag": lag, "placement": placement}
        for name in ("ranks", "every", "lag"):
            if terms[name] < (name != "lag"):  # type: ignore[operator]  # the text is the last
                raise JobError(f"a job with {name} = {terms[name]} makes no sense")
        if ranks > MOST_RANKS:
            raise JobError(f"a job has at most {MOST_RANKS:,} ranks, not {ranks:,}")
        path = log_path(folder)
        ledger = Ledger.open(path, signer, durability, keys=keys)
        try:
            known = list(read_entries(path)) if ledger.entries_on_open else []
            if known:
                _check_terms(known[0].body, terms)
            else:
                ledger.append(JOB_OPENING, _opening(ledger, terms))
                ledger.flush()
            bound = [entry.body for entry in known if entry.kind == "bound"]
            heads = bound_heads(iter(bound))
            job = ledger.origin
            followers = [
                Follower(rank_path(folder, rank), job, rank, ranks, heads.get(rank)) for rank in range(ranks)
            ]
            binder = cls(ledger, followers, heads)
            binder._bindings = 1 + max((body["binding"] for body in bound), default=-1)
        except BaseException:
            ledger.close()
            raise
        return binder

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

    def seal(self) -> None:
        """Bind the ends of the ranks' ledgers and seal the job. Raises JobError where one is not sealed."""
        self.bind()
        seals = {follower.rank: follower.sealed for follower in self._followers}
        open_ranks = [str(rank) for rank, seal in seals.items() if seal is None]
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


def _check_terms(opened: dict[str, Any], terms: dict[str, Any]) -> None:
    for name, value in terms.items():
        if opened.get(name) != value:
            raise JobError(
                f"the job was begun with {name} = {opened.get(name)}, not {value}",
                help="go on with the same terms, or begin a new job in another folder",
            )


def _ranks(numbers: Sequence[str]) -> str:
    shown = ", ".join(numbers[:8]) + (", …" if len(numbers) > 8 else "")
    return f"the ledger of rank {shown} is" if len(numbers) == 1 else f"the ledgers of ranks {shown} are"
