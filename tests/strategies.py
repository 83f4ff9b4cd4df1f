"""Random programs, examples and contexts, for the laws that every evaluator must keep.

Programs are valid as the compiler makes them: names are unique, tuples sorted, numbers stay small enough that
arithmetic cannot overflow. Every rule kind and every form of expression occurs.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from gradwarden.policy.context import Context
from gradwarden.policy.paces import pace
from gradwarden.policy.program import (
    SCALE,
    And,
    Arithmetic,
    Assertion,
    AttributeSpec,
    AttributeValue,
    Band,
    Clause,
    ClockValue,
    Compare,
    Condition,
    Constant,
    Flag,
    Grant,
    Has,
    Limit,
    Modulation,
    Not,
    Number,
    NumericExpr,
    OneOf,
    Or,
    PrivacyTerms,
    Program,
    Scaling,
    SetTest,
    SignalSpec,
    SignalValue,
    Spent,
    Text,
    Waiver,
)

LETTERS = "ab*?é"
WORDS = ("", "a", "ab", "ba", "aab", "bab", "é", "a*b", "restricted")
TODAY = datetime.date(2026, 3, 1)
DAY = (TODAY - datetime.date(1970, 1, 1)).days
COMPARISONS = ("lt", "le", "eq", "ne", "ge", "gt")

ATTRIBUTES = (
    AttributeSpec("age", "number", lo=-3, hi=300),
    AttributeSpec("born", "date", lo=0, hi=30_000),
    AttributeSpec("consent", "bool"),
    AttributeSpec("erase", "date", optional=True, lo=DAY - 5, hi=DAY + 5),
    AttributeSpec("level", "number", optional=True, lo=0, hi=4),
    AttributeSpec("license", "enum", values=("mit", "gpl", "cc0", "unknown", "bsd", "mpl", "isc", "zlib")),
    AttributeSpec("note", "string", optional=True, hi=12),
    AttributeSpec("opted", "bool", optional=True),
    AttributeSpec("region", "enum", optional=True, values=("eu", "us")),
    AttributeSpec("score", "number", lo=0, hi=1_000_000, places=6),
    AttributeSpec("source", "string", hi=12),
    AttributeSpec("tags", "set", values=("pii", "minor", "web")),
    AttributeSpec("topics", "set", optional=True, values=tuple(f"t{i}" for i in range(40))),
)
SPECS = {spec.name: spec for spec in ATTRIBUTES}
SIGNALS = (
    SignalSpec("calm", 5, 5, 1, 5),
    SignalSpec("frustration", 0, 1000, 3, 0),
    SignalSpec("loss_ratio", 0, 10_000_000, 6, 1_000_000),
)
PRIVACY_RULES = ("privacy_0", "privacy_1")

weights = st.sampled_from((0, 1, 250_000, 333_333, 500_000, SCALE))
levels = st.sampled_from(("hard", "hard", "hard", "advisory"))


# --- expressions --------------------------------------------------------------------------------------------

_leaf_numbers: SearchStrategy[NumericExpr] = st.one_of(
    st.builds(Number, st.integers(-5, 310)),
    st.sampled_from([AttributeValue(name) for name in ("age", "level")]),
    st.sampled_from([ClockValue("step"), ClockValue("epoch"), ClockValue("exposures")]),
)
numbers: SearchStrategy[NumericExpr] = st.recursive(
    _leaf_numbers,
    lambda inner: st.builds(Arithmetic, st.sampled_from(("add", "sub", "mul")), inner, inner),
    max_leaves=3,
)
_operators = st.sampled_from(COMPARISONS)


def _compare(
    left: SearchStrategy[NumericExpr], right: SearchStrategy[NumericExpr]
) -> SearchStrategy[Compare]:
    return st.builds(Compare, _operators, left, right)


_days = st.one_of(
    st.sampled_from([AttributeValue("erase"), AttributeValue("born"), ClockValue("today")]),
    st.builds(Number, st.integers(DAY - 6, DAY + 6)),
)
comparisons: SearchStrategy[Compare] = st.one_of(
    _compare(numbers, numbers),
    _compare(_days, _days),
    _compare(
        st.builds(Arithmetic, st.just("sub"), _days, _days), st.builds(Number, st.sampled_from((-3, 0, 3)))
    ),
    _compare(st.just(AttributeValue("score")), st.builds(Number, st.sampled_from((0, 500_000, SCALE)))),
    _compare(st.just(SignalValue("loss_ratio")), st.builds(Number, st.sampled_from((0, 500_000, SCALE)))),
    _compare(st.just(SignalValue("frustration")), st.builds(Number, st.integers(0, 1000))),
)


@st.composite
def _atoms(draw: DrawFn) -> Condition:
    form = draw(st.sampled_from(("has", "flag", "one_of", "set", "text", "compare", "compare", "spent")))
    match form:
        case "has":
            return Has(draw(st.sampled_from([s.name for s in ATTRIBUTES if s.optional])))
        case "flag":
            return Flag(draw(st.sampled_from(("consent", "opted"))))
        case "one_of":
            name = draw(st.sampled_from(("license", "region")))
            codes = draw(st.sets(st.sampled_from(range(len(SPECS[name].values))), min_size=1))
            return OneOf(name, tuple(sorted(codes)))
        case "set":
            name = draw(st.sampled_from(("tags", "topics")))
            members = draw(st.sets(st.sampled_from(range(len(SPECS[name].values))), min_size=1, max_size=3))
            return SetTest(name, draw(st.sampled_from(("any", "all"))), tuple(sorted(members)))
        case "text":
            test = draw(st.sampled_from(("equals", "prefix", "suffix", "contains", "glob")))
            operands = draw(
                st.sets(st.sampled_from(WORDS) | st.text(LETTERS, max_size=4), min_size=1, max_size=2)
            )
            return Text(draw(st.sampled_from(("source", "note"))), test, tuple(sorted(operands)))
        case "spent":
            return Spent(draw(st.sampled_from(PRIVACY_RULES)))
        case _:
            return draw(comparisons)


def _composed(inner: SearchStrategy[Condition]) -> SearchStrategy[Condition]:
    terms = st.lists(inner, min_size=0, max_size=3).map(tuple)
    return st.one_of(st.builds(Not, inner), st.builds(And, terms), st.builds(Or, terms))


conditions: SearchStrategy[Condition] = st.recursive(
    st.one_of(st.just(Constant(True)), _atoms(), _atoms(), _atoms()), _composed, max_leaves=5
)


# --- programs -----------------------------------------------------------------------------------------------


def _caps(count: int, ceiling: int) -> SearchStrategy[tuple[int, ...]]:
    return st.lists(weights | st.just(ceiling), min_size=count, max_size=count).map(tuple)


@st.composite
def limits(draw: DrawFn, name: str, bands: tuple[str, ...], ceiling: int) -> Limit:
    """A limit of any kind, with clauses as the compiler writes them."""
    closed, caps = (0,) * len(bands), _caps(len(bands), ceiling)
    kind = draw(st.sampled_from(("suppress", "retain", "memorization", "curriculum")))
    if name in PRIVACY_RULES:
        kind = "privacy"
    when = draw(conditions)
    match kind:
        case "suppress":
            effect = draw(st.sampled_from(("suppressed", "capped", "quarantined")))
            clauses = [Clause(when, effect, closed if effect == "suppressed" else draw(caps))]
        case "retain":
            clauses = [
                Clause(
                    And((when, Compare("ge", ClockValue("today"), AttributeValue("erase")))),
                    "expired",
                    closed,
                ),
                Clause(
                    And((when, Compare("lt", ClockValue("today"), Number(DAY)))),
                    "embargoed",
                    closed,
                    defers=True,
                ),
                Clause(
                    And((when, Compare("ge", ClockValue("exposures"), Number(2)))), "exposures_spent", closed
                ),
            ][: draw(st.integers(1, 3))]
        case "privacy":
            clauses = [
                Clause(when, "confined", draw(caps)),
                Clause(And((when, Spent(name))), "budget_spent", closed),
            ]
        case "memorization":
            guarded = And((when, draw(comparisons)))
            held = draw(st.sampled_from((0, 0, 2, 4)))
            clauses = [Clause(guarded, "memorized", closed)]
            if held:
                clauses = [Clause(guarded, "held_out", (ceiling,) * len(bands))]
        case _:
            clauses = [Clause(when, "not_open", draw(caps), defers=True)]
    one_in = held if kind == "memorization" else 0
    terms = PrivacyTerms("3", "0.000001", "1", "source", bands[:1]) if kind == "privacy" else None
    return Limit(name, kind, tuple(clauses), draw(levels), privacy=terms, hold_out=one_in)


@st.composite
def modulations(draw: DrawFn, name: str, bands: tuple[str, ...]) -> Modulation:
    scaling = st.builds(
        Scaling,
        st.sampled_from(bands),
        st.sampled_from([spec.name for spec in SIGNALS]),
        weights,
        weights,
    )
    return Modulation(
        name, draw(conditions), tuple(draw(st.lists(scaling, min_size=1, max_size=2))), draw(levels)
    )


@st.composite
def assertions(draw: DrawFn, name: str, bands: tuple[str, ...]) -> Assertion:
    form = draw(st.sampled_from(("never_reach", "at_most", "always_refuse", "always_private", "implies")))
    return Assertion(
        name,
        form,
        draw(conditions),
        band=draw(st.sampled_from(bands)) if form in ("never_reach", "at_most") else "",
        bound=draw(weights) if form == "at_most" else 0,
        then=draw(conditions) if form == "implies" else Constant(True),
        level=draw(levels),
    )


@st.composite
def programs(draw: DrawFn) -> Program:
    """A program over `ATTRIBUTES` and `SIGNALS` with up to three rules of each kind."""
    bands = draw(
        st.sampled_from((("shallow", "deep"), ("shallow", "middle", "deep", "quarantine"), ("all",)))
    )
    ceiling = draw(st.sampled_from((SCALE, 2 * SCALE)))
    grants = [
        Grant(f"depth_{i}", draw(conditions), draw(_caps(len(bands), ceiling)), draw(levels))
        for i in range(draw(st.integers(0, 3)))
    ]
    names = [f"limit_{i}" for i in range(draw(st.integers(0, 3)))]
    names += PRIVACY_RULES[: draw(st.integers(0, 2))]
    # The noise of privacy rules moves the first band, which has no pace.
    turns = draw(st.dictionaries(st.sampled_from(bands[1:]), st.integers(2, 5))) if bands[1:] else {}
    paces = [pace(band, steps, bands, ceiling) for band, steps in turns.items()]
    lifted = [name for name in names if name not in PRIVACY_RULES]
    waivers = [
        Waiver(f"waive:{name}", name, draw(conditions), "Dr. X", DAY)
        for name in lifted
        if draw(st.booleans())
    ]
    return Program(
        name="generated",
        version=1,
        language=1,
        max_weight=ceiling,
        attributes=ATTRIBUTES,
        signals=SIGNALS,
        bands=tuple(Band(band, ()) for band in bands),
        grants=tuple(grants),
        limits=tuple(
            sorted([*paces, *(draw(limits(name, bands, ceiling)) for name in names)], key=lambda x: x.name)
        ),
        modulations=tuple(draw(modulations(f"scale_{i}", bands)) for i in range(draw(st.integers(0, 2)))),
        waivers=tuple(waivers),
        assertions=tuple(draw(assertions(f"claim_{i}", bands)) for i in range(draw(st.integers(0, 2)))),
    )


# --- examples -----------------------------------------------------------------------------------------------

_valid: Mapping[str, SearchStrategy[Any]] = {
    "age": st.integers(-3, 300)
    | st.floats(-3, 300)
    | st.sampled_from((np.int16(7), np.float32(2.5), 0.5, 1.5)),
    "born": st.dates(datetime.date(1970, 1, 1), TODAY),
    "consent": st.booleans() | st.just(np.True_),
    "erase": st.integers(-5, 5).map(lambda d: TODAY + datetime.timedelta(d)) | st.just(TODAY.isoformat()),
    "level": st.integers(0, 4),
    "license": st.sampled_from(SPECS["license"].values),
    "note": st.sampled_from(WORDS),
    "opted": st.booleans(),
    "region": st.sampled_from(SPECS["region"].values),
    "score": st.floats(0, 1) | st.just(Decimal("0.5000005")) | st.sampled_from((0, 1)),
    "source": st.sampled_from(WORDS) | st.text(LETTERS, max_size=6),
    "tags": st.lists(st.sampled_from(SPECS["tags"].values))
    | st.frozensets(st.sampled_from(SPECS["tags"].values)),
    "topics": st.lists(st.sampled_from(SPECS["topics"].values), max_size=3),
}
_broken: SearchStrategy[Any] = st.sampled_from(
    (
        None,
        True,
        -4,
        301,
        10**400,
        1.5,
        1e308,
        float("nan"),
        float("inf"),
        np.float64("nan"),
        np.datetime64("NaT"),
        np.datetime64("2026-03-01"),
        np.datetime64("2026-03-01T00:00"),
        Decimal("1e999999"),
        Decimal("NaN"),
        "2026-02-30",
        "nonsense",
        "x" * 13,
        b"mit",
        datetime.datetime(2026, 3, 1),
        datetime.date(2200, 1, 1),
        ["pii", "nope"],
        ["nope", 3],
        [None],
        (),
        {},
        object(),
    )
)


@st.composite
def valid_examples(draw: DrawFn) -> dict[str, Any]:
    """Metadata that fit the schema; optional attributes are absent, None or present."""
    example: dict[str, Any] = {}
    for spec in ATTRIBUTES:
        presence = draw(st.sampled_from(("there", "there", "none", "absent"))) if spec.optional else "there"
        if presence != "absent":
            example[spec.name] = None if presence == "none" else draw(_valid[spec.name])
    return example


@st.composite
def broken_examples(draw: DrawFn) -> dict[str, Any]:
    """Metadata in which up to three attributes are replaced, dropped or undeclared; some may still fit."""
    example = draw(valid_examples())
    for name in draw(st.sets(st.sampled_from([*SPECS, "licence", "zzz"]), min_size=1, max_size=3)):
        if draw(st.booleans()) or name not in SPECS:
            example[name] = draw(_broken)
        else:
            example.pop(name, None)
    return example


examples: SearchStrategy[dict[str, Any]] = st.one_of(valid_examples(), valid_examples(), broken_examples())

signal_values: SearchStrategy[float] = st.one_of(
    st.floats(-1, 11),
    st.integers(-1, 12),
    st.sampled_from((float("nan"), float("inf"), 1e308, 0.0005, 0.0015)),
)


@st.composite
def contexts(draw: DrawFn) -> Context:
    """A context for one example."""
    names = draw(st.sets(st.sampled_from([*(spec.name for spec in SIGNALS), "undeclared"])))
    return Context(
        step=draw(st.integers(0, 320)),
        epoch=draw(st.integers(0, 4)),
        at=TODAY + datetime.timedelta(draw(st.integers(-6, 6))),
        exposures=draw(st.integers(0, 4)),
        signals={name: draw(signal_values) for name in sorted(names)},
        spent=frozenset(draw(st.sets(st.sampled_from(PRIVACY_RULES)))),
    )


@st.composite
def row_contexts(draw: DrawFn, count: int) -> tuple[Context, Callable[[int], Context]]:
    """A context for `count` examples, and a function from a row to the context of that example alone."""
    base = draw(contexts())
    exposures: Any = base.exposures
    if draw(st.booleans()):
        exposures = np.array(draw(st.lists(st.integers(0, 4), min_size=count, max_size=count)), np.int32)
    signals: dict[str, Any] = dict(base.signals)
    for name in sorted(signals):
        if draw(st.booleans()):
            rows = draw(st.lists(signal_values, min_size=count, max_size=count))
            signals[name] = draw(st.sampled_from((rows, np.array(rows, np.float64))))
    whole = Context(base.step, base.epoch, base.at, exposures, signals, base.spent)

    def of_row(row: int) -> Context:
        own = {name: v[row] if isinstance(v, list | np.ndarray) else v for name, v in signals.items()}
        count_of_row = int(exposures[row]) if isinstance(exposures, np.ndarray) else exposures
        return Context(base.step, base.epoch, base.at, count_of_row, own, base.spent)

    return whole, of_row
