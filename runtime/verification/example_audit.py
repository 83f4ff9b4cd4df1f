"""Checks that an example is the same example in every step: its metadata cannot change within a run.

A class says what an example's metadata are, a commitment which example it is. So one commitment has one
class and one value of every slot, from an `opened`, `policy_changed` or `resumed` entry to the next: the
first two number classes by another program, and a run that is resumed gets its examples anew.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gradwarden.policy.evaluation.replay import Class
from gradwarden.runtime.verification.violation import ViolationError


class ExampleAudit:
    """Remembers what was recorded of every example."""

    def __init__(self) -> None:
        self._fixed: list[Class | None] = []
        self._seen: dict[bytes, Any] = {}

    def forget(self) -> None:
        """Begin anew: classes are numbered from 0, and nothing is known of any example."""
        self._fixed.clear()
        self._seen.clear()

    def declare(self, described: Class, signals: Collection[str]) -> None:
        """Take the next decision class. What a step's signals were is no part of an example."""
        if isinstance(described, int):
            self._fixed.append(described)
        else:
            self._fixed.append(tuple(p for p in described if p[0] not in signals) or None)

    def check(self, body: Mapping[str, Any], commitments: Sequence[bytes]) -> None:
        """Check a step's examples against earlier ones. Raises ViolationError, with `wrong_classes`."""
        classes = [self._fixed[number] for number in body["classes"]]
        slots = [column for _, column in sorted(body["slots"].items())]
        given: list[Any] = list(zip(classes, *slots, strict=True)) if slots else classes
        if None not in classes and list(map(self._seen.setdefault, commitments, given)) == given:
            return
        for place, (commitment, known) in enumerate(zip(commitments, classes, strict=True)):
            if known is not None and self._seen.setdefault(commitment, given[place]) != given[place]:
                raise ViolationError(
                    "wrong_classes",
                    f"step {body['step']} records other metadata of example {place} than an earlier step",
                )
