"""Which steps led to a run's weights, where it went back to earlier ones.

A run that crashed after step 212 goes on from the weights that were saved before step 201. Its ledger keeps
all steps, and numbers go on: the next step is 213. A `rewound` entry names the checkpoint and says which
steps are abandoned by it, 201 to 212: they led to weights that the run gave up. What they spent stays spent:
budgets, exposures and the number of a step count them. The *effective history* of weights leaves them out.

A run may go back to any checkpoint that it saved, one on an abandoned branch included; the steps that led
there are then effective again. Two histories of one run share how they begin, and no step after that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from gradwarden.policy.frozen import frozen

REWOUND = "rewound"

STATE_SUFFIX = ".state"
"""How the name of a file with the state of training ends; others in `checkpoint` entries hold weights."""

MOST_REWINDS = 1_000
"""Times that one run goes back; each may add a span to its history."""

Spans: TypeAlias = tuple[tuple[int, int], ...]
"""Steps in order, without gaps between them as (first, end); `end` is not among them."""


@frozen
class Saved:
    """Weights that were saved. step: the next one then. leading: the steps that led to them."""

    step: int
    file: str
    digest: str
    before: Spans
    begin: int

    @property
    def leading(self) -> Spans:
        return _joined(self.before, self.begin, self.step)

    def body(self) -> dict[str, Any]:
        """Return how a `rewound` entry names them."""
        return {"step": self.step, "file": self.file, "digest": self.digest}


class Branches:
    """A fold over the `checkpoint` and `rewound` entries of one ledger."""

    def __init__(self) -> None:
        self._before: Spans = ()
        self._begin = 0
        self._saved: dict[tuple[int, str, str], Saved] = {}
        self.last: Saved | None = None
        """The weights that were saved, or gone back to, last."""
        self.rewinds = 0

    def apply(self, kind: str, body: Mapping[str, Any]) -> None:
        """Advance by one entry. Kinds that change nothing are ignored; so is a return to unknown weights."""
        if kind == "checkpoint":
            if not body["file"].endswith(STATE_SUFFIX):
                self._keep(Saved(body["step"], body["file"], body["digest"], self._before, self._begin))
        elif kind == REWOUND:
            self.rewinds += 1
            saved = self.find(body["checkpoint"])
            if saved is not None:
                self._before, self._begin, self.last = saved.leading, body["step"], saved

    def _keep(self, saved: Saved) -> None:
        key = saved.step, saved.file, saved.digest
        self._saved.pop(key, None)  # so that the order is that of the last time
        self._saved[key] = self.last = saved

    def find(self, checkpoint: Mapping[str, Any]) -> Saved | None:
        """Return the weights that a `rewound` entry names; the last ones that fit."""
        return self._saved.get((checkpoint["step"], checkpoint["file"], checkpoint["digest"]))

    def with_digest(self, digest: str) -> Saved | None:
        """Return the weights with a digest that were saved last."""
        return next((one for one in reversed(self._saved.values()) if one.digest == digest), None)

    def saved(self) -> list[Saved]:
        """Return all weights that were saved, in order."""
        return list(self._saved.values())

    def leading(self, next_step: int) -> Spans:
        """Return the steps that led to the weights in hand. next_step: the number of the next one."""
        return _joined(self._before, self._begin, next_step)

    def rewind(self, saved: Saved, next_step: int) -> dict[str, Any]:
        """Return the body of the entry by which a run goes back to weights that it saved."""
        return {
            "step": next_step,
            "checkpoint": saved.body(),
            "abandoned": [list(span) for span in beyond(self.leading(next_step), saved.leading)],
            "effective": length(saved.leading),
        }


def beyond(history: Spans, other: Spans) -> Spans:
    """Return the steps of one history that come after what it shares with another of the same run."""
    for place, (own, others) in enumerate(zip(history, other, strict=False)):
        if own != others:
            end = min(own[1], others[1]) if own[0] == others[0] else own[0]
            return _joined((), end, own[1]) + history[place + 1 :]
    return history[len(other) :]


def length(spans: Spans) -> int:
    """Return how many steps there are."""
    return sum(end - first for first, end in spans)


def told(spans: Spans) -> str:
    """Say which steps these are."""
    return (
        ", ".join(f"{first}..{end - 1}" if end - first > 1 else str(first) for first, end in spans) or "none"
    )


def _joined(before: Spans, first: int, end: int) -> Spans:
    if end <= first:
        return before
    if before and before[-1][1] == first:
        return (*before[:-1], (before[-1][0], end))
    return (*before, (first, end))
