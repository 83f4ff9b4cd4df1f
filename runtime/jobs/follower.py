"""Follows the ledger of one rank as it grows, from its file alone, up to its latest signed head.

Each call reads what is new. The lines are checked as a verifier checks them (`links`), so a head that comes
out of here is one of a log that only grew since the last.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gradwarden.policy.errors import GradwardenError
from gradwarden.policy.frozen import frozen
from gradwarden.runtime.errors import JobError
from gradwarden.runtime.jobs.layout import rank_origin
from gradwarden.runtime.ledger.entries import HEAD, OPENING, SEALED, MalformedLineError, decode
from gradwarden.runtime.ledger.keys import PublicKey
from gradwarden.runtime.ledger.links import Links
from gradwarden.runtime.ledger.merkle import EMPTY_ROOT
from gradwarden.runtime.ledger.note import parse_checkpoint, parse_note
from gradwarden.runtime.ledger.reader import open_ledger, pieces


@frozen
class RankHead:
    """The latest signed head of a rank's ledger. root: hex. step: the number of its next step there."""

    rank: int
    origin: str
    size: int
    root: str
    step: int

    def body(self) -> dict[str, Any]:
        """Return the head as a `bound` entry holds it."""
        return {
            "rank": self.rank,
            "origin": self.origin,
            "size": self.size,
            "root": self.root,
            "step": self.step,
        }


class Follower:
    """Follows one rank's ledger.

    bound: the head that the log of logs has of it already; the ledger must still hold it.
    """

    def __init__(self, path: Path, job: str, rank: int, ranks: int, bound: RankHead | None = None) -> None:
        self.rank = rank
        self.sealed: Mapping[str, Any] | None = None
        """The body of the seal, once it is covered by a head."""
        self._path = path
        self._job, self._ranks = job, ranks
        self._links: Links | None = None
        self._step = 0
        self._seal: Mapping[str, Any] | None = None
        nothing = RankHead(rank, rank_origin(job, rank), 0, EMPTY_ROOT.hex(), 0)
        self._bound = bound or nothing
        self._head = nothing

    def advance(self) -> RankHead:
        """Read what is new and return the latest head, with size 0 where there is none yet.

        Raises JobError where the ledger is not a continuation of what was bound: cut off, rewritten, damaged,
        or another one.
        """
        if not self._path.exists():
            if self._head.size or self._bound.size:
                raise self._error("is gone")
            return self._head
        with open_ledger(self._path) as file:
            start = 0 if self._links is None else self._links.offset
            if os.fstat(file.fileno()).st_size < start:
                raise self._error("is shorter than it was")
            for piece in pieces(file, start):
                for line in piece.lines:
                    self._accept(line)
        if self._head.size < self._bound.size:
            raise self._error(f"ends before entry {self._bound.size}, which was bound")
        self._bound = self._head
        return self._head

    def _accept(self, line: bytes) -> None:
        links = self._links or self._open(line)
        index = links.size
        found = links.accept(line)
        if found is None:
            message = links.fault.message if links.fault else ""
            raise self._error(f"does not hold at entry {index}: {message}")
        kind, body = found
        if kind == "step":
            self._step = body["step"] + 1
        elif kind == "skipped":
            self._step = body["until"]
        elif kind == SEALED:
            self._seal = body
        elif kind == HEAD and links.signed_size == index:
            root = parse_checkpoint(parse_note(body["note"].encode()).text).root.hex()
            self._take(RankHead(self.rank, self._head.origin, index, root, self._step))
            self.sealed = self._seal

    def _take(self, head: RankHead) -> None:
        passed = self._head.size < self._bound.size <= head.size
        if passed and (head.size, head.root) != (self._bound.size, self._bound.root):
            raise self._error(f"was rewritten: over {self._bound.size} entries another head was bound")
        self._head = head

    def _open(self, line: bytes) -> Links:
        """Begin with the opening, which names the keys and the ledger's place in the job."""
        try:
            _, kind, _, body = decode(line)
            keys = [PublicKey.from_vkey(vkey) for vkey in body["keys"]] if kind == OPENING else []
        except (MalformedLineError, GradwardenError):
            raise self._error("does not begin as a ledger does") from None
        member = body.get("job") if kind == OPENING else None
        due = {"id": self._job, "rank": self.rank, "ranks": self._ranks}
        if member is None or {name: member[name] for name in due} != due:
            raise self._error("is the ledger of another rank, or of another job")
        if body["origin"] != rank_origin(self._job, self.rank):
            raise self._error(f"has the origin `{body['origin'][:80]}`, which is not its own")
        self._links = Links(keys)
        return self._links

    def _error(self, what: str) -> JobError:
        return JobError(
            f"the ledger of rank {self.rank} {what}",
            help=f"keep `{self._path.name}` as it is, and compare it with a copy kept elsewhere",
        )


def bound_heads(bodies: Iterator[Mapping[str, Any]]) -> dict[int, RankHead]:
    """Return the latest head of each rank that `bound` entries name."""
    return {head["rank"]: RankHead(**head) for body in bodies for head in body["heads"]}
