"""Reads the lines of one block: whether they are entries, and what they say.

Most lines are steps and their outcomes of one form, recognised as `usual` says; what the steps say is read
and checked all together (`steps`). Of other steps and outcomes, a line is taken apart by itself, and what
they say is checked many at a time (`turns`). All else goes through `entries.decode`, line by line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.ledger.entries import Entry, MalformedLineError, OddBlockError, decode
from gradwarden.runtime.ledger.frames import Frames
from gradwarden.runtime.ledger.numbering import Numbering
from gradwarden.runtime.ledger.steps import StepColumns, Steps, check_steps_of_form
from gradwarden.runtime.ledger.turns import (
    Turns,
    check_outcomes,
    check_steps,
    read_turns,
)
from gradwarden.runtime.ledger.usual import (
    OUTCOME_APART,
    STEP_APART,
    Form,
    StepForm,
    outcome_form,
    refused_form,
    step_form,
)

Part: TypeAlias = Turns | Entry
"""What a listener is told of: many steps and outcomes together, or one entry."""

USED_TO = 16
"""Lines of another form than expected, after which the next are expected to have that of the last."""

MOST_FORMS = 8
"""Expressions that are made for one file; each takes as long as some thousand lines."""


@frozen
class _Expected:
    """Lines of the expected forms, all of them entries, by number in order.

    rows, steps: the steps, and what they say. outcomes: of each line, whether it is an outcome.
    """

    rows: list[int]
    steps: Steps | None
    outcomes: npt.NDArray[np.bool_]

    def others(self) -> npt.NDArray[np.bool_]:
        """Return of each line whether it is neither."""
        others = ~self.outcomes
        others[self.rows] = False
        return others

    def runs(self) -> Iterator[tuple[slice, range]]:
        """Yield the runs of steps and outcomes in turn: the steps, by number among all, and the lines."""
        rows = np.array(self.rows, np.int64)
        numbers = np.flatnonzero(np.append(self.outcomes, False)[rows + 1])
        breaks = np.flatnonzero((np.diff(rows[numbers]) != 2) | (np.diff(numbers) != 1)) + 1
        for run in np.split(numbers, breaks) if len(numbers) else ():
            first, last = int(run[0]), int(run[-1])
            yield slice(first, last + 1), range(self.rows[first], self.rows[last] + 2)


class Recogniser:
    """Recognises the steps and outcomes among the lines of one file.

    Those of one run are mostly alike in form: the same signals, the same bands. An expression for just that
    form recognises a line in a fraction of the time that one for any form takes.
    """

    def __init__(self) -> None:
        self._step: StepForm | None = None
        self._outcome: Form | None = None
        self._numbering = Numbering()
        self._unexpected = {"step": 0, "outcome": 0}
        """Lines of each kind since the last form was made that had another."""
        self._last: dict[str, re.Match[bytes]] = {}
        """The last of them in the block at hand."""
        self._made = 0

    def check(self, frames: Frames) -> None:
        """Check that lines are entries. Raises OddBlockError."""
        steps: list[tuple[bytes, ...]] = []
        outcomes: list[tuple[bytes | None, ...]] = []
        for place in np.flatnonzero(self._expected(frames).others()).tolist():
            line = frames.lines[place]
            if (step := self._apart("step", line)) is not None:
                steps.append(step.groups())
            elif (outcome := self._apart("outcome", line)) is not None:
                outcomes.append(outcome.groups())
            else:
                # What follows may belong to another program, with other signals.
                _check(steps, outcomes)
                _single(frames, place)
        _check(steps, outcomes)
        self._learn()

    def read(self, frames: Frames) -> list[Part]:
        """Return what lines say. Raises OddBlockError."""
        expected = self._expected(frames)
        parts: list[Part] = []
        done = 0
        if expected.steps is not None:
            columns, refused = StepColumns(expected.steps), set(frames.places("refused"))
            for steps, lines in expected.runs():
                parts += self._others(frames, range(done, lines.start))
                outcomes = frames.bodies(lines[1::2])
                committed = [place not in refused for place in lines[1::2]]
                bodies = b"[" + b",".join(outcomes) + b"]"
                first = frames.first + lines.start
                parts.append(columns.turns(steps, first, bodies, committed, self._numbering))
                done = lines.stop
        parts += self._others(frames, range(done, len(frames.lines)))
        self._learn()
        return parts

    def _expected(self, frames: Frames) -> _Expected:
        """Return the lines of the expected forms."""
        outcomes = np.zeros(len(frames.lines), bool)
        for kind, form in (("committed", self._outcome), ("refused", refused_form())):
            if form is not None and kind in frames.kinds:
                outcomes[frames.kinds[kind]] = form.fit(frames.heads(kind))
        places = frames.places("step")
        if self._step is None or not places:
            return _Expected([], None, outcomes)
        taken = self._step.take(frames.heads("step"))
        rows = [place for place, step in zip(places, taken, strict=True) if step is not None]
        steps = check_steps_of_form(self._step, [step for step in taken if step is not None])
        return _Expected([] if steps is None else rows, steps, outcomes)

    def _others(self, frames: Frames, span: range) -> list[Part]:
        """Return what lines say that are no run of steps and outcomes of the expected forms."""
        parts: list[Part] = []
        steps: list[tuple[bytes, ...]] = []
        outcomes: list[tuple[bytes | None, ...]] = []

        def close(end: int) -> None:
            """Take the steps and outcomes together that end before a place."""
            if steps:
                begin = frames.first + end - 2 * len(steps)
                parts.append(read_turns(begin, steps, outcomes, self._numbering))
                steps.clear()
                outcomes.clear()

        def single(place: int) -> None:
            close(place)
            parts.append(_single(frames, place))

        waiting = None
        for place in span:
            line = frames.lines[place]
            if waiting is not None:
                outcome = self._apart("outcome", line)
                if outcome is not None:
                    steps.append(waiting.groups())
                    outcomes.append(outcome.groups())
                    waiting = None
                    continue
                single(place - 1)
            waiting = self._apart("step", line)
            if waiting is None:
                single(place)
        if waiting is not None:
            single(span.stop - 1)
        close(span.stop)
        return parts

    def _apart(self, kind: str, line: bytes) -> re.Match[bytes] | None:
        """Take a line apart that has not the form which is expected; another may be expected then."""
        found = (STEP_APART if kind == "step" else OUTCOME_APART).match(line)
        if found is not None:
            self._unexpected[kind] += 1
            self._last[kind] = found
        return found

    def _learn(self) -> None:
        """Expect lines of the form of the last that had another, where enough of its kind have come."""
        for kind, found in self._last.items():
            if self._unexpected[kind] < USED_TO or self._made == MOST_FORMS:
                continue
            self._unexpected[kind] = 0
            self._made += 1
            if kind == "step":
                self._step = step_form(found) or self._step
            else:
                self._outcome = outcome_form(found) or self._outcome
        self._last.clear()


def _single(frames: Frames, place: int) -> Entry:
    """Return the entry on one line. Raises OddBlockError."""
    line = frames.lines[place]
    try:
        index, kind, _, body = decode(line)
    except MalformedLineError:
        raise OddBlockError from None
    if index != frames.first + place:
        raise OddBlockError
    return Entry(index, kind, body, line)


def _check(steps: list[tuple[bytes, ...]], outcomes: list[tuple[bytes | None, ...]]) -> None:
    """Check steps and outcomes, and leave none."""
    if steps:
        check_steps(steps)
        steps.clear()
    if outcomes:
        check_outcomes(outcomes)
        outcomes.clear()
