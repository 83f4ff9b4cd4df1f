"""The segments of a run that can be executed again, and which of them a challenge chooses. No torch.

A segment lies between two checkpoints of the weights. It can be executed again if the first was saved with
the state of training (`Governor.checkpoint(path, state=True)`): the ledger then names that file too, as
`NAME.state`, in a `checkpoint` entry right before the one of the weights. Where the run went back to a
checkpoint (`rewound`), a segment begins there again; segments that were abandoned by it count for nothing.

A challenge orders the segments by SHA-256(label ‖ SHA-256(seed) ‖ number) and takes the first k. Who knows
the seed only after the ledger was signed cannot forge around it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from math import comb
from typing import Any, TypeAlias

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.ledger.chain import Finding
from gradwarden.runtime.ledger.reader import read_entries
from gradwarden.runtime.records.branches import REWOUND, STATE_SUFFIX, Branches, length

_LABEL = b"gradwarden/challenge/1\x00"

BREAKS = frozenset({"resumed", "policy_changed"})
"""Entries within a segment that break it: the state of training at them is not known."""


@frozen
class Segment:
    """The steps between two checkpoints.

    number: from 0. start, end: the bodies of their `checkpoint` entries. state: that of the state of training
    at the start, None where none was saved. entries: the index of the entry that names the start, or goes
    back to it, and of the one that names the end. broken: the kind of an entry within that breaks it. begin:
    the number of the first step; where the run went back to the start, that of the start is smaller.
    """

    number: int
    start: Mapping[str, Any]
    end: Mapping[str, Any]
    state: Mapping[str, Any] | None
    entries: tuple[int, int]
    broken: str | None
    begin: int

    @property
    def steps(self) -> range:
        return range(self.begin, self.end["step"])


@frozen
class Run:
    """The segments that led to the weights that a run ended with, and how many steps did.

    abandoned: steps that did not, since the run went back to earlier weights. jumps: where weights were saved
    that are others than those before them, and no step lies between (`other_weights`): no segment has that.
    """

    segments: tuple[Segment, ...]
    steps: int
    abandoned: int
    jumps: tuple[Finding, ...] = ()

    @property
    def covered(self) -> int:
        return sum(len(segment.steps) for segment in self.segments)


_Parts: TypeAlias = tuple[
    Mapping[str, Any], Mapping[str, Any], Mapping[str, Any] | None, tuple[int, int], str | None, int
]
"""What a segment is made of, but for its number."""


@frozen
class _Start:
    """Where a segment begins: the entry, the bodies of the weights and the state, the first step."""

    index: int
    weights: Mapping[str, Any]
    state: Mapping[str, Any] | None
    begin: int


def find_segments(path: str | os.PathLike[str]) -> Run:
    """Return the segments of a ledger, in order. Raises LedgerDamaged, LedgerError.

    Nothing is verified here. A checkpoint at the same step as the one before takes its place; averages of the
    weights are passed over.
    """
    found: list[_Parts] = []
    jumps: list[tuple[int, Finding]] = []
    kept: dict[tuple[int, str, str], _Start] = {}
    branches, next_step = Branches(), 0
    start: _Start | None = None
    state: Mapping[str, Any] | None = None
    broken: str | None = None
    for entry in read_entries(path, allow_partial_tail=True):
        body = entry.body
        branches.apply(entry.kind, body)
        if entry.kind == "step":
            next_step = body["step"] + 1
        elif entry.kind in BREAKS:
            broken = broken or entry.kind
        elif entry.kind == REWOUND:
            again = kept.get(_key(body["checkpoint"]))
            start = None if again is None else _Start(entry.index, again.weights, again.state, body["step"])
            state, broken = None, None
        elif entry.kind == "checkpoint":
            if body["file"].endswith(STATE_SUFFIX):
                state = body
                continue
            if (body["tensors"] or {}).get("of") == "average":
                continue
            if start is not None and body["step"] == start.begin and _differ(start.weights, body):
                jumps.append((start.begin, _jump(entry.index, start.weights, body)))
            if start is not None and body["step"] > start.begin:
                places = start.index, entry.index
                found.append((start.weights, body, start.state, places, broken, start.begin))
            fits = state is not None and state["step"] == body["step"]
            start, broken = _Start(entry.index, body, state if fits else None, body["step"]), None
            kept[_key(body)], state = start, None
    leading = branches.leading(next_step)
    effective = (parts for parts in found if any(first <= parts[-1] < end for first, end in leading))
    segments = tuple(Segment(number, *parts) for number, parts in enumerate(effective))
    left = tuple(told for at, told in jumps if any(first <= at <= end for first, end in leading))
    return Run(segments, length(leading), next_step - length(leading), left)


def _differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two checkpoints hold other weights, as far as the ledger says."""
    if one["tensors"] is not None and other["tensors"] is not None:
        return bool(one["tensors"]["root"] != other["tensors"]["root"])
    return bool(one["digest"] != other["digest"])


def _jump(index: int, before: Mapping[str, Any], after: Mapping[str, Any]) -> Finding:
    return Finding(
        "other_weights",
        index,
        f"`{after['file']}` holds other weights than `{before['file']}`, and no step lies between",
    )


def _key(checkpoint: Mapping[str, Any]) -> tuple[int, str, str]:
    return checkpoint["step"], checkpoint["file"], checkpoint["digest"]


def challenged(segments: Sequence[Segment], count: int, seed: bytes) -> list[Segment]:
    """Return which segments a seed chooses: `count` of them, in the order of the run."""
    key = _LABEL + hashlib.sha256(seed).digest()

    def rank(segment: Segment) -> bytes:
        return hashlib.sha256(key + segment.number.to_bytes(8, "big")).digest()

    return sorted(sorted(segments, key=rank)[:count], key=lambda segment: segment.number)


def chance_of_catching(segments: int, challenged: int, forged: int = 1) -> float:
    """Return the probability that a challenge meets a forged segment: 1 - C(n - f, k) / C(n, k)."""
    return 1.0 - comb(segments - forged, challenged) / comb(segments, challenged)
