"""Reads the usual lines of a ledger, steps and their outcomes in turn, many at once and column by column.

Nearly all lines of a ledger are of these kinds. One regular expression per line settles its shape and takes
it apart (`usual`); then all texts of one field are parsed, printed again and compared together. A line whose
fields are canonical is canonical, since no field can reach into the next: the expressions allow brackets,
quotes and braces only in pairs.

Nothing is named here: whatever looks odd is left to `entries.decode`, or ends the attempt.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import orjson

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.ledger.entries import CANONICAL, OddBlockError
from gradwarden.runtime.ledger.numbering import Numbered, Numbering
from gradwarden.runtime.ledger.usual import STEP_FIELDS


@frozen
class Turns:
    """Steps with their outcomes, one after the other: n steps, which are 2n entries.

    first: the index of the first entry. numbers, counts, epochs, todays, verdicts, spent, commitments (in
    base64): per step. examples: all commitments, as numbers. classes, decisions, exposures (int32), signals
    (int64), slots: per example, one step after the other; exposures are None where none of the steps has any.
    outcomes: a JSON list of the bodies of the outcomes. committed: per step, whether it was, or else refused.
    """

    first: int
    numbers: list[int]
    counts: list[int]
    epochs: list[int]
    todays: list[int | None]
    verdicts: list[str]
    spent: list[list[str]]
    commitments: list[bytes]
    examples: Numbered
    classes: array[int]
    decisions: array[int]
    exposures: array[int] | None
    signals: dict[str, array[int]]
    slots: dict[str, list[int | None]]
    outcomes: bytes
    committed: list[bool]

    def results(self) -> list[dict[str, Any]]:
        """Return the bodies of the outcomes."""
        bodies: list[dict[str, Any]] = orjson.loads(self.outcomes)
        return bodies

    def entries(self) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """Yield index, kind and body of each entry."""
        start = 0
        for place, (count, outcome) in enumerate(zip(self.counts, self.results(), strict=True)):
            examples = slice(start, start + count)
            start += count
            index = self.first + 2 * place
            yield index, "step", self._step(place, examples)
            yield index + 1, "committed" if self.committed[place] else "refused", outcome

    def _step(self, place: int, examples: slice) -> dict[str, Any]:
        return {
            "step": self.numbers[place],
            "epoch": self.epochs[place],
            "today": self.todays[place],
            "count": self.counts[place],
            "commitments": self.commitments[place].decode(),
            "classes": self.classes[examples].tolist(),
            "exposures": None if self.exposures is None else self.exposures[examples].tolist(),
            "signals": {name: values[examples].tolist() for name, values in self.signals.items()},
            "slots": {name: values[examples] for name, values in self.slots.items()},
            "spent": self.spent[place],
            "decision": self.decisions[examples].tolist(),
            "verdict": self.verdicts[place],
        }


def check_steps(steps: Sequence[tuple[bytes, ...]], *, sound: bool = False) -> dict[str, Any]:
    """Check steps that `usual` has taken apart; return what they say, by field. Raises OddBlockError.

    sound: whether all are known to be canonical entries of one form; then they are only read.
    commitments and verdict are left as they are; lists and mappings of lists are joined; exposures are None
    where no step has any.
    """
    fields: dict[str, Any] = dict(zip(STEP_FIELDS, zip(*steps, strict=True), strict=True))
    counts = values_of(fields["count"], sound)
    if not (sound or all(map(_fits, fields["commitments"], counts))):
        raise OddBlockError
    if not any(text is not None for text in fields["exposures"]):
        fields["exposures"] = None
    values = {name: values_of(fields[name], sound) for name in ("step", "epoch", "today")}
    lists = {name: _numbers(fields[name], counts, sound) for name in ("classes", "decision", "exposures")}
    named = {name: named_columns(fields[name], counts, sound) for name in ("signals", "slots")}
    return {**fields, "count": counts, **values, **lists, **named, "spent": values_of_few(fields["spent"])}


def check_outcomes(outcomes: Sequence[tuple[bytes | None, ...]], *, sound: bool = False) -> bytes:
    """Check outcomes that `usual` has taken apart; return their bodies, a JSON list. Raises OddBlockError.

    sound: whether all are known to be canonical entries.
    """
    bodies = _joined(committed or refused or b"" for committed, refused, _ in outcomes)
    if not sound:
        _parsed(bodies)
    return bodies


def read_turns(
    first: int,
    steps: Sequence[tuple[bytes, ...]],
    outcomes: Sequence[tuple[bytes | None, ...]],
    numbering: Numbering,
    *,
    sound: bool = False,
) -> Turns:
    """Return steps and outcomes that `usual` has taken apart. Raises OddBlockError.

    first: the index of the first. numbering: of commitments. sound: see `check_steps` and `check_outcomes`.
    """
    told, bodies = check_steps(steps, sound=sound), check_outcomes(outcomes, sound=sound)
    try:
        return Turns(
            first,
            told["step"],
            told["count"],
            told["epoch"],
            told["today"],
            [text.decode() for text in told["verdict"]],
            told["spent"],
            list(told["commitments"]),
            numbering.number(told["commitments"]),
            array("i", told["classes"]),
            array("i", told["decision"]),
            None if told["exposures"] is None else array("i", told["exposures"]),
            {name: array("q", values) for name, values in told["signals"].items()},
            told["slots"],
            bodies,
            [committed is not None for committed, _, _ in outcomes],
        )
    except OverflowError:
        raise OddBlockError from None


def _joined(texts: Iterable[bytes]) -> bytes:
    return b"[" + b",".join(texts) + b"]"


def _parsed(text: bytes, sound: bool = False) -> list[Any]:
    """Return the values of a JSON list. Raises OddBlockError where it is not canonical, nor known to be."""
    try:
        values: list[Any] = orjson.loads(text)
        canonical = sound or orjson.dumps(values, option=CANONICAL) == text
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        canonical = False
    if not canonical:
        raise OddBlockError
    return values


def values_of(texts: Iterable[bytes], sound: bool = False) -> list[Any]:
    return _parsed(_joined(texts), sound)


def values_of_few(texts: Sequence[bytes]) -> list[Any]:
    """Return the values of texts of which few are distinct; equal ones are one object."""
    distinct = list(set(texts))
    known = dict(zip(distinct, values_of(distinct), strict=True))
    return [known[text] for text in texts]


def _fits(packed: bytes, count: int) -> bool:
    """Whether base64 has the length of so many commitments."""
    return len(packed) % 4 == 0 and len(packed.rstrip(b"=")) == (256 * count + 5) // 6


def _numbers(texts: Sequence[bytes | None] | None, counts: Sequence[int], sound: bool) -> list[int] | None:
    """Return the numbers of lists without their brackets, joined; each list must have so many."""
    if texts is None:
        return None
    if not sound and (None in texts or [text.count(b",") + 1 if text else 0 for text in texts] != counts):
        raise OddBlockError
    return values_of(filter(None, texts), sound)


def named_columns(texts: Sequence[bytes], counts: Sequence[int], sound: bool = False) -> dict[str, list[Any]]:
    """Return the columns of mappings of names to lists, joined by name; all have the same names."""
    names, *others = set(texts) if texts[0] == b"{}" else (b"",)
    if names == b"{}" and not others:
        return {}
    columns: list[Mapping[str, list[Any]]] = values_of(texts, sound)
    joined = {}
    for name in columns[0]:
        try:
            lists = [column[name] for column in columns]
        except KeyError:
            raise OddBlockError from None
        if not sound and list(map(len, lists)) != counts:
            raise OddBlockError
        joined[name] = list(chain.from_iterable(lists))
    if {len(joined)} != set(map(len, columns)):
        raise OddBlockError
    return joined
