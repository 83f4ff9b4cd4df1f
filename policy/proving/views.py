"""How one program sees shared inputs: its conditions as expressions, and whether examples fit its schema.

Every case follows `evaluation/evaluate.py` line by line; `tests/policy/proving` hold the two together.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import assert_never

from gradwarden.policy.evaluation.evaluate import compare
from gradwarden.policy.program import (
    And,
    Arithmetic,
    AttributeSpec,
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
    Program,
    SetTest,
    SignalSpec,
    SignalValue,
    Spent,
    Text,
)
from gradwarden.policy.proving.inputs import AttributeInput, Inputs, is_one_of, rounded, words
from gradwarden.policy.proving.smt import (
    FALSE,
    TRUE,
    Truth,
    Whole,
    conjunction,
    disjunction,
    negation,
    z3,
)


class View:
    """The conditions of one program over inputs that it may share with others."""

    def __init__(self, program: Program, inputs: Inputs) -> None:
        self.inputs = inputs
        self._specs = {spec.name: spec for spec in program.attributes}
        self._known: dict[int, tuple[Condition, Truth]] = {}
        self._signals = {spec.name: self._signal(spec) for spec in program.signals}
        self._wholes = {
            spec.name: self._whole(spec) for spec in program.attributes if spec.type in ("number", "date")
        }

    def valid(self) -> Truth:
        """Return whether the example's metadata fit the program's schema."""
        return conjunction(self._fits())

    def _fits(self) -> Iterator[Truth]:
        for (name, _), made in self.inputs.attributes.items():
            spec = self._specs.get(name)
            if spec is None or self._input(name) is not made:
                yield negation(made.present)
                continue
            if not spec.optional:
                yield made.present
            if spec != made.spec:
                yield disjunction((negation(made.present), conjunction(self._in_range(spec, made))))

    def _in_range(self, spec: AttributeSpec, made: AttributeInput) -> Iterator[Truth]:
        """Yield what a present value must satisfy besides the union of all declarations."""
        match spec.type:
            case "number" | "date":
                value = rounded(made.whole, made.spec.places, spec.places)
                yield from (value >= spec.lo, value <= spec.hi)
            case "enum":
                yield self._among(made, frozenset(spec.values))
            case "set":
                yield from (negation(flag) for word, flag in made.members.items() if word not in spec.values)
            case "string":
                assert made.choice is not None
                yield made.choice.fits(spec.hi)
            case "bool":
                pass

    def _signal(self, spec: SignalSpec) -> Whole:
        made = self.inputs.signals[spec.name]
        value = rounded(made.whole, made.places, spec.places)
        if (made.lo, made.hi, made.places) != (spec.lo, spec.hi, spec.places):
            value = z3.If(value < spec.lo, spec.lo, z3.If(value > spec.hi, spec.hi, value))
        return value if made.given is TRUE else z3.If(made.given, value, spec.default)

    def _whole(self, spec: AttributeSpec) -> Whole:
        made = self._input(spec.name)
        value = rounded(made.whole, made.spec.places, spec.places)
        return value if made.present is TRUE else z3.If(made.present, value, 0)

    def _input(self, name: str) -> AttributeInput:
        attributes = self.inputs.attributes
        # What is no input of its own is an enumeration that another program reads as a string.
        return attributes.get((name, self._specs[name].type)) or attributes[name, "string"]

    def signal(self, name: str) -> Whole:
        """Return the encoded, clamped value of a signal."""
        return self._signals[name]

    def truth(self, condition: Condition) -> Truth:
        """Return a condition as an expression."""
        # The condition is kept beside its expression: an id is only unique while its object lives.
        known = self._known.get(id(condition))
        if known is None:
            known = self._known[id(condition)] = (condition, self._truth(condition))
        return known[1]

    def _truth(self, condition: Condition) -> Truth:
        match condition:
            case Constant(value):
                return TRUE if value else FALSE
            case Not(term):
                return negation(self.truth(term))
            case And(terms):
                return conjunction([self.truth(term) for term in terms])
            case Or(terms):
                return disjunction([self.truth(term) for term in terms])
            case Has(attribute):
                return self._input(attribute).present
            case Flag(attribute):
                made = self._input(attribute)
                return conjunction((made.present, made.flag))
            case OneOf(attribute, codes):
                made = self._input(attribute)
                return conjunction((made.present, self._among(made, words(self._specs[attribute], codes))))
            case Text(attribute, test, operands):
                return self._passes(attribute, (test, operands))
            case SetTest(attribute, test, codes):
                return self._members(attribute, test, codes)
            case Compare(op, left, right):
                return _compare(op, self.number(left), self.number(right))
            case Spent(rule):
                return self.inputs.spent[rule]
            case Every(steps):
                return _multiple(self.inputs.clocks["step"], steps)
            case _:
                assert_never(condition)

    def _passes(self, attribute: str, test: Hashable) -> Truth:
        made = self._input(attribute)
        assert made.choice is not None
        return conjunction((made.present, made.choice.passes(test)))

    def _among(self, made: AttributeInput, values: frozenset[str]) -> Truth:
        """Return whether a present value is one of an enumeration's."""
        assert made.choice is not None
        return made.choice.passes(is_one_of(values) if made.spec.type == "string" else values)

    def _members(self, attribute: str, test: str, codes: tuple[int, ...]) -> Truth:
        made, values = self._input(attribute), self._specs[attribute].values
        members = [conjunction((made.present, made.members[values[code]])) for code in codes]
        return disjunction(members) if test == "any" else conjunction(members)

    def number(self, expression: NumericExpr) -> Whole:
        """Return a numeric expression; z3's integers have no bounds."""
        match expression:
            case Number(value):
                return z3.IntVal(value)
            case AttributeValue(name):
                return self._wholes[name]
            case SignalValue(name):
                return self._signals[name]
            case ClockValue(name):
                return self.inputs.clocks[name]
            case Arithmetic(op, left, right):
                a, b = self.number(left), self.number(right)
                return a + b if op == "add" else a - b if op == "sub" else a * b
            case _:
                assert_never(expression)


def _multiple(number: Whole, of: int) -> Truth:
    if z3.is_int_value(number):
        return TRUE if number.as_long() % of == 0 else FALSE
    return number % of == 0


def _compare(op: CompareOp, a: Whole, b: Whole) -> Truth:
    if z3.is_int_value(a) and z3.is_int_value(b):
        return TRUE if compare(op, a.as_long(), b.as_long()) else FALSE
    match op:
        case "lt":
            return a < b
        case "le":
            return a <= b
        case "eq":
            return a == b
        case "ne":
            return a != b
        case "ge":
            return a >= b
        case "gt":
            return a > b
