"""The inputs of a decision as variables, and for each the values at which a program may change its mind.

Enumerations, truth values and small sets are listed whole. Of numbers and dates the ends of the range are
listed, and both sides of every bound that a condition compares them with; of texts, what the conditions ask
for and what just misses it. `for all` cases draw from these domains, and searches for an example look there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from functools import lru_cache
from itertools import combinations, takewhile
from random import Random
from typing import Any, Literal, TypeAlias

from gradwarden.policy.context import EPOCH_DAY, Context
from gradwarden.policy.evaluation.partition import partition, reads_of
from gradwarden.policy.evaluation.values import encode_date, encode_number
from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import (
    And,
    Arithmetic,
    AttributeSpec,
    AttributeValue,
    ClockValue,
    Compare,
    Condition,
    Every,
    Not,
    Number,
    NumericExpr,
    Or,
    Program,
    SignalValue,
    Spent,
    Text,
)

MAX_MEMBERS = 6
"""A set with more members than this is not listed whole."""

MAX_MARKS = 48
"""How many bounds of one number are looked at, the nearest to its simplest value first."""

MAX_TEXTS = 64
MAX_COUNT = 2**31 - 1

_FIRST_DAY, _LAST_DAY = (date(1990, 1, 1) - EPOCH_DAY).days, (date(2060, 12, 31) - EPOCH_DAY).days
_SIMPLE_DAY = (date(2026, 1, 1) - EPOCH_DAY).days


@dataclass(frozen=True, slots=True, order=True)
class Variable:
    """One input: an attribute, a signal, a clock (step, epoch, at, exposures) or the budgets spent."""

    kind: Literal["attribute", "signal", "clock", "spent"]
    name: str


Assignment: TypeAlias = Mapping[Variable, Any]
"""A value for each input, as an example or a context holds it; None for an attribute that is absent."""


@frozen
class Scale:
    """The integers behind a number or a date, and the way back to values."""

    lo: int
    hi: int
    decode: Callable[[int], Any]
    encode: Callable[[Any], int]


@frozen
class Domain:
    """The values of one input, the simplest first. `whole`: there are no others."""

    values: tuple[Any, ...]
    whole: bool
    scale: Scale | None = None

    def draw(self, random: Random) -> Any:
        """Return some value: half the time one that is listed, else any of the range."""
        if self.scale is None or random.random() < 0.5:
            return random.choice(self.values)
        return self.scale.decode(random.randint(self.scale.lo, self.scale.hi))

    def simpler(self, value: Any) -> Iterator[Any]:
        """Yield simpler values, the simplest first; between numbers by halves, so that few are tried."""
        scale = self.scale
        origin = next((listed for listed in self.values if listed is not None), None)
        if scale is None or value is None or origin is None:
            yield from takewhile(lambda listed: not _same(listed, value), self.values)
            return
        here, aim = scale.encode(value), scale.encode(origin)
        for listed in self.values:
            if listed is None or abs(scale.encode(listed) - aim) < abs(here - aim):
                yield listed
        step = here - aim
        while step:
            yield scale.decode(here - step)
            step = step // 2 if step > 0 else -(-step // 2)


def _same(one: Any, other: Any) -> bool:
    """Whether two values are the same; `False` and 0 are not."""
    return type(one) is type(other) and bool(one == other)


def inputs_of(assignment: Assignment) -> tuple[dict[str, Any], Context]:
    """Return an example and a context with the values of an assignment."""
    example = {
        v.name: value for v, value in assignment.items() if v.kind == "attribute" and value is not None
    }
    signals = {v.name: value for v, value in assignment.items() if v.kind == "signal"}
    clocks = {v.name: value for v, value in assignment.items() if v.kind == "clock"}
    spent = {v.name for v, value in assignment.items() if v.kind == "spent" and value}
    return example, Context(**clocks, signals=signals, spent=frozenset(spent))


def variables_read(conditions: Iterable[Condition]) -> set[Variable]:
    """Return the inputs that conditions depend on; of budgets, all of those they name."""
    found: set[Variable] = set()
    for condition in conditions:
        reads = reads_of(condition)
        found |= {Variable("attribute", name) for name in reads.attributes}
        found |= {Variable("signal", name) for name in reads.signals}
        clocks = reads.clocks - {"spent"}
        found |= {Variable("clock", "at" if name == "today" else name) for name in clocks}
        found |= {Variable("spent", rule) for rule in _budgets(condition)}
    return found


def _budgets(condition: Condition) -> Iterator[str]:
    for leaf in leaves(condition):
        if isinstance(leaf, Spent):
            yield leaf.rule


def leaves(condition: Condition) -> Iterator[Condition]:
    """Yield the conditions without parts that a condition is made of, from left to right."""
    match condition:
        case Not(term):
            yield from leaves(term)
        case And(terms) | Or(terms):
            for term in terms:
                yield from leaves(term)
        case _:
            yield condition


def all_domains(program: Program) -> dict[Variable, Domain]:
    """Return the domain of every input. Attributes and clocks that nothing reads have one value."""
    return dict(_all_domains(program))


@lru_cache(maxsize=8)
def _all_domains(program: Program) -> tuple[tuple[Variable, Domain], ...]:
    marks, texts = landmarks(program)
    used = variables_read(program.conditions())
    found: dict[Variable, Domain] = {}
    for spec in program.attributes:
        variable = Variable("attribute", spec.name)
        domain = attribute_domain(spec, marks.get(variable, ()), texts.get(spec.name, ()))
        found[variable] = domain if variable in used else Domain(domain.values[:1], True)
    for signal in program.signals:
        variable = Variable("signal", signal.name)
        if signal.name in partition(program).signals:
            scale = number_scale(signal.lo, signal.hi, signal.places)
            found[variable] = ranged(scale, marks.get(variable, ()), signal.default)
    for name in ("step", "epoch", "exposures"):
        variable = Variable("clock", name)
        if variable in used:
            found[variable] = ranged(number_scale(0, MAX_COUNT, 0), marks.get(variable, ()), 0)
    at = Variable("clock", "at")
    if at in used:
        found[at] = _day_domain(date.min, date.max, marks.get(at, ()))
    for variable in used:
        if variable.kind == "spent":
            found[variable] = Domain((False, True), True)
    return tuple(found.items())


def attribute_domain(spec: AttributeSpec, marks: Iterable[int], texts: Iterable[str]) -> Domain:
    """Return the values of an attribute; absent is the simplest where it may be."""
    match spec.type:
        case "bool":
            domain = Domain((False, True), True)
        case "enum":
            domain = Domain(spec.values, True)
        case "set":
            domain = _set_domain(spec.values)
        case "number":
            origin = min(max(0, spec.lo), spec.hi)
            domain = ranged(number_scale(spec.lo, spec.hi, spec.places), marks, origin)
        case "date":
            domain = _day_domain(_day(spec.lo), _day(spec.hi), marks)
        case "string":
            fitting = [text for text in dict.fromkeys(["", "a", *texts]) if len(text) <= spec.hi]
            domain = Domain(tuple(sorted(fitting[:MAX_TEXTS], key=len)), False)
    if spec.optional:
        return Domain((None, *domain.values), domain.whole, domain.scale)
    return domain


def _set_domain(members: tuple[str, ...]) -> Domain:
    if len(members) <= MAX_MEMBERS:
        subsets = [list(c) for size in range(len(members) + 1) for c in combinations(members, size)]
        return Domain(tuple(subsets), True)
    random = Random(0)
    drawn = [[m for m in members if random.random() < 0.5] for _ in range(32)]
    lacking = [[m for m in members if m != out] for out in members]
    pairs = [list(pair) for pair in combinations(members[:12], 2)]
    return Domain(([], *([m] for m in members), *pairs, *drawn, *lacking, [*members]), False)


def number_scale(lo: int, hi: int, places: int) -> Scale:
    """Return the scale of a number with so many decimal places."""

    def decode(value: int) -> int | Decimal:
        return value if places == 0 else Decimal(value).scaleb(-places)

    return Scale(lo, hi, decode, lambda raw: encode_number(raw, places, lo, hi))


def _day(days: int) -> date:
    return EPOCH_DAY + timedelta(days=min(max(days, _FURTHEST[0]), _FURTHEST[1]))


_FURTHEST = ((date.min - EPOCH_DAY).days, (date.max - EPOCH_DAY).days)


def _day_domain(first: date, last: date, marks: Iterable[int]) -> Domain:
    return ranged(day_scale(first, last), marks, None)


def day_scale(first: date, last: date) -> Scale:
    return Scale((first - EPOCH_DAY).days, (last - EPOCH_DAY).days, _day, encode_date)


def ranged(scale: Scale, marks: Iterable[int], origin: int | None) -> Domain:
    """Return the domain of a range: its ends, its simplest value, and both sides of each mark.

    An `origin` of None is that of dates. They are drawn from 1990 to 2060, as far as the range allows.
    """
    lo, hi = scale.lo, scale.hi
    drawn = scale
    if origin is None:
        origin = min(max(_SIMPLE_DAY, lo), hi)
        near = max(lo, min(_FIRST_DAY, hi)), min(hi, max(_LAST_DAY, lo))
        drawn = Scale(*near, scale.decode, scale.encode)
    if hi - lo < MAX_MARKS // 4:
        every = sorted(range(lo, hi + 1), key=lambda value: (abs(value - origin), value))
        return Domain(tuple(scale.decode(value) for value in every), True, scale)
    near_marks = sorted({m for m in marks if lo - 1 <= m <= hi + 1}, key=lambda m: (abs(m - origin), m))
    listed = {mark + move for mark in near_marks[:MAX_MARKS] for move in (-1, 0, 1)}
    listed |= {lo, hi, origin, drawn.lo, drawn.hi, origin + 1}
    fitting = sorted((v for v in listed if lo <= v <= hi), key=lambda value: (abs(value - origin), value))
    return Domain(tuple(scale.decode(value) for value in fitting), False, drawn)


def landmarks(program: Program) -> tuple[dict[Variable, tuple[int, ...]], dict[str, tuple[str, ...]]]:
    """Return where conditions over one number change their truth, and texts that pass or just miss tests."""
    marks: dict[Variable, set[int]] = {}
    texts: dict[str, list[Text]] = {}
    for condition in program.conditions():
        for leaf in leaves(condition):
            if isinstance(leaf, Text):
                texts.setdefault(leaf.attribute, []).append(leaf)
            elif isinstance(leaf, Compare):
                for variable, value in _changes(leaf):
                    marks.setdefault(variable, set()).add(value)
            elif isinstance(leaf, Every):
                marks.setdefault(Variable("clock", "step"), set()).add(leaf.steps)
    return (
        {variable: tuple(sorted(values)) for variable, values in marks.items()},
        {name: tuple(_texts(tests)) for name, tests in texts.items()},
    )


def _changes(compare: Compare) -> Iterator[tuple[Variable, int]]:
    """Yield the bounds of a comparison in one variable; those between several depend on the others."""
    read = variables_read([compare])
    if len(read) == 1:
        [variable] = read
        for root in roots(compare, variable, {}):
            yield variable, root


def roots(compare: Compare, variable: Variable, others: Mapping[Variable, int]) -> Iterator[int]:
    """Yield the whole numbers next to where the two sides are equal, if they are on a line.

    The numbers of the other variables are given encoded; those left out count as 0.
    """

    def gap(value: int) -> int:
        known = {**others, variable: value}
        return _number(compare.left, known) - _number(compare.right, known)

    start, slope = gap(0), gap(1) - gap(0)
    if slope and gap(2) - gap(1) == slope:
        root = -start // slope
        yield root
        if root * slope != -start:
            yield root + 1


def has_one_bound(compare: Compare) -> bool:
    """Whether a comparison reads one input at most, and changes its truth at one value of it at most."""
    read = variables_read([compare])
    if len(read) > 1:
        return False
    return _degree(compare.left) <= 1 and _degree(compare.right) <= 1


def _degree(expression: NumericExpr) -> int:
    match expression:
        case Number():
            return 0
        case Arithmetic("mul", left, right):
            return _degree(left) + _degree(right)
        case Arithmetic(_, left, right):
            return max(_degree(left), _degree(right))
        case _:
            return 1


def _number(expression: NumericExpr, known: Mapping[Variable, int]) -> int:
    match expression:
        case Number(value):
            return value
        case AttributeValue(name):
            return known.get(Variable("attribute", name), 0)
        case SignalValue(name):
            return known.get(Variable("signal", name), 0)
        case ClockValue(name):
            return known.get(Variable("clock", "at" if name == "today" else name), 0)
        case Arithmetic(op, left, right):
            a, b = _number(left, known), _number(right, known)
            return a + b if op == "add" else a - b if op == "sub" else a * b


def _texts(tests: Iterable[Text]) -> Iterator[str]:
    """Yield texts that pass each test, texts that just miss it, and some that pass two at once."""
    starts, ends = [""], [""]
    for test in tests:
        for operand in test.operands:
            text = operand.replace("*", "").replace("?", "a") if test.test == "glob" else operand
            yield text
            yield from (f"{text}x", f"x{text}", f"x{text}x", text[:-1], text.swapcase())
            if test.test == "glob":
                yield operand.replace("*", "x").replace("?", "a")
            if test.test == "prefix":
                starts.append(text)
            if test.test == "suffix":
                ends.append(text)
    yield from (start + end for start in starts[:8] for end in ends[:8])
