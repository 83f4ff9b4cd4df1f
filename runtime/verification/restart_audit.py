"""Checks from which weights a run went on: where it went back to earlier ones, and where it does not say.

A `rewound` entry must stand between two steps, name weights that the run saved, and say which steps it
abandons; all of this is worked out again (`wrong_rewind`). A run that was resumed after steps whose weights
no checkpoint holds, and goes on without a `rewound` entry, may have gone back all the same: weights are
rarely at hand after a crash. So may one that saves the same weights again after committed steps. No entry
proves either, so that is a warning: `unmarked_restart`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gradwarden.runtime.ledger.chain import Finding
from gradwarden.runtime.records.branches import (
    MOST_REWINDS,
    REWOUND,
    STATE_SUFFIX,
    Spans,
    length,
    told,
)
from gradwarden.runtime.records.history import History
from gradwarden.runtime.verification.violation import ViolationError


class RestartAudit:
    """Follows one run from checkpoint to checkpoint. history: of the run, before the entry in hand."""

    def __init__(self) -> None:
        self._moved_until = 0
        """Steps that moved the model, or may have, when weights were saved or gone back to last."""
        self._lost = 0
        self._open: int | None = None
        """The index of a `resumed` entry, until it is known from which weights the run goes on."""
        self._unmarked: list[tuple[int, str]] = []
        self._count = 0

    def accept(self, index: int, kind: str, body: Mapping[str, Any], history: History) -> None:
        """Take the next entry. Raises ViolationError: `wrong_rewind`."""
        if kind == REWOUND:
            self._check(body, history)
            self._settle(history)
        elif kind == "checkpoint" and not body["file"].endswith(STATE_SUFFIX):
            before = history.branches.with_digest(body["digest"])
            if before is not None and self._moved(history):
                self._note(
                    index,
                    f"the weights saved at step {body['step']} are those saved at step {before.step}: the "
                    "steps between may be abandoned, and are not marked",
                )
            self._settle(history)
        elif kind == "resumed":
            self._lost += history.pending is not None
            if history.branches.last is not None and (self._moved(history) or history.pending is not None):
                self._open = index

    def step(self, number: int) -> None:
        """Take the beginning of a step."""
        if self._open is not None:
            self._note(
                self._open,
                f"the run was resumed before step {number}, and does not say from which weights: none were "
                "saved since the last steps, which may be abandoned",
            )
            self._open = None

    def _moved(self, history: History) -> int:
        return history.committed + self._lost - self._moved_until

    def _settle(self, history: History) -> None:
        self._moved_until = history.committed + self._lost
        self._open = None

    def _note(self, index: int, message: str) -> None:
        self._count += 1
        if not self._unmarked:
            self._unmarked.append((index, message))

    def findings(self) -> Iterator[Finding]:
        """Yield the first restart that is not marked."""
        for index, message in self._unmarked:
            more = f" (and {self._count - 1} more)" if self._count > 1 else ""
            yield Finding("unmarked_restart", index, message + more, "warning")

    @staticmethod
    def _check(body: Mapping[str, Any], history: History) -> None:
        if history.pending is not None or body["step"] != history.next_step:
            raise _wrong("the run goes back in the middle of a step or at another one")
        if history.branches.rewinds == MOST_REWINDS:
            raise _wrong(f"the run goes back more than {MOST_REWINDS:,} times")
        named = body["checkpoint"]
        saved = history.branches.find(named)
        if saved is None:
            raise _wrong(
                f"the run goes back to `{named['file']}`, {named['digest'][:16]}… of step {named['step']}, "
                "which it did not save"
            )
        due = history.branches.rewind(saved, history.next_step)
        if body != due:
            raise _wrong(
                f"going back to `{saved.file}` abandons the steps {_spans(due)} and leaves "
                f"{due['effective']}; recorded are {_spans(body)} and {body['effective']}"
            )


def restart_facts(history: History) -> dict[str, Any]:
    """Return which steps led to the weights that the run ended with."""
    return {
        "effective": [list(span) for span in history.effective],
        "abandoned": history.next_step - length(history.effective),
        "rewinds": history.branches.rewinds,
    }


def _spans(body: Mapping[str, Any]) -> str:
    spans: Spans = tuple((first, end) for first, end in body["abandoned"])
    return told(spans)


def _wrong(message: str) -> ViolationError:
    return ViolationError("wrong_rewind", message)
