"""How many examples of a data set a new program decides otherwise than an old one, by band and by rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from gradwarden.policy.comparing.pairs import Cell
from gradwarden.policy.context import Context
from gradwarden.policy.decision import Decision
from gradwarden.policy.evaluation.batch import decide_columns
from gradwarden.policy.evaluation.columns import Columns
from gradwarden.policy.program import Program


@dataclass(slots=True)
class Count:
    """Examples that gain and that lose something, and the scaled sum of an attribute over either."""

    gained: int = 0
    lost: int = 0
    tokens_gained: int = 0
    tokens_lost: int = 0

    def add(self, change: int, examples: int, tokens: int) -> None:
        """Count examples of one kind. `change` is above 0 where they gain, below where they lose."""
        if change > 0:
            self.gained += examples
            self.tokens_gained += tokens
        elif change < 0:
            self.lost += examples
            self.tokens_lost += tokens


@dataclass(slots=True)
class DataDifference:
    """Counts over a data set, piece by piece.

    parts: to compare weights in. rules: pairs of the old and the new name of a rule, empty where it is new or
    gone. tokens: a number attribute of the new program to sum, or empty. The contexts give single values.

    by_band: by the name of a part, which several have where programs are bound to different models. by_rule:
    examples in whose decision the rule has a part, or no longer has one. any: examples with a greater, or a
    smaller, weight in some part. verdicts: by old and new verdict.
    """

    old: Program
    new: Program
    context_old: Context
    context_new: Context
    parts: Sequence[Cell]
    rules: Sequence[tuple[str, str]]
    tokens: str = ""
    examples: int = 0
    any: Count = field(default_factory=Count)
    by_band: dict[str, Count] = field(init=False)
    by_rule: dict[tuple[str, str], Count] = field(init=False)
    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.by_band = {part.name: Count() for part in self.parts}
        self.by_rule = {pair: Count() for pair in self.rules}

    def add(self, old: Columns, new: Columns) -> None:
        """Count the examples of a piece, encoded for each program. Raises ContextError."""
        before = decide_columns(self.old, old, self.context_old)
        after = decide_columns(self.new, new, self.context_new)
        self.examples += len(after)
        if not len(after):
            return
        classes = before.class_ids.astype(np.int64) << 32 | after.class_ids.astype(np.int64)
        _, first, kind = np.unique(classes, return_index=True, return_inverse=True)
        sizes = np.bincount(kind, minlength=len(first))
        sums = self._sums(new, kind, len(first))
        for row, size, tokens in zip(first.tolist(), sizes.tolist(), sums, strict=True):
            self._count(before.decision(row), after.decision(row), size, tokens)

    def _sums(self, columns: Columns, kind: npt.NDArray[np.intp], kinds: int) -> list[int]:
        """Return the sum of the counted attribute per kind of example, exactly."""
        if not self.tokens:
            return [0] * kinds
        values = columns.encoded[self.tokens].values.astype(np.int64)
        order = np.argsort(kind, kind="stable")
        starts = np.searchsorted(kind[order], np.arange(kinds))
        return [int(total) for total in np.add.reduceat(values[order], starts)]

    def _count(self, before: Decision, after: Decision, size: int, tokens: int) -> None:
        changes = [_weight(after, part.new) - _weight(before, part.old) for part in self.parts]
        by_name: dict[str, list[int]] = {}
        for part, change in zip(self.parts, changes, strict=True):
            by_name.setdefault(part.name, []).append(change)
        for count, found in [
            (self.any, changes),
            *((self.by_band[name], own) for name, own in by_name.items()),
        ]:
            count.add(any(change > 0 for change in found), size, tokens)
            count.add(-any(change < 0 for change in found), size, tokens)
        for was, now in self.rules:
            change = (now in after.rules) - (was in before.rules)
            self.by_rule[was, now].add(change, size, tokens)
        self.verdicts[before.verdict, after.verdict] += size


def _weight(decision: Decision, band: int | None) -> int:
    return 0 if band is None else decision.micro[band]
