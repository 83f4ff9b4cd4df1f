"""Damages a compiled program in small ways: the mutants that tests should notice (`mutation`).

Each mutant differs from the program in one place: a rule is dropped; a condition or one of its parts is
negated; `and` becomes `or`, or the reverse; a comparison becomes strict or not; a bound, or the day on which
a waiver lapses, is moved by one step; a value is dropped from a list; or a weight, cap or factor is changed.
Assertions are left alone: they are to be proved, not tested.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

from gradwarden.policy.evaluation.phrasing import Phrasing
from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import (
    SCALE,
    And,
    Arithmetic,
    AttributeValue,
    Clause,
    Compare,
    CompareOp,
    Condition,
    Constant,
    Every,
    Grant,
    Level,
    Limit,
    Modulation,
    Not,
    Number,
    NumericExpr,
    OneOf,
    Or,
    Program,
    Scaling,
    SetTest,
    SignalValue,
    Text,
    Waiver,
)
from gradwarden.policy.testing.expectations import show_weight

Rule = TypeVar("Rule")
Value = TypeVar("Value", int, str)

_BOUNDARY: dict[CompareOp, CompareOp] = {"lt": "le", "le": "lt", "ge": "gt", "gt": "ge"}


@frozen
class Mutant:
    """A damaged program: the rule that was changed, and the change in words."""

    rule: str
    change: str
    program: Program


def mutants(program: Program) -> Iterator[Mutant]:
    """Yield every mutant, in the order of the rules."""
    phrasing = Phrasing(program)
    for index, grant in enumerate(program.grants):
        for change, grants in _edited(program.grants, index, _grant_edits(program, phrasing, grant)):
            yield Mutant(grant.name, change, replace(program, grants=grants))
    for index, limit in enumerate(program.limits):
        for change, limits in _edited(program.limits, index, _limit_edits(program, phrasing, limit)):
            yield Mutant(limit.name, change, replace(program, limits=limits))
    for index, modulation in enumerate(program.modulations):
        for change, changed in _edited(program.modulations, index, _modulation_edits(phrasing, modulation)):
            yield Mutant(modulation.name, change, replace(program, modulations=changed))
    for index, waiver in enumerate(program.waivers):
        for change, waivers in _edited(program.waivers, index, _waiver_edits(phrasing, waiver)):
            yield Mutant(waiver.name, change, replace(program, waivers=waivers))


def _edited(
    rules: tuple[Rule, ...], index: int, edits: Iterator[tuple[str, Rule]]
) -> Iterator[tuple[str, tuple[Rule, ...]]]:
    """Yield the tuple of rules without the one at `index`, then with each edit of it."""
    yield "the rule was dropped", rules[:index] + rules[index + 1 :]
    for change, rule in edits:
        yield change, (*rules[:index], rule, *rules[index + 1 :])


def _grant_edits(program: Program, phrasing: Phrasing, grant: Grant) -> Iterator[tuple[str, Grant]]:
    for change, when in condition_edits(phrasing, grant.when):
        yield change, replace(grant, when=when)
    if grant.level == "hard":
        for change, weights in _weight_edits(program, grant.weights):
            yield change, replace(grant, weights=weights)


def _limit_edits(program: Program, phrasing: Phrasing, limit: Limit) -> Iterator[tuple[str, Limit]]:
    for index, clause in enumerate(limit.clauses):
        for change, edited in _clause_edits(program, phrasing, clause, level=limit.level):
            clauses = (*limit.clauses[:index], edited, *limit.clauses[index + 1 :])
            yield f"{clause.effect}: {change}", replace(limit, clauses=clauses)


def _clause_edits(
    program: Program, phrasing: Phrasing, clause: Clause, *, level: Level
) -> Iterator[tuple[str, Clause]]:
    for change, when in condition_edits(phrasing, clause.when):
        yield change, replace(clause, when=when)
    if level == "hard" and clause.effect != "held_out":
        for change, caps in _cap_edits(program, clause.caps):
            yield change, replace(clause, caps=caps)


def _modulation_edits(phrasing: Phrasing, modulation: Modulation) -> Iterator[tuple[str, Modulation]]:
    for change, when in condition_edits(phrasing, modulation.when):
        yield change, replace(modulation, when=when)
    if modulation.level == "advisory":
        return
    for index, scaling in enumerate(modulation.scalings):
        for change, edited in _scaling_edits(scaling):
            scalings = (*modulation.scalings[:index], edited, *modulation.scalings[index + 1 :])
            yield change, replace(modulation, scalings=scalings)


def _scaling_edits(scaling: Scaling) -> Iterator[tuple[str, Scaling]]:
    """Halve the factor at either end; one that is 0 becomes 1."""
    low = scaling.at_low // 2 if scaling.at_low else SCALE
    yield (
        f"the factor of `{scaling.band}` at low: {_became(scaling.at_low, low)}",
        replace(scaling, at_low=low),
    )
    high = scaling.at_high // 2 if scaling.at_high else SCALE
    yield (
        f"the factor of `{scaling.band}` at high: {_became(scaling.at_high, high)}",
        replace(scaling, at_high=high),
    )


def _waiver_edits(phrasing: Phrasing, waiver: Waiver) -> Iterator[tuple[str, Waiver]]:
    for change, when in condition_edits(phrasing, waiver.when):
        yield change, replace(waiver, when=when)


def _weight_edits(program: Program, weights: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Halve each weight that is granted; grant each that is not."""
    for index, (band, old) in enumerate(zip(program.band_names, weights, strict=True)):
        new = old // 2 if old else program.max_weight
        yield f"the weight of `{band}`: {_became(old, new)}", (*weights[:index], new, *weights[index + 1 :])


