"""Conditions as a tape of numpy operations over chunks of columns.

Conditions are compiled once per table: equal parts are computed once, constants are folded, comparisons run
in the narrowest integers (intervals are known from the declarations), and text is tested once per distinct
value. The tape then runs over chunks that stay in the cache, writing into buffers made beforehand; a buffer
is used again once nothing reads it any more.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, TypeAlias, assert_never

import numpy as np

from gradwarden.policy.array_types import Array
from gradwarden.policy.evaluation.arrays import narrowest_signed
from gradwarden.policy.evaluation.columns import Columns
from gradwarden.policy.evaluation.texts import text_holds
from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import (
    And,
    Arithmetic,
    AttributeValue,
    ClockValue,
    Compare,
    CompareOp,
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
    SetTest,
    SignalValue,
    Spent,
    Text,
)

Views: TypeAlias = list[Array]
Operation: TypeAlias = Callable[[Views], object]
Binding: TypeAlias = Callable[[tuple[int, ...], int], Operation]
"""Makes an operation from the places of what it reads and of what it writes."""

CHUNK = 32_768
"""Rows per chunk at most: some fifty buffers of a byte a row fit the second-level cache."""

MAX_BUFFERED = 1 << 26
"""Elements in all buffers together; a program of thousands of rules runs in smaller chunks."""

MAX_RUNS = 4
"""Up to so many runs of consecutive codes are tested by comparison; more, by lookup."""

_COMPARE: dict[CompareOp, Any] = {
    "lt": np.less,
    "le": np.less_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "ge": np.greater_equal,
    "gt": np.greater,
}
_SCALAR: dict[CompareOp, Callable[[int, int], bool]] = {
    "lt": operator.lt,
    "le": operator.le,
    "eq": operator.eq,
    "ne": operator.ne,
    "ge": operator.ge,
    "gt": operator.gt,
}
_MIRRORED: dict[CompareOp, CompareOp] = {
    "lt": "gt",
    "le": "ge",
    "eq": "eq",
    "ne": "ne",
    "ge": "le",
    "gt": "lt",
}
_ARITHMETIC = {"add": np.add, "sub": np.subtract, "mul": np.multiply}


@dataclass(frozen=True, slots=True)
class RowInputs:
    """What conditions read besides metadata: one int for all rows, or an int64 array [N]."""

    step: int = 0
    epoch: int = 0
    today: int = 0
    exposures: int | Array = 0
    signals: Mapping[str, int | Array] = field(default_factory=dict)
    spent: Set[str] = frozenset()


@frozen
class _Term:
    """A numeric operand: a slot of the tape, and the interval that its values lie in."""

    slot: int
    lo: int
    hi: int


@frozen
class _Step:
    """One operation to be: the slots it reads, the slot it writes, and how it is made."""

    reads: tuple[int, ...]
    writes: int
    bind: Binding


class Tape:
    """The truth of some conditions over the rows of one table.

    `outputs` has for each condition a constant, or the index of the view where its truth is after `run`.
    `chunk` is the greatest number of rows that `run` takes.
    """

    def __init__(self, columns: Columns, inputs: RowInputs, conditions: Sequence[Condition]) -> None:
        self._columns = columns
        self._inputs = inputs
        self._specs = {spec.name: spec for spec in columns.attributes}
        self._slots: list[Array | np.dtype[Any]] = []
        self._steps: list[_Step] = []
        self._known: dict[Condition | NumericExpr | tuple[str, str], bool | int] = {}
        self._terms: dict[NumericExpr, int | _Term] = {}
        outputs = [self._condition(condition) for condition in conditions]
        kept = {slot for slot in outputs if not isinstance(slot, bool)}
        self._steps = _needed(self._steps, kept)
        places, made = self._placed(kept)
        self.outputs: list[bool | int] = [o if isinstance(o, bool) else places[o] for o in outputs]
        self._operations = [
            step.bind(tuple(places[slot] for slot in step.reads), places[step.writes]) for step in self._steps
        ]
        self._sources = [slot for slot in self._slots if isinstance(slot, np.ndarray)]
        self.chunk = max(256, min(CHUNK, MAX_BUFFERED // max(1, len(made))))
        self._buffers = [np.empty(self.chunk, dtype) for dtype in made]

    def _placed(self, kept: Set[int]) -> tuple[dict[int, int], list[np.dtype[Any]]]:
        """Give every slot a place among the views: sources first, then buffers of the dtypes returned.

        A buffer whose slot nothing reads any more is given to the next that needs one of its dtype, unless
        the slot is `kept`.
        """
        sources = [slot for slot, held in enumerate(self._slots) if isinstance(held, np.ndarray)]
        places = {slot: place for place, slot in enumerate(sources)}
        last = {slot: number for number, step in enumerate(self._steps) for slot in step.reads}
        made: list[np.dtype[Any]] = []
        free: dict[np.dtype[Any], list[int]] = {}
        for number, step in enumerate(self._steps):
            dtype = self._slots[step.writes]
            assert isinstance(dtype, np.dtype), "a step writes into a buffer"
            done = {slot for slot in step.reads if last[slot] == number and slot not in kept}
            for slot in done:
                held = self._slots[slot]
                if isinstance(held, np.dtype):
                    free.setdefault(held, []).append(places[slot])
            unused = free.get(dtype)
            if unused:
                places[step.writes] = unused.pop()
            else:
                places[step.writes] = len(sources) + len(made)
                made.append(dtype)
        return places, made

    def run(self, start: int, stop: int) -> Views:
        """Evaluate rows start..stop (at most `chunk`) and return views with the outputs. They are reused."""
        views = [source[start:stop] for source in self._sources]
        views += [buffer[: stop - start] for buffer in self._buffers]
        for operation in self._operations:
            operation(views)
        return views

    # --- slots ---------------------------------------------------------------------------------------------

    def _source(self, array: Array) -> int:
        self._slots.append(array)
        return len(self._slots) - 1

    def _shared(self, key: tuple[str, str], array: Array) -> int:
        """Return the slot of a column, the same each time."""
        if key not in self._known:
            self._known[key] = self._source(array)
        return self._known[key]

    def _step(self, reads: tuple[int, ...], dtype: Any, bind: Binding) -> int:
        """Add a step and return the slot that it writes."""
        self._slots.append(np.dtype(dtype))
        self._steps.append(_Step(reads, len(self._slots) - 1, bind))
        return len(self._slots) - 1

    def _apply(self, ufunc: Any, left: int, right: int, dtype: Any = bool) -> int:
        def bind(reads: tuple[int, ...], out: int) -> Operation:
            a, b = reads
            return lambda views: ufunc(views[a], views[b], views[out])

        return self._step((left, right), dtype, bind)

    def _against(self, ufunc: Any, left: int, constant: Any, dtype: Any = bool) -> int:
        def bind(reads: tuple[int, ...], out: int) -> Operation:
            [a] = reads
            return lambda views: ufunc(views[a], constant, views[out])

        return self._step((left,), dtype, bind)

    # --- conditions ----------------------------------------------------------------------------------------

    def _condition(self, condition: Condition) -> bool | int:
        """Return a constant, or the slot of a condition's truth. (A bool is a constant, an int a slot.)"""
        known = self._known.get(condition)
        if known is None:
            known = self._known[condition] = self._compiled(condition)
        return known

    def _compiled(self, condition: Condition) -> bool | int:
        match condition:
            case Constant(value):
                return value
            case Not(term):
                return self._not(self._condition(term))
            case And(terms):
                return self._joined(np.logical_and, terms, neutral=True)
            case Or(terms):
                return self._joined(np.logical_or, terms, neutral=False)
            case Has(attribute):
                present = self._columns.encoded[attribute].present
                return True if present is None else self._shared(("present", attribute), present)
            case Flag(attribute):
                return self._shared(("values", attribute), self._columns.encoded[attribute].values)
            case OneOf(attribute, codes):
                return self._among(attribute, sorted(codes))
            case SetTest(attribute, test, codes):
                return self._members(attribute, test, codes)
            case Text(attribute):
                dictionary = self._columns.encoded[attribute].dictionary
                passing = [code for code, text in enumerate(dictionary) if text_holds(condition, text)]
                return self._among(attribute, passing)
            case Compare(op, left, right):
                return self._comparison(op, self._number(left), self._number(right))
            case Spent(rule):
                return rule in self._inputs.spent
            case Every(steps):
                return self._inputs.step % steps == 0
            case _:
                assert_never(condition)

    def _not(self, term: bool | int) -> bool | int:
        if isinstance(term, bool):
            return not term
        return self._step((term,), bool, lambda reads, out: lambda v: np.logical_not(v[reads[0]], v[out]))

    def _joined(self, ufunc: Any, terms: Sequence[Condition], neutral: bool) -> bool | int:
        """Join terms as they come, so that what they need is needed no longer than that."""
        joined: int | None = None
        met: set[int] = set()
        for term in terms:
            part = self._condition(term)
            if isinstance(part, bool):
                if part is not neutral:
                    return not neutral
            elif part not in met:
                met.add(part)
                joined = part if joined is None else self._apply(ufunc, joined, part)
        return neutral if joined is None else joined

    def _among(self, attribute: str, codes: Sequence[int]) -> bool | int:
        """Compile the test of codes against a sorted list; absent values have a code of their own."""
        values = self._columns.encoded[attribute].values
        runs = _runs(codes)
        if not runs:
            return False
        slot = self._shared(("values", attribute), values)
        if len(runs) > MAX_RUNS:
            table = np.zeros(max(int(np.max(values, initial=0)), codes[-1]) + 1, bool)
            table[codes] = True

            def look_up(reads: tuple[int, ...], out: int) -> Operation:
                return lambda views: table.take(views[reads[0]], out=views[out], mode="clip")

            return self._step((slot,), bool, look_up)
        parts = [self._run(slot, first, last) for first, last in runs]
        joined = parts[0]
        for part in parts[1:]:
            joined = self._apply(np.logical_or, joined, part)
        return joined

    def _run(self, slot: int, first: int, last: int) -> int:
        if first == last:
            return self._against(np.equal, slot, first)
        below = self._against(np.less_equal, slot, last)
        if first == 0:
            return below
        return self._apply(np.logical_and, self._against(np.greater_equal, slot, first), below)

    def _members(self, attribute: str, test: str, codes: Sequence[int]) -> bool | int:
        wanted = sum(1 << code for code in set(codes))
        if wanted == 0:
            return test == "all"
        values = self._columns.encoded[attribute].values
        slot = self._shared(("values", attribute), values)
        constant = values.dtype.type(wanted)
        found = self._against(np.bitwise_and, slot, constant, values.dtype)
        if test == "any":
            return self._against(np.not_equal, found, values.dtype.type(0))
        return self._against(np.equal, found, constant)

    def _comparison(self, op: CompareOp, left: int | _Term, right: int | _Term) -> bool | int:
        if isinstance(left, int):
            if isinstance(right, int):
                return _SCALAR[op](left, right)
            return self._comparison(_MIRRORED[op], right, left)
        if isinstance(right, int):
            ends = {_SCALAR[op](left.lo, right), _SCALAR[op](left.hi, right)}
            if op in ("lt", "le", "ge", "gt") and len(ends) == 1:
                return ends.pop()
            if not left.lo <= right <= left.hi:
                return op == "ne"
            return self._against(_COMPARE[op], left.slot, right)
        return self._apply(_COMPARE[op], left.slot, right.slot)

    # --- numbers -------------------------------------------------------------------------------------------

    def _number(self, expression: NumericExpr) -> int | _Term:
        """Return a constant, or the operand that holds the value of an expression."""
        known = self._terms.get(expression)
        if known is None:
            known = self._terms[expression] = self._evaluated(expression)
        return known

    def _evaluated(self, expression: NumericExpr) -> int | _Term:
        match expression:
            case Number(value):
                return value
            case AttributeValue(name):
                spec = self._specs[name]
                slot = self._shared(("values", name), self._columns.encoded[name].values)
                return _Term(slot, min(spec.lo, 0), max(spec.hi, 0))
            case SignalValue(name):
                return self._input(("signal", name), self._inputs.signals[name])
            case ClockValue("exposures"):
                return self._input(("clock", "exposures"), self._inputs.exposures)
            case ClockValue(name):
                return int(getattr(self._inputs, name))
            case Arithmetic(op, left, right):
                return self._arithmetic(op, self._number(left), self._number(right))
            case _:
                assert_never(expression)

    def _input(self, key: tuple[str, str], value: int | Array) -> int | _Term:
        if isinstance(value, int):
            return value
        if len(value) == 0:
            return 0
        return _Term(self._shared(key, value), int(value.min()), int(value.max()))

    def _arithmetic(self, op: str, left: int | _Term, right: int | _Term) -> int | _Term:
        scalar = {"add": operator.add, "sub": operator.sub, "mul": operator.mul}[op]
        if isinstance(left, int) and isinstance(right, int):
            return int(scalar(left, right))
        corners = [scalar(a, b) for a in _ends(left) for b in _ends(right)]
        lo, hi = min(corners), max(corners)
        dtype = narrowest_signed(min(lo, *_ends(left), *_ends(right)), max(hi, *_ends(left), *_ends(right)))
        ufunc = _ARITHMETIC[op]

        def bind(reads: tuple[int, ...], out: int) -> Operation:
            def apply(views: Views) -> None:
                held = (views[read] for read in reads)
                a = dtype.type(left) if isinstance(left, int) else next(held)
                b = dtype.type(right) if isinstance(right, int) else next(held)
                ufunc(a, b, views[out], dtype=dtype, casting="unsafe")

            return apply

        read = tuple(term.slot for term in (left, right) if not isinstance(term, int))
        out = self._step(read, dtype, bind)
        return _Term(out, lo, hi)


def _needed(steps: Sequence[_Step], kept: Set[int]) -> list[_Step]:
    """Return the steps on which some kept slot depends."""
    wanted = set(kept)
    found = []
    for step in reversed(steps):
        if step.writes in wanted:
            wanted.update(step.reads)
            found.append(step)
    return found[::-1]


def _ends(term: int | _Term) -> tuple[int, int]:
    return (term, term) if isinstance(term, int) else (term.lo, term.hi)


def _runs(codes: Sequence[int]) -> list[tuple[int, int]]:
    """Return the maximal runs of consecutive codes of a sorted list, as (first, last)."""
    runs: list[tuple[int, int]] = []
    for code in codes:
        if runs and code <= runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], code)
        else:
            runs.append((code, code))
    return runs
