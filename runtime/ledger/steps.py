"""Reads the steps of a block that have one form, column by column."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradwarden.policy.array_types import Numbers
from gradwarden.policy.frozen import frozen
from gradwarden.runtime.ledger.entries import OddBlockError
from gradwarden.runtime.ledger.numbering import BASE64, Numbering
from gradwarden.runtime.ledger.numerals import Numerals, read_numerals
from gradwarden.runtime.ledger.turns import Turns, named_columns, values_of, values_of_few
from gradwarden.runtime.ledger.usual import FORM_FIELDS, StepForm

_GREATEST = 2**31 - 1
_PADDING = ord("=")


@frozen
class Steps:
    """Steps of one form that are entries.

    form: theirs. texts: what stands in each field but those of numbers, by name. counts: how many examples
    each step has. numerals: of classes, decisions, exposures where there are any, and each signal. slots: per
    example, by name.
    """

    form: StepForm
    texts: Mapping[str, Sequence[bytes]]
    counts: Numbers
    numerals: Numerals
    slots: dict[str, list[int | None]]


def check_steps_of_form(form: StepForm, found: Sequence[tuple[bytes, ...]]) -> Steps | None:
    """Return steps that a form has taken apart; None where some may be no entry."""
    if not found:
        return None
    columns = list(zip(*found, strict=True))
    names = [name for name in FORM_FIELDS if name != "signals" and (form.exposed or name != "exposures")]
    place = names.index("slots")
    signals = columns[place : place + len(form.signals)]
    texts = dict(zip(names, columns[:place] + columns[place + len(signals) :], strict=True))
    counts = np.array(values_of_few(texts["count"]), np.int64)
    lists = [texts[name] for name in ("classes", "decision", "exposures") if name in texts]
    if not (counts.min(initial=1) and _are_commitments(texts["commitments"], counts)):
        return None
    numerals = read_numerals([*lists, *signals], counts, signed=len(signals))
    if numerals is None:
        return None
    try:
        slots = named_columns(texts["slots"], counts.tolist())
    except OddBlockError:
        return None
    return Steps(form, texts, counts, numerals, slots)


def _are_commitments(texts: Sequence[bytes], counts: Numbers) -> bool:
    """Whether texts are the base64 of so many commitments each."""
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    if not np.array_equal(sizes, (32 * counts + 2) // 3 * 4):
        return False
    joined = b"".join(texts)
    codes, ends, padding = np.frombuffer(joined, np.uint8), np.cumsum(sizes), -32 * counts % 3
    for place in (1, 2):
        if not (codes[ends[padding >= place] - place] == _PADDING).all():
            return False
    return len(joined.translate(None, BASE64)) == int(padding.sum())


class StepColumns:
    """What steps say, and parts of it together with their outcomes."""

    def __init__(self, steps: Steps) -> None:
        self._texts = steps.texts
        self._counts = steps.counts.tolist()
        self._ends = np.concatenate(([0], np.cumsum(steps.counts))).tolist()
        self._slots = steps.slots
        self._values = {name: values_of(steps.texts[name]) for name in ("step", "epoch", "today")}
        self._spent = values_of_few(steps.texts["spent"])
        self._verdicts = [text.decode() for text in steps.texts["verdict"]]
        numerals = steps.numerals
        exposed = 3 if steps.form.exposed else 2
        self._small = [_small(numerals.values(column)) for column in range(exposed)]
        values = map(numerals.values, range(exposed, exposed + len(steps.form.signals)))
        self._signals = dict(zip(steps.form.signals, values, strict=True))

    def turns(
        self, span: slice, first: int, outcomes: bytes, committed: list[bool], numbering: Numbering
    ) -> Turns:
        """Return some of the steps with their outcomes; see `Turns`. span: the steps, by number."""
        examples = slice(self._ends[span.start], self._ends[span.stop])
        commitments = list(self._texts["commitments"][span])
        small = [array("i", values[examples].tobytes()) for values in self._small]
        classes, decisions, exposures, *_ = (*small, None)
        assert classes is not None
        return Turns(
            first,
            self._values["step"][span],
            self._counts[span],
            self._values["epoch"][span],
            self._values["today"][span],
            self._verdicts[span],
            self._spent[span],
            commitments,
            numbering.number(commitments),
            classes,
            decisions,
            exposures,
            {name: array("q", values[examples].tobytes()) for name, values in self._signals.items()},
            {name: values[examples] for name, values in self._slots.items()},
            outcomes,
            committed,
        )


def _small(values: Numbers) -> Any:
    """Return numbers with 32 bits. Raises OddBlockError where they do not fit."""
    if values.max(initial=0) > _GREATEST:
        raise OddBlockError
    return values.astype(np.intc)
