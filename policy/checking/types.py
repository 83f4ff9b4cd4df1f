"""The language's types, and what the checker knows about a typed operand.

Numbers are integers scaled by 10**places, dates are days since 1970-01-01, durations are days. The checker
carries the interval lo..hi of every numeric operand and refuses those that could leave ±(2**53 - 1), where
all evaluators (Python integers, int64 columns, JSON numbers) agree exactly.
"""

from __future__ import annotations

from datetime import date
from typing import Literal, TypeAlias

from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import AttributeSpec, Condition, NumericExpr, SignalSpec
from gradwarden.policy.source import Span

EXACT = 2**53 - 1
"""The greatest magnitude that every evaluator represents exactly."""

DEFAULT_PLACES = 6
MAX_PLACES = 9
MAX_STRING = 65_536
MAX_SET_VALUES = 63
MAX_ENUM_VALUES = 4_096
MAX_COUNT = 2**31 - 1
"""The greatest step, epoch or number of exposures."""

MAX_DURATION = 10_000_000

EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
MIN_DAY = date.min.toordinal() - EPOCH_ORDINAL
MAX_DAY = date.max.toordinal() - EPOCH_ORDINAL

DAYS_IN = {"day": 1, "days": 1, "week": 7, "weeks": 7}
"""The units of durations."""

CLOCKS = ("step", "epoch", "today", "exposures")

RESERVED = frozenset(
    (
        *("and", "or", "not", "implies", "in", "has", "true", "false", "band", "any", "all", "phase"),
        *("like", "contains", "starts", "ends", "with", "at", "from", "to", "by", "when", "until"),
        *("before", "during", "number", "integer", "default", "places", "optional", *CLOCKS),
    )
)
"""Words that cannot name an attribute, a signal or a condition."""


def day_text(days: int) -> str:
    """Return a day as YYYY-MM-DD."""
    return date.fromordinal(days + EPOCH_ORDINAL).isoformat()


@frozen
class Attribute:
    """A declared attribute and where it was declared."""

    spec: AttributeSpec
    span: Span


@frozen
class Signal:
    spec: SignalSpec
    unit: str
    span: Span


@frozen
class PhaseEnd:
    """A phase and the count at which it ends; the last phase has no end (`clock` is None)."""

    name: str
    clock: Literal["step", "epoch"] | None
    end: int


@frozen
class Numeric:
    """A numeric operand: its expression, kind, scale, interval (scaled) and unit.

    A unit of None fits any other: plain literals have none.
    """

    expr: NumericExpr
    kind: Literal["number", "date", "duration"]
    places: int
    lo: int
    hi: int
    unit: str | None
    span: Span


@frozen
class Checked:
    """A typed condition, and which optional attributes are present where it is true and where false.

    signals: what it was written to read, also where constants beside it decide it.
    """

    condition: Condition
    yes: frozenset[str] = frozenset()
    no: frozenset[str] = frozenset()
    signals: frozenset[str] = frozenset()


@frozen
class Categorical:
    """A string, enum or set attribute standing as an operand."""

    spec: AttributeSpec
    span: Span


@frozen
class PhaseOperand:
    """The word `phase` standing as an operand."""

    span: Span


Operand: TypeAlias = Numeric | Checked | Categorical | PhaseOperand


def describe(operand: Operand) -> str:
    """Name an operand's type in a message."""
    match operand:
        case Numeric(kind="number", unit=unit):
            return f"a number of {unit}" if unit else "a number"
        case Numeric(kind=kind):
            return f"a {kind}"
        case Checked():
            return "a condition"
        case Categorical(spec):
            return {"enum": "an enumeration", "set": "a set"}.get(spec.type, "a string")
        case PhaseOperand():
            return "the phase"
