"""The decision procedure is sound: what it proves impossible no example and no context ever shows."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden.policy import compile_policy, parse_policy
from gradwarden.policy.evaluation.evaluate import Facts, holds, read_facts
from gradwarden.policy.linting.domain import Domain
from gradwarden.policy.linting.possible import FUEL, always, implies, never, possible, variables
from gradwarden.policy.program import (
    And,
    Arithmetic,
    AttributeSpec,
    AttributeValue,
    ClockValue,
    Compare,
    Condition,
    Constant,
    Flag,
    Grant,
    Has,
    Not,
    Number,
    OneOf,
    Or,
    Program,
    SetTest,
    Text,
)
from tests import strategies as drawn

DOMAIN = Domain(drawn.ATTRIBUTES, drawn.SIGNALS)

SCHEMA = """policy p version 1 language 1
examples {
  kind : one of a, b, c
  level : one of low, high optional
  tags : set of pii, minor, web
  source : string
  note : string optional
  lines : integer 0..1000
  bytes : integer 0..1000
  born : date
  erase : date optional
  consent : bool
}
signals { loss : number 0..10 default 1 }
model { m = rest }
phases { warmup until step 10  main until step 20  last }
"""


def program_with(*conditions: Condition) -> Program:
    """A program that reads every signal and has one grant for each condition."""
    grants = tuple(Grant(f"g{index}", condition, (0,)) for index, condition in enumerate(conditions))
    return Program("p", 1, 1, 1_000_000, drawn.ATTRIBUTES, drawn.SIGNALS, (), grants, (), (), (), ())


def condition_of(text: str) -> tuple[Domain, Condition]:
    program = compile_policy(parse_policy(f"{SCHEMA}depth d {{ when {text}  reach all }}"))
    return Domain(program.attributes, program.signals), program.grants[0].when


SMALL = (
    AttributeSpec("flag", "bool"),
    AttributeSpec("kind", "enum", optional=True, values=("a", "b", "c")),
    AttributeSpec("size", "number", hi=3),
    AttributeSpec("rank", "number", optional=True, lo=1, hi=2),
    AttributeSpec("tags", "set", values=("x", "y")),
    AttributeSpec("text", "string", hi=9),
)
CHOICES = ((False, True), (None, 0, 1, 2), (0, 1, 2, 3), (None, 1, 2), (0, 1, 2, 3), ("", "a", "ab", "b"))
SMALL_DOMAIN = Domain(SMALL, ())
WORLDS = [
    Facts(
        {spec.name: v for spec, v in zip(SMALL, world, strict=True) if v is not None}, {}, 0, 0, 0, 0, set()
    )
    for world in product(*CHOICES)
]
"""Every example of a small schema, but for longer texts."""

_small_numbers = st.one_of(
    st.builds(Number, st.integers(-1, 4)),
    st.sampled_from([AttributeValue("size"), AttributeValue("rank")]),
    st.builds(
        Arithmetic,
        st.sampled_from(("add", "sub", "mul")),
        st.sampled_from([AttributeValue("size"), AttributeValue("rank")]),
        st.sampled_from([AttributeValue("size"), AttributeValue("rank"), Number(2), Number(-1)]),
    ),
)
_codes = st.sets(st.integers(0, 1), min_size=1).map(lambda codes: tuple(sorted(codes)))
_small_tests = st.one_of(
    st.sampled_from([Flag("flag"), Has("kind"), Has("rank"), Constant(True), Constant(False)]),
    st.sets(st.integers(0, 2), min_size=1).map(lambda codes: OneOf("kind", tuple(sorted(codes)))),
    st.builds(SetTest, st.just("tags"), st.sampled_from(("any", "all")), _codes),
    st.builds(Compare, st.sampled_from(drawn.COMPARISONS), _small_numbers, _small_numbers),
    st.builds(
        Text,
        st.just("text"),
        st.sampled_from(("equals", "prefix", "suffix", "contains", "glob")),
        st.sampled_from([("",), ("a",), ("b",), ("a*",), ("a", "ab"), ("?",)]),
    ),
)
small_conditions: st.SearchStrategy[Condition] = st.recursive(
    _small_tests,
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(And, st.lists(inner, min_size=2, max_size=4).map(tuple)),
        st.builds(Or, st.lists(inner, min_size=2, max_size=3).map(tuple)),
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(small_conditions)
def test_what_is_proved_impossible_holds_in_no_world(condition: Condition) -> None:
    if never(SMALL_DOMAIN, condition):
        assert not any(holds(condition, world) for world in WORLDS)
    if always(SMALL_DOMAIN, condition):
        assert all(holds(condition, world) for world in WORLDS)


@settings(max_examples=25, deadline=None)
@given(small_conditions, small_conditions)
def test_an_implication_that_is_proved_holds_in_every_world(first: Condition, second: Condition) -> None:
    for premise, conclusion in ((first, second), (And((first, second)), first), (first, Or((second, first)))):
        if implies(SMALL_DOMAIN, premise, conclusion):
            assert all(holds(conclusion, world) for world in WORLDS if holds(premise, world))


@settings(max_examples=150, deadline=None)
@given(
    st.builds(
        Compare,
        st.sampled_from(drawn.COMPARISONS),
        st.recursive(
            _small_numbers,
            lambda inner: st.builds(
                Arithmetic, st.just("mul"), inner, st.sampled_from([Number(-3), Number(2)])
            ),
        ),
        _small_numbers,
    ),
    st.booleans(),
)
def test_what_a_comparison_says_of_a_form_is_exact(comparison: Compare, negated: bool) -> None:
    form, lo, hi, hole = SMALL_DOMAIN.bound(comparison, negated)
    if any(name.startswith("x:") for name, _ in form):
        return
    for world in WORLDS[::7]:
        value = sum(factor * int(world.values.get(name[2:], 0)) for name, factor in form)
        inside = (lo is None or lo <= value) and (hi is None or value <= hi) and value != hole
        assert inside == (holds(comparison, world) != negated)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(_small_tests, st.booleans()), min_size=2, max_size=4))
def test_tests_that_relate_no_two_attributes_are_decided(goals: list[tuple[Condition, bool]]) -> None:
    """What no world satisfies is found impossible, texts and numbers that may be absent aside."""
    for test, _ in goals:
        if isinstance(test, Text) or (isinstance(test, Compare) and variables([test]) != {"a:size"}):
            return
    satisfied = any(all(holds(test, world) == sign for test, sign in goals) for world in WORLDS)
    assert possible(SMALL_DOMAIN, *goals) is satisfied or "mul" in repr(goals)


@pytest.mark.soak
@pytest.mark.timeout(3_600)
@settings(max_examples=10_000, deadline=None)
@given(small_conditions)
def test_every_world_agrees_in_a_long_campaign(condition: Condition) -> None:
    if possible(SMALL_DOMAIN, (condition, True)) is False:
        assert not any(holds(condition, world) for world in WORLDS)


@pytest.mark.soak
@pytest.mark.timeout(3_600)
@settings(max_examples=500, deadline=None)
@given(
    drawn.conditions, st.lists(st.tuples(drawn.valid_examples(), drawn.contexts()), min_size=5, max_size=5)
)
def test_what_is_proved_impossible_never_happens_in_a_long_campaign(
    condition: Condition, cases: list
) -> None:
    impossible, certain = never(DOMAIN, condition), always(DOMAIN, condition)
    for example, context in cases:
        facts, problems = read_facts(program_with(condition), example, context)
        if not problems:
            assert not (impossible and holds(condition, facts))
            assert not certain or holds(condition, facts)


@pytest.mark.parametrize(
    "text",
    [
        "kind == a and kind == b",
        "kind == a and kind not in [a, b]",
        "not (kind in [a, b, c])",
        "consent and not consent",
        "lines > 10 and lines < 5",
        "lines * 2 > 9 and lines < 5",
        "lines < 10 and lines > 9",
        "lines < 0.5 and lines > 0",
        "lines < bytes and bytes < lines",
        "bytes > 200 * lines and lines > 4",
        "2 * bytes == 2 * lines + 1",
        "lines == 5 and lines != 5",
        "lines in 3..4 and lines != 3 and lines != 4",
        'source == "a" and source == "b"',
        'source == "abc" and not (source starts with "a")',
        'source starts with "a" and source starts with "b"',
        'source ends with "a" and source ends with "b"',
        'source starts with "ab" and not (source starts with "a")',
        'source starts with "x-y" and not (source contains "x")',
        'source in ["a", "b"] and source like "c*"',
        'source like "a*" and not (source like "a*")',
        "tags contains pii and not (tags contains pii)",
        "tags has any [pii, minor] and not (tags contains pii) and not (tags contains minor)",
        "tags contains pii and tags contains minor and not (tags has all [pii, minor])",
        "has level and level == low and not has level",
        'not has note and (has note and note == "x")',
        "has erase and erase > 2030-01-01 and erase < 2029-01-01",
        "step < 10 and phase == main",
        "phase == warmup and phase == last",
        "step == 3 and step == 4",
        "today - born > 30 days and today - born < 1 week",
        "loss > 10",
        "loss < 0.5 and loss > 0.5",
        "exposures < 0",
        "(kind == a or kind == b) and kind == c",
        "(consent or kind == a) and not consent and kind != a",
        "kind == a and (kind == b or (kind == c or lines > 5 and lines < 3))",
    ],
)
def test_contradictions_are_seen(text: str) -> None:
    domain, condition = condition_of(text)
    assert never(domain, condition)
    assert always(domain, Not(condition))


@pytest.mark.parametrize(
    "text",
    [
        "kind == a or lines > 3",
        "lines >= 9 and lines <= 9",
        "lines + bytes > 1999",
        "today - born > 30 days",
        'source starts with "a" and source ends with "a"',
        "tags has any [pii, minor] and not (tags contains pii)",
        "not has level",
        "has level and level != low",
        "step >= 20 and phase == last",
        "erase > 2030-01-01 and erase < 2031-01-01 and consent".replace("erase > ", "has erase and erase > "),
    ],
)
def test_what_can_hold_and_fail_is_left_alone(text: str) -> None:
    domain, condition = condition_of(text)
    assert possible(domain, (condition, True)) is True
    assert possible(domain, (condition, False)) is True


def test_the_day_of_a_check_narrows_what_is_possible() -> None:
    condition = Compare("lt", ClockValue("today"), Number(100))
    assert not never(Domain((), ()), condition)
    assert never(Domain((), (), {"today": (100, 200)}), condition)
    assert not never(Domain((), (), {"today": (99, 200)}), condition)


def test_a_search_that_is_too_long_is_given_up_and_claims_nothing() -> None:
    spec = AttributeSpec("kind", "enum", values=tuple(f"v{i}" for i in range(40)))
    flags = [AttributeSpec(f"f{i}", "bool") for i in range(60)]
    domain = Domain([spec, *flags], ())
    pigeons = And(tuple(Or((OneOf("kind", (i % 40,)), Flag(f"f{i}"))) for i in range(60)))
    assert possible(domain, (pigeons, True)) is None
    many = And(tuple(Flag(f"f{i % 60}") for i in range(FUEL + 1)))
    assert possible(domain, (many, True)) is None
    assert not never(domain, pigeons)
    assert not always(domain, Not(pigeons))


def test_an_absent_value_is_not_taken_for_a_number() -> None:
    spec = AttributeSpec("level", "number", optional=True, lo=2, hi=4)
    domain = Domain([spec], ())
    below = Compare("lt", AttributeValue("level"), Number(2))
    assert possible(domain, (below, True))
    assert never(domain, And((Has("level"), below)))


def test_what_a_condition_reads_is_told_by_kind() -> None:
    condition = And(
        (
            Flag("f"),
            Not(Has("h")),
            Or((Text("t", "glob", ("*",)), Constant(True))),
            Compare("lt", ClockValue("step"), Number(3)),
        )
    )
    assert variables([condition]) == {"a:f", "a:h", "a:t", "c:step"}
