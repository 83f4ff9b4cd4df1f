"""The compiled program: plain data that the runtime, the verifier and the prover execute.

A program is a set of *conditions* (two-valued, total expressions over an example's encoded metadata and the
context) and a set of *rules* that say what a true condition does to the weight of each band. All numbers
are integers: attribute values scaled by 10**places, dates as days since 1970-01-01, weights and factors in
millionths (`SCALE`), so that every evaluator agrees exactly. Rules are sorted by name, so that neither the
order of rules nor the order of files changes a program's digest.

`conditions()` fixes the order in which truth values are listed everywhere (classes, ledger, replay).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from gradwarden.policy.frozen import frozen

if TYPE_CHECKING:
    from gradwarden.policy.context import Context
    from gradwarden.policy.decision import Decision

SCALE = 1_000_000
"""One whole weight or modulation factor."""

MAX_CEILING = 4 * SCALE
"""The greatest weight that `max weight` may allow."""

FORMAT = "gradwarden/program/1"

ValueType = Literal["bool", "number", "enum", "set", "date", "string"]
ClockName = Literal["step", "epoch", "today", "exposures"]
CompareOp = Literal["lt", "le", "eq", "ne", "ge", "gt"]
TextTest = Literal["equals", "prefix", "suffix", "contains", "glob"]
Level = Literal["hard", "advisory"]
Semantics = Literal["mask", "detach"]
"""What a weight of zero for a band stops: that the band's parameters learn from the example, or also the flow
of the example's gradient through the band's layers."""


# --- numeric expressions (int64; the checker has excluded overflow) ---------------------------------------


@frozen
class Number:
    """A constant, already scaled."""

    value: int


@frozen
class AttributeValue:
    """The encoded value of a number or date attribute; 0 where absent (never observed: `has` dominates)."""

    name: str


@frozen
class SignalValue:
    """The encoded, clamped value of a declared signal."""

    name: str


@frozen
class ClockValue:
    """A context value: step, epoch, today (days since 1970-01-01) or this example's exposures so far."""

    name: ClockName


@frozen
class Arithmetic:
    """A sum, difference or product of two numeric expressions."""

    op: Literal["add", "sub", "mul"]
    left: NumericExpr
    right: NumericExpr


NumericExpr: TypeAlias = Number | AttributeValue | SignalValue | ClockValue | Arithmetic


# --- conditions ---------------------------------------------------------------------------------------------


@frozen
class Constant:
    value: bool


@frozen
class Not:
    term: Condition


@frozen
class And:
    """True where every term is; an empty conjunction is true."""

    terms: tuple[Condition, ...]


@frozen
class Or:
    """True where some term is; an empty disjunction is false."""

    terms: tuple[Condition, ...]


@frozen
class Has:
    """True where an optional attribute is present."""

    attribute: str


@frozen
class Flag:
    """The value of a bool attribute; false where absent."""

    attribute: str


@frozen
class OneOf:
    """True where an enum attribute is present and its code is one of `codes` (sorted)."""

    attribute: str
    codes: tuple[int, ...]


@frozen
class SetTest:
    """True where a set attribute has any (or all) of the members `codes`; an absent set is empty."""

    attribute: str
    test: Literal["any", "all"]
    codes: tuple[int, ...]


@frozen
class Text:
    """True where a string attribute is present and passes a test against any of `operands` (sorted).

    `glob` knows `*` (any run of characters) and `?` (one character), case-sensitive, nothing else.
    """

    attribute: str
    test: TextTest
    operands: tuple[str, ...]


@frozen
class Compare:
    op: CompareOp
    left: NumericExpr
    right: NumericExpr


@frozen
class Spent:
    """True where the context says that the budget of the named privacy rule is spent."""

    rule: str


@frozen
class Every:
    """True in the steps whose number is a multiple of `steps`, step 0 among them. Only paces test for it."""

    steps: int


Condition: TypeAlias = (
    Constant | Not | And | Or | Has | Flag | OneOf | SetTest | Text | Compare | Spent | Every
)


# --- declarations -------------------------------------------------------------------------------------------


@frozen
class AttributeSpec:
    """What an example's metadata may hold under one name.

    number: integers lo..hi after scaling by 10**places. enum, set: `values` in declaration order (the code is
    the index; a set is a bit mask, at most 63 values). date: days since 1970-01-01 in lo..hi. string: at most
    `hi` characters. bool: no further fields.
    """

    name: str
    type: ValueType
    optional: bool = False
    lo: int = 0
    hi: int = 0
    places: int = 0
    values: tuple[str, ...] = ()
    unit: str = ""


