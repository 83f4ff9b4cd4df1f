"""Checks what steps record of their examples: that their metadata stay, and how often they came before.

A class says what an example's metadata are, a commitment which example it is. So one commitment has one
class and one value of every slot, from an `opened`, `policy_changed` or `resumed` entry to the next: the
first two number classes by another program, and a run that is resumed gets its examples anew. Its exposures
are what earlier steps add up to (`history` says which count).

Nothing here is decided by the policy.
"""

from __future__ import annotations

from binascii import a2b_base64
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from gradwarden.policy.array_types import Numbers
from gradwarden.policy.evaluation.lookup import GrowingArray
from gradwarden.runtime.commitments import SIZE
from gradwarden.runtime.ledger.numbering import Numbered
from gradwarden.runtime.ledger.turns import Turns
from gradwarden.runtime.verification.violation import ViolationError

UNKNOWN = -1
"""The kind of an example of which nothing was recorded."""


class ExampleAudit:
    """Follows the examples of a run from entry to entry."""

    def __init__(self) -> None:
        self._program: list[str] = []
        self._signals: frozenset[str] = frozenset()
        self._kinds = GrowingArray(np.int64)
        """What each class says of an example: the truth of the tests, or what is wrong with it."""
        self._meanings: defaultdict[Hashable, int] = defaultdict(count().__next__)
        """Whatever is said of examples, by classes alone or with slots, is numbered."""
        self._silent: set[int] = set()
        """Classes that say nothing of an example: only signals are at fault."""
        self._weighty = GrowingArray(np.bool_)
        """Whether a decision lets some weight through, by its number."""
        self._parts: list[str] = []
        self._rows: defaultdict[bytes, int] = defaultdict(count().__next__)
        """Commitments are numbered as they appear; what is known of an example is listed by that number."""
        self._numbered: dict[int, Numbers] = {}
        """The row of each number that a reader has given."""
        self._known = GrowingArray(np.int64)
        """What was recorded of an example."""
        self._exposures = GrowingArray(np.int64)
        self._learned: list[int] = []
        """The rows with some weight in the step that has no outcome yet."""

    def accept(self, kind: str, body: Mapping[str, Any]) -> None:
        """Take the next entry.

        Raises ViolationError for a step: `wrong_step` (not one commitment per example), `wrong_classes`,
        `wrong_exposures`.
        """
        match kind:
            case "step":
                self._check(body)
            case "committed":
                self._learn()
            case "refused":
                self._learned = []
            case "examples":
                self._parts.append(body["commitments"])
            case "classes":
                for described in body["classes"]:
                    self._declare(described)
            case "decisions":
                weighty = [any(decision["weights"]) for decision in body["decisions"]]
                self._weighty.extend(np.array(weighty, bool))
            case "program":
                self._read_program(body)
            case "opened" | "policy_changed":
                self._program.clear()
                self._forget()
            case "resumed":
                self._learn()
                self._parts.clear()
                self._forget()

    def _read_program(self, body: Mapping[str, Any]) -> None:
        self._program.append(body["text"])
        if body["part"] + 1 == body["parts"]:
            specs = orjson.loads("".join(self._program))["signals"]
            self._signals = frozenset([spec["name"] for spec in specs])

    def _forget(self) -> None:
        """Begin anew: classes and decisions are numbered from 0, and nothing is known of any example."""
        self._kinds, self._weighty = GrowingArray(np.int64), GrowingArray(np.bool_)
        self._silent.clear()
        self._meanings.clear()
        self._known.array.fill(UNKNOWN)

    def _declare(self, described: Mapping[str, Any]) -> None:
        """Take the next decision class. What a step's signals were is no part of an example."""
        if "bits" in described:
            self._mean(described["bits"])
            return
        problems = tuple((name, code) for name, code in described["problems"] if name not in self._signals)
        if not problems:
            self._silent.add(self._kinds.count)
        self._mean(problems)

    def _mean(self, said: Hashable) -> None:
        self._kinds.extend(np.array([self._meanings[said]]))

    def _check(self, body: Mapping[str, Any]) -> None:
        packed = b"".join(map(a2b_base64, [*self._parts, body["commitments"]]))
        self._parts.clear()
        if len(packed) != body["count"] * SIZE:
            raise ViolationError("wrong_step", f"step {body['step']} has not one commitment per example")
        rows = self._rows_of(packed)
        self._check_kinds(body, rows)
        if body["exposures"] is not None:
            self._check_exposures(body, rows)
        weighty = self._weighty.array.take(np.array(body["decision"], np.intp))
        self._learned = rows[weighty].tolist()

    def _rows_of(self, packed: bytes) -> Numbers:
        """Return the rows of commitments, new ones included."""
        commitments: list[bytes] = np.frombuffer(packed, f"V{SIZE}").tolist()
        rows = np.fromiter(map(self._rows.__getitem__, commitments), np.int64, len(commitments))
        new = len(self._rows) - self._known.count
        self._known.extend(np.full(new, UNKNOWN))
        self._exposures.extend(np.zeros(new, np.int64))
        return rows

    def _learn(self) -> None:
        np.add.at(self._exposures.array, self._learned, 1)
        self._learned = []

    def _given(self, classes: Sequence[int], slots: Mapping[str, Sequence[Any]]) -> list[int]:
        """Return the number of what classes and slots say of each example."""
        kinds: list[int] = self._kinds.array.take(np.array(classes, np.intp)).tolist()
        if not slots:
            return kinds
        columns = [column for _, column in sorted(slots.items())]
        return list(map(self._meanings.__getitem__, zip(kinds, *columns, strict=True)))

    def _check_kinds(self, body: Mapping[str, Any], rows: Numbers) -> None:
        """Check a step's examples against earlier ones."""
        numbers, known = body["classes"], self._known.array
        given = self._given(numbers, body["slots"])
        for place, (row, number) in enumerate(zip(rows.tolist(), numbers, strict=True)):
            if number in self._silent:
                continue
            if known[row] == UNKNOWN:
                known[row] = given[place]
            elif known[row] != given[place]:
                raise ViolationError(
                    "wrong_classes",
                    f"step {body['step']} records other metadata of example {place} than an earlier step",
                )

    def _check_exposures(self, body: Mapping[str, Any], rows: Numbers) -> None:
        """Check how often a step's examples came before, within the step, too."""
        recorded, before = body["exposures"], self._exposures.array[rows].tolist()
        here: Counter[int] = Counter()
        for place, row in enumerate(rows.tolist()):
            expected = before[place] + here[row]
            here[row] += 1
            if recorded[place] != expected:
                raise ViolationError(
                    "wrong_exposures",
                    f"step {body['step']} records {recorded[place]} earlier exposures of example {place}; "
                    f"the ledger has {expected}",
                )

    # --- many steps together -------------------------------------------------------------------------------

    def number(self, examples: Numbered) -> Numbers:
        """Return the rows of examples that their reader has numbered.

        To be asked of all, in order: each reader says once what a number of its stands for.
        """
        rows = self._numbered.get(examples.reader, np.empty(0, np.int64))
        if examples.fresh:
            rows = np.concatenate([rows[: examples.known], self._rows_of(examples.fresh)])
            self._numbered[examples.reader] = rows
        numbered: Numbers = rows[np.frombuffer(examples.numbers, np.intc)]
        return numbered

    def accept_turns(self, turns: Turns, rows: Numbers) -> bool:
        """Take steps with their outcomes; False, and nothing is taken, where not all is well with them.

        Their classes and decisions are known to be declared. rows: of their examples, see `number`.
        """
        if self._parts:
            return False
        weighty = self._weighty.array.take(np.frombuffer(turns.decisions, np.intc))
        learned = weighty & np.repeat(turns.committed, turns.counts)
        if turns.exposures is not None:
            recorded = np.frombuffer(turns.exposures, np.intc)
            step = np.repeat(np.arange(len(turns.counts)), turns.counts)
            if not self._exposed(rows, step, learned, recorded):
                return False
        if not self._told(turns, rows):
            return False
        np.add.at(self._exposures.array, rows[learned], 1)
        return True

    def _exposed(
        self, rows: Numbers, step: Numbers, learned: npt.NDArray[np.bool_], recorded: npt.NDArray[np.intc]
    ) -> bool:
        """Whether exposures are what earlier steps add up to, and no step has an example twice."""
        # By row and then by place; numpy sorts numbers several times as fast as it finds their order.
        bits = len(rows).bit_length()
        ordered = np.sort(rows << bits | np.arange(len(rows)))
        order, rows = ordered & ((1 << bits) - 1), ordered >> bits
        step, learned, recorded = step[order], learned[order], recorded[order]
        others = rows[1:] != rows[:-1]
        if not (others | (step[1:] != step[:-1])).all():
            return False
        begins = np.concatenate(([0], np.flatnonzero(others) + 1)) if len(rows) else np.zeros(0, np.intp)
        before: Numbers = np.cumsum(learned) - learned
        earlier = self._exposures.array[rows[begins]] - before[begins]
        expected = before + np.repeat(earlier, np.diff(begins, append=len(rows)))
        return bool(np.array_equal(expected, recorded))

    def _told(self, turns: Turns, rows: Numbers) -> bool:
        """Whether classes and slots say of each example what they said before; if so, keep what is new."""
        classes = np.frombuffer(turns.classes, np.intc)
        if turns.slots:
            given = np.array(self._given(turns.classes, turns.slots), np.int64)
        else:
            given = self._kinds.array.take(classes)
        if self._silent:
            speaks = ~np.isin(classes, list(self._silent))
            rows, given = rows[speaks], given[speaks]
        known = self._known.array
        before = known[rows]
        new = before == UNKNOWN
        if not new.any():
            return bool(np.array_equal(before, given))
        known[rows[new]] = given[new]
        if np.array_equal(known[rows], given):
            return True
        known[rows] = before
        return False
