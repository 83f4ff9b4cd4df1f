"""Checks what steps record of their examples: that their metadata stay, and how often they came before.

A class says what an example's metadata are, a commitment which example it is. So one commitment has one
class and one value of every slot, from an `opened`, `policy_changed` or `resumed` entry to the next: the
first two number classes by another program, and a run that is resumed gets its examples anew. Its exposures
are what earlier steps add up to (`history` says which count).

Nothing here is decided by the policy; that is why another process can do it (`ahead`).
"""

from __future__ import annotations

from binascii import a2b_base64
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import compress, count
from struct import Struct
from typing import Any, TypeAlias

import orjson

from gradwarden.runtime.commitments import SIZE
from gradwarden.runtime.verification.violation import ViolationError

Kind: TypeAlias = str | tuple[tuple[str, str], ...]
"""What a class says of an example: the truth of the tests, or what is wrong with its attributes."""


class ExampleAudit:
    """Follows the examples of a run from entry to entry."""

    def __init__(self) -> None:
        self._program: list[str] = []
        self._signals: frozenset[str] = frozenset()
        self._kinds: list[Kind] = []
        self._silent: set[int] = set()
        """Classes that say nothing of an example: only signals are at fault."""
        self._weighty: list[bool] = []
        """Whether a decision lets some weight through, by its number."""
        self._parts: list[str] = []
        self._rows: defaultdict[bytes, int] = defaultdict(count().__next__)
        """Commitments are numbered as they appear; what is known of an example is listed by that number."""
        self._known: list[Any] = []
        """What was recorded of an example, None where nothing was."""
        self._exposures: list[int] = []
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
                self._weighty += [any(decision["weights"]) for decision in body["decisions"]]
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
        self._kinds.clear()
        self._silent.clear()
        self._weighty.clear()
        self._known = [None] * len(self._known)

    def _declare(self, described: Mapping[str, Any]) -> None:
        """Take the next decision class. What a step's signals were is no part of an example."""
        if "bits" in described:
            self._kinds.append(described["bits"])
            return
        problems = tuple((name, code) for name, code in described["problems"] if name not in self._signals)
        if not problems:
            self._silent.add(len(self._kinds))
        self._kinds.append(problems)

    def _check(self, body: Mapping[str, Any]) -> None:
        commitments = self._commitments(body)
        if len(commitments) != body["count"]:
            raise ViolationError("wrong_step", f"step {body['step']} has not one commitment per example")
        rows = list(map(self._rows.__getitem__, commitments))
        fresh = len(self._rows) - len(self._known)
        if fresh:
            self._known += [None] * fresh
            self._exposures += [0] * fresh
        self._check_kinds(body, rows)
        if body["exposures"] is not None:
            self._check_exposures(body, rows)
        self._learned = list(compress(rows, map(self._weighty.__getitem__, body["decision"])))

    def _commitments(self, body: Mapping[str, Any]) -> Sequence[bytes]:
        packed = a2b_base64(body["commitments"])
        if self._parts:
            packed = b"".join([*map(a2b_base64, self._parts), packed])
            self._parts.clear()
        return _splitter(len(packed) // SIZE).unpack(packed)

    def _learn(self) -> None:
        for row in self._learned:
            self._exposures[row] += 1
        self._learned = []

    def _check_kinds(self, body: Mapping[str, Any], rows: Sequence[int]) -> None:
        """Check a step's examples against earlier ones."""
        numbers, slots, known = body["classes"], body["slots"], self._known
        given: list[Any] = list(map(self._kinds.__getitem__, numbers))
        if slots:
            given = list(zip(given, *[column for _, column in sorted(slots.items())], strict=True))
        if list(map(known.__getitem__, rows)) == given and self._silent.isdisjoint(numbers):
            return
        for place, (row, number) in enumerate(zip(rows, numbers, strict=True)):
            if number in self._silent:
                continue
            if known[row] is None:
                known[row] = given[place]
            elif known[row] != given[place]:
                raise ViolationError(
                    "wrong_classes",
                    f"step {body['step']} records other metadata of example {place} than an earlier step",
                )

    def _check_exposures(self, body: Mapping[str, Any], rows: Sequence[int]) -> None:
        """Check how often a step's examples came before, within the step, too."""
        recorded, before = body["exposures"], self._exposures
        if len(set(rows)) == len(rows) and list(map(before.__getitem__, rows)) == recorded:
            return
        here: Counter[int] = Counter()
        for place, row in enumerate(rows):
            expected = before[row] + here[row]
            here[row] += 1
            if recorded[place] != expected:
                raise ViolationError(
                    "wrong_exposures",
                    f"step {body['step']} records {recorded[place]} earlier exposures of example {place}; "
                    f"the ledger has {expected}",
                )


@lru_cache(maxsize=16)
def _splitter(count: int) -> Struct:
    """Return what takes `count` commitments apart."""
    return Struct(f"{SIZE}s" * count)
