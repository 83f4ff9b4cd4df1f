"""What of a program is known once per data set, what once per step, and what only per example and step.

Every condition is split S and D: S, its top-level conjuncts that read metadata alone (static); D, the rest.
A D may still contain static parts below an `or` or a `not`. So the conditions are taken apart further, into
a boolean skeleton over three lists of distinct *leaves*:

    tests    maximal conditions over metadata alone; their truth values make an example's decision class
    clocks   comparisons over step, epoch and today, `Spent` and `Every`; the same for all examples of a step
    rows     comparisons that read exposures, a signal, or an attribute together with the clock

The truth of all leaves, packed in one int (`Partition.word`), determines the truth of every condition.
Attributes that a row leaf reads are *slots*: their values are recorded, because a class does not hold them.
They are numbers or dates, never text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias, assert_never

from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import (
    And,
    Arithmetic,
    AttributeValue,
    ClockValue,
    Compare,
    Condition,
    Constant,
    Every,
    Flag,
    Has,
    Not,
    Number,
    NumericExpr,
    OneOf,
    Or,
    Program,
    SetTest,
    SignalValue,
    Spent,
    Text,
)

Skeleton: TypeAlias = Callable[[int], bool]
"""The truth of one condition, given the packed truth of all leaves."""


@frozen
class Reads:
    """What a condition or expression depends on."""

    attributes: frozenset[str] = frozenset()
    signals: frozenset[str] = frozenset()
    clocks: frozenset[str] = frozenset()

    def __or__(self, other: Reads) -> Reads:
        return Reads(
            self.attributes | other.attributes, self.signals | other.signals, self.clocks | other.clocks
        )

    @property
    def is_static(self) -> bool:
        return not self.signals and not self.clocks

    @property
    def is_clock(self) -> bool:
        """Whether the truth is the same for all examples of a step."""
        return not self.attributes and not self.signals and "exposures" not in self.clocks


@dataclass(frozen=True)
class Partition:
    """The split of one program. `static` and `dynamic` align with `Program.conditions`."""

    static: tuple[Condition, ...]
    dynamic: tuple[Condition, ...]
    tests: tuple[Condition, ...]
    clocks: tuple[Condition, ...]
    rows: tuple[Compare, ...]
    slots: tuple[str, ...]
    signals: tuple[str, ...]
    """Signals read by conditions or modulations, sorted."""
    uses_exposures: bool
    uses_today: bool
    skeletons: tuple[Skeleton, ...]

    def word(self, tests: int, clocks: int, rows: int) -> int:
        """Pack the truth of the leaves (bit i: leaf i) into the argument of the skeletons."""
        return tests | clocks << len(self.tests) | rows << (len(self.tests) + len(self.clocks))

    def truth(self, word: int) -> list[bool]:
        """Return the truth of every condition, in the order of `Program.conditions`."""
        return [skeleton(word) for skeleton in self.skeletons]


def partition(program: Program) -> Partition:
    """Return the split of a program; the same object each time for the same program."""
    known: Partition | None = program.__dict__.get("_partition")  # beside the cache of `Program.digest`
    if known is None:
        known = program.__dict__["_partition"] = _partition(program)
    return known


def _partition(program: Program) -> Partition:
    conditions = list(program.conditions())
    split = [_split(condition) for condition in conditions]
    static = tuple(pair[0] for pair in split)
    dynamic = tuple(pair[1] for pair in split)
    leaves = list(dict.fromkeys(leaf for pair in split for part in pair for leaf in _leaves(part)))
    reads = {leaf: reads_of(leaf) for leaf in leaves}
    tests = tuple(leaf for leaf in leaves if reads[leaf].is_static)
    clocks = tuple(leaf for leaf in leaves if not reads[leaf].is_static and reads[leaf].is_clock)
    rows = tuple(
        leaf
        for leaf in leaves
        if isinstance(leaf, Compare) and not reads[leaf].is_static and not reads[leaf].is_clock
    )
    everything = _union(reads.values())
    per_row = _union(reads[leaf] for leaf in rows)
    scaled = {scaling.signal for m in program.modulations for scaling in m.scalings}
    bit = {leaf: index for index, leaf in enumerate((*tests, *clocks, *rows))}
    return Partition(
        static=static,
        dynamic=dynamic,
        tests=tests,
        clocks=clocks,
        rows=rows,
        slots=tuple(sorted(per_row.attributes)),
        signals=tuple(sorted(everything.signals | scaled)),
        uses_exposures="exposures" in everything.clocks,
        uses_today="today" in everything.clocks,
        skeletons=tuple(_skeleton(_conjunction([*pair]), bit) for pair in split),
    )


def _union(reads: Iterable[Reads]) -> Reads:
    total = Reads()
    for one in reads:
        total |= one
    return total


def _split(condition: Condition) -> tuple[Condition, Condition]:
    """Return the conjunction of the static conjuncts, and that of the others."""
    conjuncts = list(_conjuncts(condition))
    static = [term for term in conjuncts if reads_of(term).is_static]
    dynamic = [term for term in conjuncts if not reads_of(term).is_static]
    return _conjunction(static), _conjunction(dynamic)


def _conjuncts(condition: Condition) -> Iterator[Condition]:
    if isinstance(condition, And):
        for term in condition.terms:
            yield from _conjuncts(term)
    elif condition != Constant(True):
        yield condition


def _conjunction(terms: list[Condition]) -> Condition:
    kept = [term for term in terms if term != Constant(True)]
    if not kept:
        return Constant(True)
    return kept[0] if len(kept) == 1 else And(tuple(kept))


def _leaves(condition: Condition) -> Iterator[Condition]:
    """Yield the maximal static conditions and the smallest dynamic ones; constants are no leaves."""
    if isinstance(condition, Constant):
        return
    if reads_of(condition).is_static:
        yield condition
        return
    match condition:
        case Not(term):
            yield from _leaves(term)
        case And(terms) | Or(terms):
            for term in terms:
                yield from _leaves(term)
        case _:
            yield condition


def _skeleton(condition: Condition, bit: dict[Condition, int]) -> Skeleton:
    index = bit.get(condition)
    if index is not None:
        mask = 1 << index
        return lambda word: word & mask != 0
    match condition:
        case Constant(value):
            return lambda word: value
        case Not(term):
            inner = _skeleton(term, bit)
            return lambda word: not inner(word)
        case And(terms):
            return _all([_skeleton(term, bit) for term in terms])
        case Or(terms):
            parts = tuple(_skeleton(term, bit) for term in terms)
            return lambda word: any(part(word) for part in parts)
        case _:
            raise AssertionError(f"{condition} is neither a leaf nor composed of leaves")


def _all(parts: list[Skeleton]) -> Skeleton:
    fixed = tuple(parts)
    return fixed[0] if len(fixed) == 1 else lambda word: all(part(word) for part in fixed)


@lru_cache(maxsize=65_536)
def reads_of(node: Condition | NumericExpr) -> Reads:
    """Return what a condition or a numeric expression depends on."""
    match node:
        case Constant() | Number():
            return Reads()
        case Not(term):
            return reads_of(term)
        case And(terms) | Or(terms):
            return _union(reads_of(term) for term in terms)
        case Has(attribute) | Flag(attribute) | OneOf(attribute) | SetTest(attribute) | Text(attribute):
            return Reads(attributes=frozenset((attribute,)))
        case AttributeValue(name):
            return Reads(attributes=frozenset((name,)))
        case SignalValue(name):
            return Reads(signals=frozenset((name,)))
        case ClockValue(name):
            return Reads(clocks=frozenset((name,)))
        case Spent():
            return Reads(clocks=frozenset(("spent",)))
        case Every():
            return Reads(clocks=frozenset(("step",)))
        case Compare(_, left, right) | Arithmetic(_, left, right):
            return reads_of(left) | reads_of(right)
        case _:
            assert_never(node)