@frozen
class SignalSpec:
    """A bounded run-time signal. All ints are scaled by 10**places; values are clamped to lo..hi."""

    name: str
    lo: int
    hi: int
    places: int
    default: int


@frozen
class Selector:
    """One way of choosing parameters for a band.

    top, next: `amount` millionths of the depth, counted from the output. rest: all that remains.
    blocks: block indices lo..hi inclusive, 0 nearest the input. names: glob patterns over parameter names.
    """

    kind: Literal["top", "next", "rest", "blocks", "names"]
    amount: int = 0
    lo: int = 0
    hi: int = 0
    patterns: tuple[str, ...] = ()


@frozen
class Band:
    """A named part of the model, in order from shallow (nearest the output) to deep.

    `parameters` is empty in a program that was compiled without a model map.
    """

    name: str
    selectors: tuple[Selector, ...]
    parameters: tuple[str, ...] = ()


# --- rules --------------------------------------------------------------------------------------------------


@frozen
class Grant:
    """A `depth` rule: where `when` holds, each band may be learned at up to `weights[band]`."""

    name: str
    when: Condition
    weights: tuple[int, ...]
    level: Level = "hard"
    because: str = ""


LimitKind = Literal["suppress", "retain", "privacy", "memorization", "curriculum", "pace"]

Effect = Literal[
    "suppressed",  # suppress: nothing may be learned
    "capped",  # suppress, memorization: named bands are capped
    "quarantined",  # suppress, memorization: all bands but `quarantine` are closed
    "expired",  # retain: `until` has passed
    "embargoed",  # retain: `from` has not come (defers)
    "exposures_spent",  # retain, memorization: at most N exposures
    "epochs_spent",  # retain: at most N epochs
    "confined",  # privacy: bands outside `within` are closed
    "budget_spent",  # privacy: the rule's budget is spent
    "memorized",  # memorization: nothing more may be learned
    "held_out",  # memorization: some tokens are not learned from; caps nothing
    "not_open",  # curriculum: the stage has not opened these bands (defers)
    "paced",  # pace: it is not this step's turn to move the band (defers)
]


@frozen
class Clause:
    """One effect of a limit: where `when` holds, the weight of each band is at most `caps[band]`.

    `defers` marks limits that time lifts: an example stopped by these alone is deferred, not refused.
    """

    when: Condition
    effect: Effect
    caps: tuple[int, ...]
    defers: bool = False


@frozen
class PrivacyTerms:
    """What a privacy rule demands. Decimals are canonical strings (`3`, `0.000001`)."""

    epsilon: str
    delta: str
    clip: str
    unit: str
    """The string attribute that names the privacy unit; empty: each example is its own unit."""
    bands: tuple[str, ...]
    noise: str = ""
    """The greatest standard deviation of the noise on a sum of clipped gradients; empty: any."""
    spent: Literal["halt", "refuse"] = "refuse"
    """Whether the run halts when the budget is spent, or goes on without the rule's examples."""


@frozen
class Limit:
    """A rule that can only lower weights: the least cap per band wins.

    hold_out: of how many tokens one is held out, 0 where the rule holds out none.
    """

    name: str
    kind: LimitKind
    clauses: tuple[Clause, ...]
    level: Level = "hard"
    because: str = ""
    privacy: PrivacyTerms | None = None
    hold_out: int = 0


@frozen
class Scaling:
    """A factor for one band, linear in a signal: `at_low` at its lo, `at_high` at its hi.

    Both ends are millionths, at most SCALE.

    factor = at_low + ((at_high - at_low) * (signal - lo)) // (hi - lo), floor division.
    """

    band: str
    signal: str
    at_low: int
    at_high: int


@frozen
class Modulation:
    """A `modulate` rule: where `when` holds, bands are scaled; the least factor per band wins."""

    name: str
    when: Condition
    scalings: tuple[Scaling, ...]
    level: Level = "hard"
    because: str = ""


@frozen
class Waiver:
    """Lifts a limit for the examples where `when` holds. `when` includes the lapse date."""

    name: str
    rule: str
    when: Condition
    approved_by: str
    until: int
    because: str = ""


@frozen
class Assertion:
    """What must hold of every decision; one that fails refuses the example (fail closed).

    never_reach: where `when` holds, the weight of `band` is 0. at_most: it is at most `bound`.
    always_refuse: all weights are 0. always_private: all are 0 or a hard privacy rule matched.
    implies: wherever `when` holds, `then` holds.
    """

    name: str
    form: Literal["never_reach", "at_most", "always_refuse", "always_private", "implies"]
    when: Condition
    band: str = ""
    bound: int = 0
    then: Condition = Constant(True)
    level: Level = "hard"
    because: str = ""


