"""The segments of a run that can be executed again, and which of them a challenge chooses. No torch.

A segment lies between two checkpoints of the weights. It can be executed again if the first was saved with
the state of training (`Governor.checkpoint(path, state=True)`): the ledger then names that file too, as
`NAME.state`, in a `checkpoint` entry right before the one of the weights.

A challenge orders the segments by SHA-256(label ‖ SHA-256(seed) ‖ number) and takes the first k. Who knows
the seed only after the ledger was signed cannot forge around it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from math import comb
from typing import Any

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.ledger.reader import read_entries

STATE_SUFFIX = ".state"

_LABEL = b"gradwarden/challenge/1\x00"

BREAKS = frozenset({"resumed", "policy_changed"})
"""Entries within a segment that break it: the state of training at them is not known."""


@frozen
class Segment:
    """The steps between two checkpoints.

    number: from 0. start, end: the bodies of their `checkpoint` entries. state: that of the state of training
    at the start, None where none was saved. entries: the index of the entry that names the start, and of the
    one that names the end. broken: the kind of an entry within that breaks it.
    """

    number: int
    start: Mapping[str, Any]
    end: Mapping[str, Any]
    state: Mapping[str, Any] | None
    entries: tuple[int, int]
    broken: str | None

    @property
    def steps(self) -> range:
        return range(self.start["step"], self.end["step"])


@frozen
class Run:
    """The segments of a run, and how many of its steps lie in them."""

    segments: tuple[Segment, ...]
    steps: int

    @property
    def covered(self) -> int:
        return sum(len(segment.steps) for segment in self.segments)


def find_segments(path: str | os.PathLike[str]) -> Run:
    """Return the segments of a ledger, in order. Raises LedgerDamaged, LedgerError.

    Nothing is verified here. A checkpoint at the same step as the one before takes its place.
    """
    found: list[Segment] = []
    start: tuple[int, Mapping[str, Any], Mapping[str, Any] | None] | None = None
    state: Mapping[str, Any] | None = None
    broken: str | None = None
    steps = 0
    for entry in read_entries(path, allow_partial_tail=True):
        if entry.kind == "step":
            steps += 1
        elif entry.kind in BREAKS:
            broken = broken or entry.kind
        elif entry.kind == "checkpoint":
            body = entry.body
            if body["file"].endswith(STATE_SUFFIX):
                state = body
                continue
            if start is not None and body["step"] > start[1]["step"]:
                index, before, with_state = start
                found.append(Segment(len(found), before, body, with_state, (index, entry.index), broken))
            fits = state is not None and state["step"] == body["step"]
            start, state, broken = (entry.index, body, state if fits else None), None, None
    return Run(tuple(found), steps)


def challenged(segments: Sequence[Segment], count: int, seed: bytes) -> list[Segment]:
    """Return which segments a seed chooses: `count` of them, in the order of the run."""
    key = _LABEL + hashlib.sha256(seed).digest()

    def rank(segment: Segment) -> bytes:
        return hashlib.sha256(key + segment.number.to_bytes(8, "big")).digest()

    return sorted(sorted(segments, key=rank)[:count], key=lambda segment: segment.number)


def chance_of_catching(segments: int, challenged: int, forged: int = 1) -> float:
    """Return the probability that a challenge meets a forged segment: 1 - C(n - f, k) / C(n, k)."""
    return 1.0 - comb(segments - forged, challenged) / comb(segments, challenged)
