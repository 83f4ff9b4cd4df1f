"""What a job's log of logs says, and whether a binder can have written it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.jobs.follower import RankHead
from gradwarden.runtime.jobs.layout import MOST_RANKS, rank_origin
from gradwarden.runtime.ledger.entries import JOB_OPENING, RESUMED, SEALED, Entry
from gradwarden.runtime.ledger.lines import Part
from gradwarden.runtime.ledger.merkle import EMPTY_ROOT

_OTHERS = frozenset({"head", "rotated", "revoked", RESUMED})


@frozen
class Binding:
    """One binding. index: of its last entry. heads: of every rank, in order."""

    index: int
    heads: tuple[RankHead, ...]

    @property
    def step(self) -> int:
        """The next step of the rank that is most advanced."""
        return max(head.step for head in self.heads)


class LogOfLogs:
    """A listener that keeps what a log of logs says, up to the first entry that makes no sense (`odd`)."""

    def __init__(self) -> None:
        self.opened: Mapping[str, Any] | None = None
        self.bindings: list[Binding] = []
        self.last: Mapping[int, RankHead] = {}
        """The head that was bound last of each rank."""
        self.sealed: Mapping[str, Any] | None = None
        self.odd: tuple[int, str] | None = None
        self._heads: list[RankHead] = []
        self._due = 0
        """The part that must come next of the binding in hand."""

    def accept(self, part: Part) -> None:
        """Take the next part of the chain."""
        entries = [(part.index, part.kind, part.body)] if isinstance(part, Entry) else part.entries()
        for index, kind, body in entries:
            if self.odd is None:
                wrong = self._accept(index, kind, body)
                self.odd = None if wrong is None else (index, wrong)

    def _accept(self, index: int, kind: str, body: Mapping[str, Any]) -> str | None:
        """Take an entry; return what is wrong with it."""
        if kind == JOB_OPENING:
            if not 1 <= body["ranks"] <= MOST_RANKS:
                return f"it speaks of a job with {body['ranks']} ranks"
            self.opened = body
            return None
        if self.opened is None:
            return "it is the ledger of a run, not a log of logs"
        if kind == "bound":
            return self._bind(index, body)
        if kind == SEALED:
            self.sealed = body
            return None
        if kind == RESUMED:
            self._heads, self._due = [], 0  # a crash between two parts leaves a binding unfinished
        return None if kind in _OTHERS else f"a `{kind}` entry has no place in a log of logs"

    def _bind(self, index: int, body: Mapping[str, Any]) -> str | None:
        if (body["part"], body["binding"]) != (self._due, len(self.bindings)) or body["parts"] <= body[
            "part"
        ]:
            return "the parts of the bindings do not follow each other"
        self._heads += [RankHead(**head) for head in body["heads"]]
        self._due += 1
        if self._due < body["parts"]:
            return None
        heads, self._heads, self._due = tuple(self._heads), [], 0
        wrong = self._wrong_heads(heads)
        self.bindings.append(Binding(index, heads))
        self.last = {head.rank: head for head in heads}
        return wrong

    def _wrong_heads(self, heads: Sequence[RankHead]) -> str | None:
        """Return why these are not heads of all ranks, each grown since the last binding."""
        assert self.opened is not None
        origins = [rank_origin(self.opened["origin"], rank) for rank in range(self.opened["ranks"])]
        if [head.rank for head in heads] != list(range(len(origins))):
            return "a binding does not name every rank once, in order"
        if [head.origin for head in heads] != origins:
            return "a binding names a ledger by another origin than its rank's"
        if any(head.root != EMPTY_ROOT.hex() or head.step for head in heads if not head.size):
            return "a binding says something of a ledger without entries"
        before = self.bindings[-1].heads if self.bindings else ()
        for old, new in zip(before, heads, strict=False):
            if new.size < old.size or (new.size == old.size and new != old):
                return f"the ledger of rank {new.rank} is bound a second time, with fewer or other entries"
        return None


def bound_of(bindings: Sequence[Binding], rank: int) -> Iterator[tuple[int, RankHead]]:
    """Yield the index of each binding, and the head that it binds of a rank, each head once."""
    size = 0
    for binding in bindings:
        head = binding.heads[rank] if rank < len(binding.heads) else None
        if head is not None and head.size > size:
            size = head.size
            yield binding.index, head