@frozen
class Starvation:
    """What to do when no example reaches a band for `steps` committed steps.

    below: a step in which the mean weight of its examples in the band is less, in millionths, counts as one
    in which none does.
    """

    band: str
    steps: int
    action: Literal["report", "halt", "accept"]
    below: int = 0


@frozen
class GradientCap:
    """The greatest L2 norm of a band's gradient (a canonical decimal string); greater is scaled down."""

    band: str
    norm: str


@frozen
class Rehearsal:
    """What a step that reaches a band must bring of what the band is to keep.

    In every such step the examples that the grant `rule` matches have at least `share` millionths of the
    weight that all examples of the step have in the band.
    """

    rule: str
    share: int


@frozen
class Maintenance:
    """A `maintain` rule: from step `start` on, bands are held near what they were when it came into force.

    strength: of the pull, L2-SP (Li, Grandvalet & Davoine 2018), which adds strength * (p - anchor) to the
    gradient of every parameter p that a step reaches; a canonical decimal string, None for no pull.
    drift: the greatest ||p - anchor|| / ||anchor|| of each band, in millionths; None for no bound.
    """

    name: str
    bands: tuple[str, ...]
    strength: str | None
    drift: int | None
    start: int = 0
    level: Level = "hard"
    because: str = ""
    rehearsal: Rehearsal | None = None


@dataclass(frozen=True)
class Program:
    """A policy in the form that is executed. Tuples of rules are sorted by name; names are unique over all.

    The methods that encode and decide live in the modules named at each; they are imported on use, because
    those modules import this one.
    """

    name: str
    version: int
    language: int
    max_weight: int
    attributes: tuple[AttributeSpec, ...]
    signals: tuple[SignalSpec, ...]
    bands: tuple[Band, ...]
    grants: tuple[Grant, ...]
    limits: tuple[Limit, ...]
    modulations: tuple[Modulation, ...]
    waivers: tuple[Waiver, ...]
    assertions: tuple[Assertion, ...]
    starvation: tuple[Starvation, ...] = ()
    gradient_caps: tuple[GradientCap, ...] = ()
    maintained: tuple[Maintenance, ...] = ()
    recorded: int = 0
    """One step in so many records what each example added to each band's gradient; 0: none does."""
    semantics: Semantics = "mask"
    model_map: str = ""
    """SHA-256 (hex) of the model map that the bands were bound with; empty where unbound."""

    @cached_property
    def band_names(self) -> tuple[str, ...]:
        return tuple(band.name for band in self.bands)

    @cached_property
    def pulled_bands(self) -> frozenset[str]:
        """The bands to whose gradient a `maintain` rule may add a pull."""
        return frozenset(band for rule in self.maintained if rule.strength for band in rule.bands)

    def conditions(self) -> Iterator[Condition]:
        """Yield every condition in canonical order: grants, clauses, modulations, waivers, assertions.

        An `implies` assertion yields two: `when`, then `then`.
        """
        for grant in self.grants:
            yield grant.when
        for limit in self.limits:
            for clause in limit.clauses:
                yield clause.when
        for modulation in self.modulations:
            yield modulation.when
        for waiver in self.waivers:
            yield waiver.when
        for assertion in self.assertions:
            yield assertion.when
            if assertion.form == "implies":
                yield assertion.then

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON form (`program_json`)."""
        from gradwarden.policy.program_json import program_digest

        return program_digest(self)

    def unbound(self) -> Program:
        """Return the program as it was before a model map was bound to it."""
        bands = tuple(replace(band, parameters=()) for band in self.bands)
        return replace(self, bands=bands, model_map="")

    def to_json(self) -> str:
        """Return the canonical JSON form (RFC 8785)."""
        from gradwarden.policy.program_json import program_to_json

        return program_to_json(self)

    def decide(self, metadata: Mapping[str, object], context: Context) -> Decision:
        """Return the decision for one example (`evaluate`)."""
        from gradwarden.policy.evaluation.evaluate import decide

        return decide(self, metadata, context)

    def decide_columns(self, columns: Mapping[str, Any], context: Context) -> Any:
        """Return decisions for columns of examples (`batch`)."""
        from gradwarden.policy.evaluation.batch import decide_columns

        return decide_columns(self, columns, context)
