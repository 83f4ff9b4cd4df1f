"""Programs with other conditions: every condition rewritten, everything else as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import TypeAlias, assert_never

from gradwarden.policy.program import (
    And,
    Arithmetic,
    Compare,
    Condition,
    Constant,
    Every,
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

Test: TypeAlias = Has | Flag | OneOf | SetTest | Text
"""A condition on one attribute."""


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


def mapped(
    condition: Condition,
    number: Callable[[NumericExpr], NumericExpr],
    test: Callable[[Test], Condition] = lambda test: test,
) -> Condition:
    """Return a condition whose numeric expressions and whose tests of one attribute are replaced."""
    match condition:
        case Not(term):
            return Not(mapped(term, number, test))
        case And(terms):
            return And(tuple(mapped(term, number, test) for term in terms))
        case Or(terms):
            return Or(tuple(mapped(term, number, test) for term in terms))
        case Compare(op, left, right):
            return Compare(op, number(left), number(right))
        case Has() | Flag() | OneOf() | SetTest() | Text():
            return test(condition)
        case Constant() | Spent() | Every():
            return condition
        case _:
            assert_never(condition)


def substituted(condition: Condition, old: NumericExpr, new: NumericExpr) -> Condition:
    """Return a condition in which an expression stands for another, wherever that occurs."""
    return mapped(condition, lambda expression: replaced(expression, lambda e: new if e == old else e))


def replaced(expression: NumericExpr, new: Callable[[NumericExpr], NumericExpr]) -> NumericExpr:
    """Return an expression with its parts replaced, from the outside in; what was replaced is kept."""
    found = new(expression)
    if found is expression and isinstance(expression, Arithmetic):
        left, right = (replaced(side, new) for side in (expression.left, expression.right))
        return Arithmetic(expression.op, left, right)
    return found
