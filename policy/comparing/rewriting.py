"""Programs with other conditions: every condition rewritten, everything else as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import assert_never

from gradwarden.policy.program import (
    And,
    Arithmetic,
    Compare,
    Condition,
    Constant,
    Flag,
    Has,
    Not,
    NumericExpr,
    OneOf,
    Or,
    Program,
    SetTest,
    Spent,
    Text,
)

Rewrite = Callable[[int, Condition], Condition]
"""Returns what stands in the place of a condition, given its index in `Program.conditions`."""


def rewritten(program: Program, rewrite: Rewrite) -> Program:
    """Return a program whose conditions are rewritten."""
    places = count()

    def new(condition: Condition) -> Condition:
        return rewrite(next(places), condition)

    grants = tuple(replace(rule, when=new(rule.when)) for rule in program.grants)
    limits = tuple(
        replace(rule, clauses=tuple(replace(clause, when=new(clause.when)) for clause in rule.clauses))
        for rule in program.limits
    )
    modulations = tuple(replace(rule, when=new(rule.when)) for rule in program.modulations)
    waivers = tuple(replace(rule, when=new(rule.when)) for rule in program.waivers)
    assertions = tuple(
        replace(rule, when=new(rule.when), then=new(rule.then) if rule.form == "implies" else rule.then)
        for rule in program.assertions
    )
    return replace(
        program,
        grants=grants,
        limits=limits,
        modulations=modulations,
        waivers=waivers,
        assertions=assertions,
    )


def substituted(condition: Condition, old: NumericExpr, new: NumericExpr) -> Condition:
    """Return a condition in which an expression stands for another, wherever that occurs."""
    match condition:
        case Not(term):
            return Not(substituted(term, old, new))
        case And(terms):
            return And(tuple(substituted(term, old, new) for term in terms))
        case Or(terms):
            return Or(tuple(substituted(term, old, new) for term in terms))
        case Compare(op, left, right):
            return Compare(op, _number(left, old, new), _number(right, old, new))
        case Constant() | Has() | Flag() | OneOf() | SetTest() | Text() | Spent():
            return condition
        case _:
            assert_never(condition)


def _number(expression: NumericExpr, old: NumericExpr, new: NumericExpr) -> NumericExpr:
    if expression == old:
        return new
    if isinstance(expression, Arithmetic):
        left, right = (_number(side, old, new) for side in (expression.left, expression.right))
        return Arithmetic(expression.op, left, right)
    return expression
