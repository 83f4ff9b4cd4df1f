"""A program whose day is an attribute, so that examples can be decided together, each on its own day."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar, assert_never

from gradwarden.policy.checking.types import MAX_DAY, MIN_DAY
from gradwarden.policy.program import (
    And,
    Arithmetic,
    Assertion,
    AttributeSpec,
    AttributeValue,
    ClockValue,
    Compare,
    Condition,
    Constant,
    Flag,
    Grant,
    Has,
    Modulation,
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
    Waiver,
)

DAY = "today"
"""The attribute that holds the day. No policy can declare it: it is a word of the language."""

RuleT = TypeVar("RuleT", Grant, Modulation, Waiver)


def dated(program: Program) -> Program:
    """Return a program that decides as this one does on the day in the attribute `DAY`.

    It is made for evaluation only: its attributes are not sorted.
    """
    return replace(
        program,
        attributes=(*program.attributes, AttributeSpec(DAY, "date", lo=MIN_DAY, hi=MAX_DAY)),
        grants=tuple(map(_rule, program.grants)),
        limits=tuple(
            replace(limit, clauses=tuple(replace(c, when=_condition(c.when)) for c in limit.clauses))
            for limit in program.limits
        ),
        modulations=tuple(map(_rule, program.modulations)),
        waivers=tuple(map(_rule, program.waivers)),
        assertions=tuple(map(_assertion, program.assertions)),
    )


def _rule(rule: RuleT) -> RuleT:
    return replace(rule, when=_condition(rule.when))


def _assertion(rule: Assertion) -> Assertion:
    return replace(rule, when=_condition(rule.when), then=_condition(rule.then))


def _condition(condition: Condition) -> Condition:
    match condition:
        case Not(term):
            return Not(_condition(term))
        case And(terms):
            return And(tuple(map(_condition, terms)))
        case Or(terms):
            return Or(tuple(map(_condition, terms)))
        case Compare(op, left, right):
            return Compare(op, _number(left), _number(right))
        case Constant() | Has() | Flag() | OneOf() | SetTest() | Text() | Spent():
            return condition
        case _:
            assert_never(condition)


def _number(expression: NumericExpr) -> NumericExpr:
    match expression:
        case ClockValue("today"):
            return AttributeValue(DAY)
        case Arithmetic(op, left, right):
            return Arithmetic(op, _number(left), _number(right))
        case Number() | AttributeValue() | SignalValue() | ClockValue():
            return expression
        case _:
            assert_never(expression)
