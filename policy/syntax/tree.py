"""The syntax tree: what a policy text says, piece by piece, each with its span. Nothing here is checked.

Numbers are exact decimals as written; dates are days since 1970-01-01. Grouping parentheses leave no node.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Literal, TypeAlias

from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import Level
from gradwarden.policy.source import Source, Span

RuleKind = Literal[
    "depth",
    "suppress",
    "retain",
    "privacy",
    "memorization",
    "curriculum",
    "modulate",
    "waive",
    "maintain",
]


@frozen
class Name:
    """An identifier where the grammar asks for one."""

    text: str
    span: Span


@frozen
class Word:
    """A value written as a bare name or as a quoted string (`quoted`)."""

    text: str
    quoted: bool
    span: Span


@frozen
class Quantity:
    """A number with an optional unit (empty where none was written)."""

    value: Decimal
    unit: str
    span: Span


@frozen
class Day:
    """A calendar day."""

    days: int
    span: Span


Bound: TypeAlias = Quantity | Day
Member: TypeAlias = Quantity | Day | Word


# --- expressions --------------------------------------------------------------------------------------------


@frozen
class Truth:
    value: bool
    span: Span


@frozen
class Reference:
    """A bare name: an attribute, signal, clock, named condition, band or enum value."""

    name: str
    span: Span


@frozen
class Present:
    """`has NAME`"""

    name: Name
    span: Span


@frozen
class InBand:
    """`band NAME`"""

    name: Name
    span: Span


@frozen
class Negative:
    term: Expr
    span: Span


@frozen
class Operation:
    """`+`, `-` or `*` between two operands."""

    op: Literal["add", "sub", "mul"]
    left: Expr
    right: Expr
    span: Span


@frozen
class Comparison:
    """Operands joined by comparison operators; more than one operator is refused by the checker."""

    operands: tuple[Expr, ...]
    ops: tuple[str, ...]
    span: Span


@frozen
class InList:
    term: Expr
    members: tuple[Member, ...]
    negated: bool
    span: Span


@frozen
class InRange:
    """`term in lo..hi`, both ends included."""

    term: Expr
    lo: Bound
    hi: Bound
    negated: bool
    span: Span


@frozen
class TextTest:
    test: Literal["starts with", "ends with", "contains", "like"]
    term: Expr
    operand: Word
    span: Span


@frozen
class SetTest:
    test: Literal["any", "all"]
    term: Expr
    members: tuple[Member, ...]
    span: Span


@frozen
class Negation:
    term: Expr
    span: Span


@frozen
class Junction:
    """`and` or `or` over two or more terms."""

    op: Literal["and", "or"]
    terms: tuple[Expr, ...]
    span: Span


@frozen
class Implication:
    left: Expr
    right: Expr
    span: Span


Expr: TypeAlias = (
    Quantity
    | Day
    | Word
    | Truth
    | Reference
    | Present
    | InBand
    | Negative
    | Operation
    | Comparison
    | InList
    | InRange
    | TextTest
    | SetTest
    | Negation
    | Junction
    | Implication
)


# --- declarations -------------------------------------------------------------------------------------------


@frozen
class Header:
    name: Name
    version: Quantity
    language: Quantity | None
    span: Span


@frozen
class Import:
    path: Word
    span: Span


@frozen
class MaxWeight:
    weight: Quantity
    span: Span


@frozen
class SimpleType:
    """`string`, `bool` or `date`; `lo` and `hi` only for a date with a range."""

    kind: Literal["string", "bool", "date"]
    lo: Day | None
    hi: Day | None
    span: Span


@frozen
class ChoiceType:
    kind: Literal["enum", "set"]
    values: tuple[Word, ...]
    span: Span


@frozen
class RangeType:
    """`number lo..hi [unit] [places N]` or `integer lo..hi [unit]`."""

    kind: Literal["number", "integer"]
    lo: Quantity
    hi: Quantity
    unit: str
    places: Quantity | None
    span: Span


@frozen
class Field:
    name: Name
    type: SimpleType | ChoiceType | RangeType
    optional: bool
    span: Span


@frozen
class Examples:
    fields: tuple[Field, ...]
    span: Span


@frozen
class SignalField:
    name: Name
    type: RangeType
    default: Quantity | None
    span: Span


@frozen
class Signals:
    fields: tuple[SignalField, ...]
    span: Span


@frozen
class PartSelector:
    """One selector of a model band; which fields are set depends on `kind`."""

    kind: Literal["top", "next", "rest", "blocks", "names"]
    lo: Quantity | None
    hi: Quantity | None
    pattern: Word | None
    span: Span


@frozen
class Part:
    """A band of the model."""

    name: Name
    selectors: tuple[PartSelector, ...]
    span: Span


@frozen
class Semantics:
    """`semantics detach`: what a weight of zero stops."""

    value: Literal["mask", "detach"]
    span: Span


@frozen
class Model:
    parts: tuple[Part, ...]
    semantics: tuple[Semantics, ...]
    span: Span


@frozen
class Phase:
    """`clock` and `end` are None for a phase without an end."""

    name: Name
    clock: Literal["step", "epoch"] | None
    end: Quantity | None
    span: Span


@frozen
class Phases:
    phases: tuple[Phase, ...]
    span: Span


@frozen
class Let:
    name: Name
    condition: Expr
    span: Span


@frozen
class EntropyBand:
    name: Name
    condition: Expr
    span: Span


# --- clauses of rules ---------------------------------------------------------------------------------------


@frozen
class When:
    condition: Expr
    span: Span


@frozen
class Because:
    text: Word
    span: Span


@frozen
class Target:
    """`BAND [at WEIGHT]`; a name of None is `all`."""

    band: Name | None
    weight: Quantity | None
    span: Span


@frozen
class Targets:
    """`reach …` or `cap …`"""

    verb: Literal["reach", "cap"]
    targets: tuple[Target, ...]
    span: Span


@frozen
class Route:
    band: Name
    span: Span


@frozen
class Refuse:
    span: Span


@frozen
class Moment:
    """A count of steps or epochs, a day, or the name of a date attribute."""

    kind: Literal["step", "epoch", "day", "name"]
    value: Quantity | Day | Name
    span: Span


@frozen
class Timing:
    """`until`, `from` or `before` a moment."""

    word: Literal["until", "from", "before"]
    moment: Moment
    span: Span


@frozen
class During:
    """`during step 10..20`, both ends included."""

    clock: Literal["step", "epoch", "day"]
    lo: Bound
    hi: Bound
    span: Span


@frozen
class InPhase:
    phase: Name
    span: Span


@frozen
class AtMost:
    count: Quantity
    noun: Literal["exposures", "epochs"]
    span: Span


@frozen
class HoldOut:
    """`hold out 1 in 4 tokens`"""

    part: Quantity
    whole: Quantity
    span: Span


@frozen
class Within:
    bands: tuple[Name, ...]
    span: Span


@frozen
class PrivacyNumber:
    term: Literal["epsilon", "delta", "clip"]
    value: Quantity
    span: Span


@frozen
class UnitOf:
    attribute: Name
    span: Span


@frozen
class Noise:
    """`noise at most DEVIATION`"""

    deviation: Quantity
    span: Span


@frozen
class Spent:
    """`spent ACTION`: what happens when a privacy budget is spent."""

    action: Literal["halt", "refuse"]
    span: Span


@frozen
class Scaling:
    band: Name
    signal: Name
    at_low: Quantity
    at_high: Quantity
    span: Span


@frozen
class Scale:
    scalings: tuple[Scaling, ...]
    span: Span


@frozen
class Approved:
    by: Word
    span: Span


@frozen
class Strength:
    value: Quantity
    span: Span


@frozen
class Drift:
    """`drift at most PERCENT%`"""

    percent: Quantity
    span: Span


@frozen
class Rehearse:
    """`rehearse RULE at least PERCENT%`"""

    rule: Name
    percent: Quantity
    span: Span


Clause: TypeAlias = (
    When
    | Because
    | Targets
    | Route
    | Refuse
    | Timing
    | During
    | InPhase
    | AtMost
    | HoldOut
    | Within
    | PrivacyNumber
    | UnitOf
    | Noise
    | Spent
    | Scale
    | Approved
    | Strength
    | Drift
    | Rehearse
)


# --- rules --------------------------------------------------------------------------------------------------


@frozen
class Rule:
    kind: RuleKind
    name: Name
    level: Level | None
    clauses: tuple[Clause, ...]
    span: Span


@frozen
class Claim:
    """What an assertion says. `band` and `bound` are set where the form names them."""

    form: Literal["never_reach", "at_most", "always_refuse", "always_private", "condition"]
    condition: Expr | None
    band: Name | None
    bound: Quantity | None
    span: Span


@frozen
class Assertion:
    name: Name
    level: Level | None
    claim: Claim
    because: Because | None
    span: Span


@frozen
class Starvation:
    """`below`: the mean weight under which a step counts as one that does not reach the band, if any."""

    band: Name
    below: Quantity | None
    steps: Quantity
    action: Literal["report", "halt", "accept"]
    span: Span


@frozen
class GradientCap:
    band: Name
    norm: Quantity
    span: Span


@frozen
class Pace:
    """`BAND at most 1 in 4 steps`: in how many steps of how many the band is moved."""

    band: Name
    moves: Quantity
    steps: Quantity
    span: Span


@frozen
class Recorded:
    """`record 1 in N steps`. part, whole: the two numbers."""

    part: Quantity
    whole: Quantity
    span: Span


@frozen
class Gradient:
    caps: tuple[GradientCap, ...]
    paces: tuple[Pace, ...]
    recorded: tuple[Recorded, ...]
    span: Span


Item: TypeAlias = (
    Header
    | Import
    | MaxWeight
    | Examples
    | Signals
    | Model
    | Phases
    | Let
    | EntropyBand
    | Rule
    | Assertion
    | Starvation
    | Gradient
)


@frozen
class File:
    """One parsed text: its items in textual order.

    complete: False where a part that did not parse may have declared names that other parts use.
    """

    source: Source
    items: tuple[Item, ...]
    complete: bool = True
