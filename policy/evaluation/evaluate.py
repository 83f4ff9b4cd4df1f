"""The reference evaluator: what a program means, one example at a time, in the obvious way.

Every other evaluator (`batch`, `admission`, `replay`) is held equal to this one.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from datetime import date, datetime
from typing import assert_never

from gradwarden.policy.combine import combine
from gradwarden.policy.context import EPOCH_DAY, Context
from gradwarden.policy.decision import Decision, Problem, invalid
from gradwarden.policy.errors import GradwardenError
from gradwarden.policy.evaluation.partition import partition
from gradwarden.policy.evaluation.texts import text_holds
from gradwarden.policy.evaluation.values import Encoded, Fault, encode_metadata, encode_signal
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
    Program,
    SetTest,
    SignalValue,
    Spent,
    Text,
)


class ContextError(GradwardenError):
    """A context that cannot be used for a decision: a fault of the caller, not of the example."""

    code = "GW130"


@frozen
class Facts:
    """All that conditions may read: encoded attributes (absent ones are left out), signals and the clock."""

    values: Mapping[str, Encoded]
    signals: Mapping[str, int]
    step: int
    epoch: int
    today: int
    exposures: int
    spent: Set[str]


def decide(program: Program, metadata: Mapping[str, object], context: Context) -> Decision:
    """Return the decision for one example.

    Raises ContextError where the program reads `today` and the context has no date, or where exposures or a
    signal are arrays.
    """
    facts, problems = read_facts(program, metadata, context)
    if problems:
        return invalid(program.band_names, problems)
    truth = [holds(condition, facts) for condition in program.conditions()]
    return combine(program, truth, facts.signals.__getitem__)


def truth_of(program: Program, metadata: Mapping[str, object], context: Context) -> tuple[bool, ...]:
    """Return the truth of every condition, in the order of `Program.conditions`, for a valid example."""
    facts, _ = read_facts(program, metadata, context)
    return tuple(holds(condition, facts) for condition in program.conditions())


def read_facts(
    program: Program, metadata: Mapping[str, object], context: Context
) -> tuple[Facts, tuple[Problem, ...]]:
    """Encode the inputs of a decision. Problems of metadata come first, then those of signals."""
    today = required_day(program, context)
    values, problems = encode_metadata(program.attributes, metadata)
    signals, signal_problems = read_signals(program, context)
    facts = Facts(
        values, signals, context.step, context.epoch, today, one_int(context.exposures), context.spent
    )
    return facts, problems + signal_problems


def required_day(program: Program, context: Context) -> int:
    """Return the context's day; 0 where it has none and none is needed. Raises ContextError."""
    if context.at is not None:
        if not isinstance(context.at, date) or isinstance(context.at, datetime):
            raise ContextError(
                f"`at` is `{context.at!r}`, not a calendar day",
                help="give a `datetime.date`: `Context(at=date(2026, 1, 31))`",
            )
        return (context.at - EPOCH_DAY).days
    if partition(program).uses_today:
        raise ContextError(
            f"the policy `{program.name}` reads `today`, and the context has no date",
            help="give the calendar day: `Context(at=date(2026, 1, 31))`",
        )
    return 0


def one_int(value: object) -> int:
    """Return a single exposure count. Raises ContextError for an array."""
    try:
        return int(value)  # type: ignore[call-overload, no-any-return]  # whatever the caller gave
    except (TypeError, ValueError):
        raise ContextError("`exposures` must be one whole number when one example is decided") from None


def read_signals(program: Program, context: Context) -> tuple[dict[str, int], tuple[Problem, ...]]:
    """Return the encoded signals that the program reads, and their faults. Others are not looked at."""
    used = set(partition(program).signals)
    signals: dict[str, int] = {}
    problems: list[Problem] = []
    for spec in program.signals:
        if spec.name not in used:
            continue
        try:
            given = spec.name in context.signals
            signals[spec.name] = encode_signal(spec, context.signals[spec.name]) if given else spec.default
        except Fault as fault:
            problems.append(Problem(spec.name, fault.code, fault.detail))
    return signals, tuple(problems)


def holds(condition: Condition, facts: Facts) -> bool:
    """Return the truth of one condition."""
    match condition:
        case And(terms):
            return all(holds(term, facts) for term in terms)
        case Or(terms):
            return any(holds(term, facts) for term in terms)
        case Not(term):
            return not holds(term, facts)
        case Compare(op, left, right):
            return compare(op, number(left, facts), number(right, facts))
        case OneOf(attribute, codes):
            return facts.values.get(attribute) in codes
        case Flag(attribute):
            return bool(facts.values.get(attribute, False))
        case Has(attribute):
            return attribute in facts.values
        case SetTest(attribute, test, codes):
            mask = int(facts.values.get(attribute, 0))
            members = [bool(mask >> code & 1) for code in codes]
            return any(members) if test == "any" else all(members)
        case Text(attribute):
            return attribute in facts.values and text_holds(condition, str(facts.values[attribute]))
        case Constant(value):
            return value
        case Spent(rule):
            return rule in facts.spent
        case Every(steps):
            return facts.step % steps == 0
        case _:
            assert_never(condition)


def number(expression: NumericExpr, facts: Facts) -> int:
    """Return the value of a numeric expression; an absent attribute counts as 0."""
    match expression:
        case Number(value):
            return value
        case AttributeValue(name):
            return int(facts.values.get(name, 0))
        case SignalValue(name):
            return facts.signals[name]
        case ClockValue(name):
            return clock(name, facts)
        case Arithmetic(op, left, right):
            a, b = number(left, facts), number(right, facts)
            return a + b if op == "add" else a - b if op == "sub" else a * b
        case _:
            assert_never(expression)


def clock(name: str, facts: Facts) -> int:
    match name:
        case "step":
            return facts.step
        case "epoch":
            return facts.epoch
        case "today":
            return facts.today
        case _:
            return facts.exposures


def compare(op: CompareOp, a: int, b: int) -> bool:
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
        case _:
            assert_never(op)
