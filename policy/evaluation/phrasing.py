"""Conditions of a compiled program in the words of the policy language, for reports.

The text is meant for people. It is not parsed back: names of phases, bands and `let` conditions are gone
from a program, so they appear as the conditions that they stand for.
"""

from __future__ import annotations

from datetime import date, timedelta
from typing import assert_never

from gradwarden.policy.context import EPOCH_DAY
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
    Maintenance,
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

OPERATORS = {"lt": "<", "le": "<=", "eq": "==", "ne": "!=", "ge": ">=", "gt": ">"}
_ARITHMETIC = {"add": "+", "sub": "-", "mul": "*"}
_TEXT_TESTS = {"prefix": "starts with", "suffix": "ends with", "contains": "contains", "glob": "like"}

# How strongly a form binds: a part that binds no more strongly than the whole is set in parentheses.
_OR, _AND, _NOT, _ATOM = range(4)


class Phrasing:
    """Puts the conditions of one program into words."""

    def __init__(self, program: Program) -> None:
        self._attributes = {spec.name: spec for spec in program.attributes}
        self._signals = {spec.name: spec for spec in program.signals}

    def condition(self, condition: Condition) -> str:
        """Return a condition as text."""
        return self._bound(condition)[1]

    def _bound(self, condition: Condition) -> tuple[int, str]:
        match condition:
            case Constant(value):
                return _ATOM, "true" if value else "false"
            case Not(term):
                return _NOT, f"not {self._part(term, _NOT)}"
            case And(terms):
                return self._joined("and", terms, _AND, "true")
            case Or(terms):
                return self._joined("or", terms, _OR, "false")
            case Has(attribute):
                return _NOT, f"has {attribute}"
            case Flag(attribute):
                return _ATOM, attribute
            case OneOf(attribute, codes):
                return _ATOM, _among(attribute, [self._word(attribute, code) for code in codes])
            case SetTest(attribute, test, codes):
                words = [self._word(attribute, code) for code in codes]
                if len(words) == 1:
                    return _ATOM, f"{attribute} contains {words[0]}"
                return _ATOM, f"{attribute} has {test} [{', '.join(words)}]"
            case Text(attribute, "equals", operands):
                return _ATOM, _among(attribute, [_quoted(text) for text in operands])
            case Text(attribute, test, operands):
                tests = [f"{attribute} {_TEXT_TESTS[test]} {_quoted(text)}" for text in operands]
                return (_ATOM, tests[0]) if len(tests) == 1 else (_OR, " or ".join(tests))
            case Compare(op, left, right):
                return _ATOM, self._comparison(op, left, right)
            case Spent(rule):
                return _ATOM, f"the budget of {rule} is spent"
            case Every(steps):
                return _ATOM, f"every {steps} steps"
            case _:
                assert_never(condition)

    def _joined(self, word: str, terms: tuple[Condition, ...], level: int, empty: str) -> tuple[int, str]:
        if not terms:
            return _ATOM, empty
        if len(terms) == 1:
            return self._bound(terms[0])
        return level, f" {word} ".join(self._part(term, level) for term in terms)

    def _part(self, condition: Condition, level: int) -> str:
        own, text = self._bound(condition)
        return text if own > level else f"({text})"

    def _word(self, attribute: str, code: int) -> str:
        value = self._attributes[attribute].values[code]
        return value if value.isidentifier() else _quoted(value)

    def _comparison(self, op: str, left: NumericExpr, right: NumericExpr) -> str:
        days = _is_date(self, left) or _is_date(self, right)
        places = max(self.places(left), self.places(right))
        return f"{self._number(left, places, days)} {OPERATORS[op]} {self._number(right, places, days)}"

    def places(self, expression: NumericExpr) -> int:
        """Return the decimal places of a scaled expression; a bare constant takes those of its peer."""
        match expression:
            case AttributeValue(name):
                return self._attributes[name].places
            case SignalValue(name):
                return self._signals[name].places
            case Arithmetic("mul", left, right):
                return self.places(left) + self.places(right)
            case Arithmetic(_, left, right):
                return max(self.places(left), self.places(right))
            case _:
                return 0

    def _number(self, expression: NumericExpr, places: int, days: bool) -> str:
        match expression:
            case Number(value):
                return _day(value) if days else scaled(value, places)
            case AttributeValue(name) | SignalValue(name) | ClockValue(name):
                return name
            case Arithmetic(op, left, right):
                inner = 0 if op == "mul" else places
                sides = [self._number(side, inner or self.places(side), False) for side in (left, right)]
                return f"({sides[0]} {_ARITHMETIC[op]} {sides[1]})"
            case _:
                assert_never(expression)


def _is_date(phrasing: Phrasing, expression: NumericExpr) -> bool:
    match expression:
        case AttributeValue(name):
            return phrasing._attributes[name].type == "date"
        case ClockValue(name):
            return name == "today"
        case _:
            return False


def scaled(value: int, places: int) -> str:
    """Return an integer scaled by 10**places as the shortest decimal."""
    if places == 0:
        return str(value)
    whole, fraction = divmod(abs(value), 10**places)
    text = f"{whole}.{fraction:0{places}d}".rstrip("0").rstrip(".")
    return f"-{text}" if value < 0 else text


def share(micro: int) -> str:
    """Return a weight or factor in millionths as the shortest decimal."""
    return scaled(micro, 6)


def maintenance_terms(rule: Maintenance) -> str:
    """Return how a `maintain` rule holds its bands: `strength 0.01, drift at most 2%, from step 100`."""
    pull = [] if rule.strength is None else [f"strength {rule.strength}"]
    bound = [] if rule.drift is None else [f"drift at most {percent(rule.drift)}"]
    part = rule.rehearsal
    rehearsal = [] if part is None else [f"rehearse {part.rule} at least {percent(part.share)}"]
    start = [f"from step {rule.start}"] if rule.start else []
    return ", ".join([*pull, *bound, *rehearsal, *start])


def percent(micro: int) -> str:
    """Return a share in millionths in percent, as the shortest decimal: `2.5%`."""
    return f"{scaled(micro, 4)}%"


def _day(value: int) -> str:
    try:
        return str(EPOCH_DAY + timedelta(days=value))
    except OverflowError:
        return f"{date.max if value > 0 else date.min}"


def _among(attribute: str, words: list[str]) -> str:
    return f"{attribute} == {words[0]}" if len(words) == 1 else f"{attribute} in [{', '.join(words)}]"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