def _cap_edits(program: Program, caps: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Lift each cap; close each band that is open. A clause that closes everything is lifted as a whole."""
    if not any(caps):
        yield "it closed no band", (program.max_weight,) * len(caps)
        return
    for index, (band, old) in enumerate(zip(program.band_names, caps, strict=True)):
        new = program.max_weight if old < program.max_weight else 0
        yield f"the cap of `{band}`: {_became(old, new)}", (*caps[:index], new, *caps[index + 1 :])


def _became(old: int, new: int) -> str:
    return f"{show_weight(old)} became {show_weight(new)}"


def condition_edits(phrasing: Phrasing, condition: Condition) -> Iterator[tuple[str, Condition]]:
    """Yield (change, condition) for the negation of a condition and of each part, and each moved bound."""
    if isinstance(condition, Constant):
        return
    if _is_compound(condition):
        yield f"`{phrasing.condition(condition)}` was negated", Not(condition)
    yield from _part_edits(phrasing, condition)


def _is_compound(condition: Condition) -> bool:
    match condition:
        case Not(term):
            return _is_compound(term)
        case And(terms) | Or(terms):
            return len(terms) != 1 or _is_compound(terms[0])
        case _:
            return False


def _part_edits(phrasing: Phrasing, condition: Condition) -> Iterator[tuple[str, Condition]]:
    match condition:
        case Not(term):
            for change, edited in _part_edits(phrasing, term):
                yield change, Not(edited)
        case And(terms) | Or(terms):
            if len(terms) > 1:
                swapped = Or(terms) if isinstance(condition, And) else And(terms)
                yield _rewritten(phrasing, condition, swapped), swapped
            for index, term in enumerate(terms):
                for change, edited in _part_edits(phrasing, term):
                    yield change, type(condition)((*terms[:index], edited, *terms[index + 1 :]))
        case Constant():
            return
        case _:
            text = phrasing.condition(condition)
            yield f"`{text}` was negated", Not(condition)
            for changed in _leaf_edits(phrasing, condition):
                yield _rewritten(phrasing, condition, changed), changed


def _rewritten(phrasing: Phrasing, old: Condition, new: Condition) -> str:
    return f"`{phrasing.condition(old)}` became `{phrasing.condition(new)}`"


def _leaf_edits(phrasing: Phrasing, leaf: Condition) -> Iterator[Condition]:
    """Yield a test with its bound moved, with a value less in its list, or with `any` for `all`."""
    match leaf:
        case Compare():
            yield from _moved(phrasing, leaf)
        case OneOf(_, codes):
            yield from (replace(leaf, codes=fewer) for fewer in _without_one(codes))
        case SetTest(_, test, codes):
            yield from (replace(leaf, codes=fewer) for fewer in _without_one(codes))
            if len(codes) > 1:
                yield replace(leaf, test="all" if test == "any" else "any")
        case Every(steps):
            yield Every(steps + 1)
        case Text(_, _, operands):
            yield from (replace(leaf, operands=fewer) for fewer in _without_one(operands))
        case _:
            return


def _without_one(values: tuple[Value, ...]) -> Iterator[tuple[Value, ...]]:
    """Yield a list without each of its values; the only value of a list stays."""
    if len(values) > 1:
        for index in range(len(values)):
            yield values[:index] + values[index + 1 :]


def _moved(phrasing: Phrasing, compare: Compare) -> Iterator[Compare]:
    """Yield the comparison with its bound one step further on either side.

    `>=` for `>` is the move that an example on the bound tells apart. The move the other way needs an example
    one step outside; it is made only for whole numbers and days, where such an example is a natural test.
    """
    if compare.op in _BOUNDARY:
        yield replace(compare, op=_BOUNDARY[compare.op])
    if not isinstance(compare.right, Number) or not _is_whole(phrasing, compare.left):
        return
    outward = 1 if compare.op in ("le", "gt") else -1
    moves = (1, -1) if compare.op in ("eq", "ne") else (outward,)
    for move in moves:
        yield replace(compare, right=Number(compare.right.value + move))


def _is_whole(phrasing: Phrasing, expression: NumericExpr) -> bool:
    match expression:
        case AttributeValue() | SignalValue():
            return phrasing.places(expression) == 0
        case Arithmetic(_, left, right):
            return _is_whole(phrasing, left) and _is_whole(phrasing, right)
        case _:
            return True
