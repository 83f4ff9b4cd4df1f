"""Reads the lines of one block: which they are, and what they say.

Steps and their outcomes are recognised as `usual` says and checked many at a time (`turns`); all else goes
through `entries.decode`, line by line. Each line comes with one byte before it, where a leaf hash begins.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

from gradwarden.runtime.ledger.entries import LANDMARKS, Entry, MalformedLineError, decode
from gradwarden.runtime.ledger.numbering import Numbering
from gradwarden.runtime.ledger.turns import (
    OddBlockError,
    Turns,
    check_outcomes,
    check_steps,
    read_turns,
)
from gradwarden.runtime.ledger.usual import (
    STEP_FIELDS,
    Form,
    outcome_apart,
    outcome_form,
    step_apart,
    step_form,
)

Part: TypeAlias = Turns | Entry
"""What a listener is told of: many steps and outcomes together, or one entry."""

Landmarks: TypeAlias = dict[int, tuple[int, bytes]]
"""Lines that need the state of the whole ledger, by index, and the byte of the block at which each begins."""

INDEX = len(STEP_FIELDS)
OUTCOME_INDEX = 3
"""The groups of `step_apart` and `outcome_apart` that hold the index."""

USED_TO = 16
"""Lines of another form than expected, after which the next are expected to have that of the last."""

MOST_FORMS = 8
"""Expressions that are made for one file; each takes as long as some thousand lines."""


def _single(first: int, place: int, lines: Sequence[bytes], landmarks: Landmarks) -> Entry:
    """Return the entry on one line."""
    line = lines[place][1:]
    try:
        index, kind, _, body = decode(line)
    except MalformedLineError:
        raise OddBlockError from None
    if index != first + place:
        raise OddBlockError
    if kind in LANDMARKS:
        # Each line has one byte before it instead of the one that ended it.
        landmarks[index] = (sum(map(len, lines[:place])), line)
    return Entry(index, kind, body, line)


def _check_indices(found: Sequence[bytes | None], due: range) -> None:
    if found != [b"%d" % index for index in due]:
        raise OddBlockError


class Recogniser:
    """Recognises the steps and outcomes among the lines of one file.

    Steps of one run are mostly alike in form: so many examples, the same signals. An expression for just that
    form tells in one go that a line is canonical and has the shape of its kind.
    """

    def __init__(self) -> None:
        self._step: Form = _nothing
        self._outcome: Form = _nothing
        self._numbering = Numbering()
        self._loose = False
        """Whether some line was recognised that had not the form which was expected."""
        self._unexpected = {"step": 0, "outcome": 0}
        """Lines of each kind since the last form was made that had another."""
        self._made = 0

    def check(self, first: int, lines: Sequence[bytes]) -> tuple[Landmarks, list[Part]]:
        """Return the landmarks among lines, and no parts. Raises OddBlockError.

        first: the index that the first line must have.
        """
        landmarks: Landmarks = {}
        steps: list[tuple[bytes, ...]] = []
        outcomes: list[tuple[bytes | None, ...]] = []
        indices: list[bytes | None] = []
        for place, line in enumerate(lines):
            found = self._step(line, 1)
            if found is not None:
                indices.append(found[INDEX])
                continue
            found = self._outcome(line, 1)
            if found is not None:
                indices.append(found[OUTCOME_INDEX])
            elif (step := self._loosely("step", step_apart, line)) is not None:
                steps.append(step.groups())
                indices.append(step[INDEX])
            elif (outcome := self._loosely("outcome", outcome_apart, line)) is not None:
                outcomes.append(outcome.groups())
                indices.append(outcome[OUTCOME_INDEX])
            else:
                # What follows may belong to another program, with other signals.
                _check(steps, outcomes)
                indices.append(b"%d" % _single(first, place, lines, landmarks).index)
        _check(steps, outcomes)
        _check_indices(indices, range(first, first + len(lines)))
        return landmarks, []

    def read(self, first: int, lines: Sequence[bytes]) -> tuple[Landmarks, list[Part]]:
        """Return the landmarks among lines, and what all say. Raises OddBlockError.

        first: the index that the first line must have.
        """
        landmarks: Landmarks = {}
        parts: list[Part] = []
        steps: list[tuple[bytes, ...]] = []
        outcomes: list[tuple[bytes | None, ...]] = []

        def close(end: int) -> None:
            """Take the steps and outcomes together that end before a place."""
            if steps:
                begin = first + end - 2 * len(steps)
                found = [text for pair in zip(steps, outcomes, strict=True) for *_, text in pair]
                _check_indices(found, range(begin, first + end))
                parts.append(read_turns(begin, steps, outcomes, self._numbering, sound=not self._loose))
                steps.clear()
                outcomes.clear()
            self._loose = False

        def single(place: int) -> None:
            close(place)
            parts.append(_single(first, place, lines, landmarks))

        waiting = None
        for place, line in enumerate(lines):
            if waiting is not None:
                outcome = self._outcome(line, 1) or self._loosely("outcome", outcome_apart, line)
                if outcome is not None:
                    steps.append(waiting.groups())
                    outcomes.append(outcome.groups())
                    waiting = None
                    continue
                single(place - 1)
            waiting = self._step(line, 1) or self._loosely("step", step_apart, line)
            if waiting is None:
                single(place)
        if waiting is not None:
            single(len(lines) - 1)
        close(len(lines))
        return landmarks, parts

    def _loosely(self, kind: str, apart: Form, line: bytes) -> re.Match[bytes] | None:
        """Take a line apart that has not the form which is expected; another may be expected then."""
        found = apart(line, 1)
        if found is not None:
            self._loose = True
            self._expect(kind, found)
        return found

    def _expect(self, kind: str, found: re.Match[bytes]) -> None:
        """Expect lines of the form of one that was found, where enough have come that had another form."""
        self._unexpected[kind] += 1
        if self._unexpected[kind] < USED_TO or self._made == MOST_FORMS:
            return
        self._unexpected[kind] = 0
        self._made += 1
        if kind == "step":
            self._step = step_form(found) or self._step
        else:
            self._outcome = outcome_form(found) or self._outcome


def _nothing(_line: bytes, _start: int) -> None:
    """Recognise no line."""


def _check(steps: list[tuple[bytes, ...]], outcomes: list[tuple[bytes | None, ...]]) -> None:
    """Check steps and outcomes, and leave none."""
    if steps:
        check_steps(steps)
        steps.clear()
    if outcomes:
        check_outcomes(outcomes)
        outcomes.clear()
