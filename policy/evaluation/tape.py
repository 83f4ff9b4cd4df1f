"""Conditions as a tape of numpy operations over chunks of columns.

Conditions are compiled once per table: equal parts are computed once, constants are folded, comparisons run
in the narrowest integers (intervals are known from the declarations), and text is tested once per distinct
value. The tape then runs over chunks that stay in the cache, writing into buffers made beforehand.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, TypeAlias, assert_never

import numpy as np

from gradwarden.policy.evaluation.arrays import Array, narrowest_signed
from gradwarden.policy.evaluation.columns import Columns
from gradwarden.policy.evaluation.texts import text_holds
from gradwarden.policy.program import (
    And,
    Arithmetic,
    AttributeValue,
    ClockValue,
    Compare,
    CompareOp,
    Condition,
    Constant,
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

CHUNK = 16_384
"""Rows per chunk at most: some sixty buffers of a byte a row fit the second-level cache."""

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


@dataclass(frozen=True, slots=True)
class _Term:
    """A numeric operand: a slot of the tape, and the interval that its values lie in."""

    slot: int
    lo: int
    hi: int


class Tape:
    """The truth of some conditions over the rows of one table.

    `outputs` has for each condition a constant, or the slot of the views where its truth is after `run`.
    `chunk` is the greatest number of rows that `run` takes.
    """

    def __init__(self, columns: Columns, inputs: RowInputs, conditions: Sequence[Condition]) -> None:
        self._columns = columns
        self._inputs = inputs
        self._specs = {spec.name: spec for spec in columns.attributes}
        self._sources: list[Array | None] = []
        self._dtypes: list[Any] = []
        self._operations: list[Operation] = []
        self._known: dict[Condition | NumericExpr | tuple[str, str], bool | int] = {}
        self._terms: dict[NumericExpr, int | _Term] = {}
        self.outputs: list[bool | int] = [self._condition(condition) for condition in conditions]
        made = [dtype for dtype in self._dtypes if dtype is not None]
        self.chunk = max(256, min(CHUNK, MAX_BUFFERED // max(1, len(made))))
        self._slots: list[Array] = [
            np.empty(self.chunk, dtype) if source is None else source
            for source, dtype in zip(self._sources, self._dtypes, strict=True)
        ]

    def run(self, start: int, stop: int) -> Views:
        """Evaluate rows start..stop (at most `chunk`) and return the views of all slots. They are reused."""
        size = stop - start
        views = [
            slot[:size] if source is None else slot[start:stop]
            for source, slot in zip(self._sources, self._slots, strict=True)
        ]
        for operation in self._operations:
            operation(views)
        return views

    # --- slots ---------------------------------------------------------------------------------------------

    def _source(self, array: Array) -> int:
        self._sources.append(array)
        self._dtypes.append(None)
        return len(self._sources) - 1

    def _buffer(self, dtype: Any = bool) -> int:
        self._sources.append(None)
        self._dtypes.append(dtype)
        return len(self._sources) - 1

    def _shared(self, key: tuple[str, str], array: Array) -> int:
        """Return the slot of a column, the same each time."""
        if key not in self._known:
            self._known[key] = self._source(array)
        return self._known[key]

    def _apply(self, ufunc: Any, left: int, right: int, dtype: Any = bool) -> int:
        out = self._buffer(dtype)
        self._operations.append(lambda views: ufunc(views[left], views[right], views[out], casting="unsafe"))
        return out

    def _against(self, ufunc: Any, left: int, constant: Any, dtype: Any = bool) -> int:
        out = self._buffer(dtype)
        self._operations.append(lambda views: ufunc(views[left], constant, views[out], casting="unsafe"))
        return out

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
            case _:
                assert_never(condition)

    def _not(self, term: bool | int) -> bool | int:
        if isinstance(term, bool):
            return not term
        out = self._buffer()
        self._operations.append(lambda views: np.logical_not(views[term], views[out]))
        return out

    def _joined(self, ufunc: Any, terms: Sequence[Condition], neutral: bool) -> bool | int:
        parts = [self._condition(term) for term in terms]
        if any(isinstance(part, bool) and part is not neutral for part in parts):
            return not neutral
        slots = list(dict.fromkeys(part for part in parts if not isinstance(part, bool)))
        if not slots:
            return neutral
        joined = slots[0]
        for slot in slots[1:]:
            joined = self._apply(ufunc, joined, slot)
        return joined

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
            out = self._buffer()
            self._operations.append(lambda views: table.take(views[slot], out=views[out], mode="clip"))
            return out
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
        out = self._buffer(dtype)
        ufunc = _ARITHMETIC[op]

        def apply(views: Views) -> None:
            a = dtype.type(left) if isinstance(left, int) else views[left.slot]
            b = dtype.type(right) if isinstance(right, int) else views[right.slot]
            ufunc(a, b, views[out], dtype=dtype, casting="unsafe")

        self._operations.append(apply)
        return _Term(out, lo, hi)


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
