"""The effective history of weights: which of a ledger's steps led to them, and which were abandoned."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.errors import LedgerError
from gradwarden.runtime.ledger.chain import first_error, verify_chain
from gradwarden.runtime.ledger.lines import Part
from gradwarden.runtime.ledger.reader import check_whole
from gradwarden.runtime.ledger.turns import Turns
from gradwarden.runtime.records.branches import REWOUND, Branches, Saved, Spans

OUTCOMES = ("lost", "committed", "refused")
"""What becomes of a step; `lost` where a crash took its outcome away, or it has none yet."""


@frozen
class Rewind:
    """A return to earlier weights. entry: its index. body: as recorded."""

    entry: int
    body: Mapping[str, Any]


@frozen
class Stretch:
    """Steps that follow each other. outcomes: how many of them had which."""

    first: int
    last: int
    outcomes: Mapping[str, int]


@frozen
class EffectiveHistory:
    """What led to some weights. saved: None for those that the run ended with, as far as its ledger goes.

    steps: the number of the next step then. effective, abandoned: all steps before it, in two parts.
    rewinds: those of the run.
    """

    saved: Saved | None
    steps: int
    effective: tuple[Stretch, ...]
    abandoned: tuple[Stretch, ...]
    rewinds: tuple[Rewind, ...]


class _Reader:
    """Takes the parts of a ledger, in order."""

    def __init__(self) -> None:
        self.branches = Branches()
        self.rewinds: list[Rewind] = []
        self.outcomes = bytearray()
        """Of each step: its place in OUTCOMES."""

    def accept(self, part: Part) -> None:
        if isinstance(part, Turns):
            self.outcomes += bytes([1 if committed else 2 for committed in part.committed])
        elif part.kind == "step":
            self.outcomes.append(0)
        elif part.kind in OUTCOMES and self.outcomes:
            self.outcomes[-1] = OUTCOMES.index(part.kind)
        else:
            self.branches.apply(part.kind, part.body)
            if part.kind == REWOUND:
                self.rewinds.append(Rewind(part.index, part.body))

    def stretches(self, spans: Spans) -> tuple[Stretch, ...]:
        return tuple(
            Stretch(first, end - 1, {name: part.count(code) for code, name in enumerate(OUTCOMES)})
            for first, end in spans
            if (part := self.outcomes[first:end])
        )


def effective_history(
    path: str | os.PathLike[str],
    checkpoint: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EffectiveHistory:
    """Return the history of weights that a ledger names; None: of those that the run ended with.

    checkpoint: a file's name, or how its SHA-256 begins (hex); of several the last. What entries say is taken
    as it is, the chain apart: signatures and decisions are for `verify`. Raises LedgerError where the ledger
    is damaged or names no such weights, ArchiveMissing.
    """
    reader = _Reader()

    def listen() -> Callable[[Part], None]:
        nonlocal reader
        reader = _Reader()
        return reader.accept

    check_whole(path)
    report = verify_chain(path, (), listen, progress)
    if report.status == "TAMPERED":
        broken = first_error(report.findings)
        assert broken is not None
        raise LedgerError(f"entry {broken.index}: {broken.message}", help="see `gradwarden verify`")
    saved = None if checkpoint is None else _named(reader.branches, checkpoint)
    steps = len(reader.outcomes) if saved is None else saved.step
    leading = reader.branches.leading(steps) if saved is None else saved.leading
    return EffectiveHistory(
        saved,
        steps,
        reader.stretches(leading),
        reader.stretches(_others(leading, steps)),
        tuple(reader.rewinds),
    )


def _named(branches: Branches, checkpoint: str) -> Saved:
    digest = checkpoint.lower() if len(checkpoint) >= 8 else "-"
    for saved in reversed(branches.saved()):
        if saved.file == checkpoint or saved.digest.startswith(digest):
            return saved
    raise LedgerError(
        f"the ledger names no checkpoint `{checkpoint}`", help="`gradwarden log --kind checkpoint` lists them"
    )


def _others(spans: Spans, steps: int) -> Spans:
    """Return the steps before one that are not among some."""
    borders = [0, *(step for span in spans for step in span), steps]
    return tuple((first, end) for first, end in zip(borders[::2], borders[1::2], strict=True) if end > first)
