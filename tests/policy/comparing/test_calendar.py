"""The calendar of a policy: what its text changes, on which days, proved against the reference evaluator."""

from __future__ import annotations

import datetime
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden.policy import compile_policy
from gradwarden.policy.comparing import calendar as calendar_module
from gradwarden.policy.comparing.bounds import Bounds
from gradwarden.policy.comparing.calendar import Calendar, Turn, calendar_of
from gradwarden.policy.comparing.calendar_words import what_changes, what_it_means
from gradwarden.policy.comparing.changes import effect
from gradwarden.policy.comparing.moments import Clock, comparisons, is_fixed
from gradwarden.policy.comparing.waivers import lapses
from gradwarden.policy.context import EPOCH_DAY, Context
from gradwarden.policy.evaluation.evaluate import holds, read_facts
from gradwarden.policy.evaluation.values import day_text
from gradwarden.policy.load import parse_policy
from gradwarden.policy.paces import unpaced
from gradwarden.policy.program import And, ClockValue, Compare, Constant, Grant, Number, Or, Program, Waiver
from tests.policy.comparing.test_data_calendar import AROUND, dated_programs
from tests.strategies import DAY, conditions, contexts, programs, valid_examples

HEAD = """
policy sample version 1 language 1
examples { minor : bool  source : string  kind : one of a, b  erase : date optional }
model { shallow = top 50%  deep = rest }
depth everything { reach all }
"""


def program_of(rules: str, head: str = HEAD) -> Program:
    return compile_policy(parse_policy(head + rules))


def told(calendar: Calendar, program: Program) -> list[tuple[str, bool, list[str]]]:
    return [
        (
            day_text(turn.at) if calendar.clock == "today" else str(turn.at),
            turn.certain,
            [f"{what_changes(c)} ({what_it_means(c, program.band_names)})" for c in turn.changes],
        )
        for turn in calendar.turns
    ]


def days_of(rules: str, clock: Clock = "today", **options: Any) -> list[tuple[str, bool, list[str]]]:
    program = program_of(rules)
    return told(calendar_of(program, clock, 0, 60_000, **options), program)


# --- what is said of policies -------------------------------------------------------------------------------


def test_an_embargo_a_retention_and_a_waiver_are_listed_with_what_they_do() -> None:
    assert days_of("""
        suppress minors { when minor  because "minors" }
        waive minors { when source == "court"  approved by "A"  until 2027-01-01  because "ruling" }
        retain press { when source == "press"  from 2026-07-01  until 2026-12-01 }
    """) == [
        ("2026-07-01", True, ["embargo of `press` ends (wider: all bands)"]),
        ("2026-12-01", True, ["`press` expires (narrower: all bands)"]),
        ("2027-01-01", True, ["waiver of `minors` lapses: `minors` applies again (narrower: all bands)"]),
    ]


def test_a_pace_is_no_turn_and_hides_none() -> None:
    rules = "curriculum later { before step 101 reach shallow }\n"
    later = [("101", True, ["a stage of `later` ends (wider: deep)"])]
    assert days_of(rules, "step") == later
    assert days_of(rules + "gradient { deep at most 1 in 7 steps }", "step") == later


def test_a_boundary_across_which_nothing_changes_is_not_listed() -> None:
    shadowed = """
        retain early { when source == "press"  until 2026-12-01 }
        retain late { when source == "press"  until 2028-12-01 }
        suppress never { when today >= 2030-01-01 and today < 2029-01-01  because "no day" }
        suppress closed { when kind == b and kind == a and today > 2027-05-05  because "no example" }
        advisory suppress noted { when today >= 2027-06-06  because "advice" }
    """
    assert [day for day, _, _ in days_of(shadowed)] == ["2026-12-01"]


def test_without_a_solver_what_intervals_cannot_exclude_may_change() -> None:
    listed = days_of("""
        retain early { when source == "press"  until 2026-12-01 }
        retain late { when source == "press"  until 2028-12-01 }
        suppress never { when today >= 2030-01-01 and today < 2029-01-01  because "no day" }
    """, use_solver=False)  # fmt: skip
    assert [(day, certain) for day, certain, _ in listed] == [("2026-12-01", False), ("2028-12-01", False)]
    assert listed[0][2] == ["`early` expires ()"]


def test_a_day_is_not_listed_for_what_only_an_examples_own_date_changes() -> None:
    assert not days_of("""
        suppress closed { when kind == b and kind == a and today >= 2027-05-05  because "no example" }
        retain request { when has erase  until erase }
    """)


def test_a_negated_boundary_turns_the_other_way() -> None:
    rule = 'suppress late { when not (today < 2027-05-05 and minor)  because "late" }'
    [(_, _, changes)] = days_of(rule, use_solver=False)
    assert changes == ["suppression `late` begins to apply ()"]


def test_where_z3_is_missing_the_calendar_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calendar_module, "has_solver", lambda: False)
    found = calendar_of(program_of("retain r { until 2026-12-01 }"), "today", 0, 60_000)
    assert (found.method, [turn.certain for turn in found.turns]) == ("intervals", [False])


def test_rules_that_turn_on_one_day_are_told_apart() -> None:
    """The waiver lapses on the day the embargo ends, and matters to no example: another rule refuses them."""
    [(_, _, changes)] = days_of("""
        suppress minors { when minor  because "minors" }
        suppress also { when minor  because "again" }
        waive minors { approved by "A"  until 2026-07-01  because "ruling" }
        retain press { when source == "press"  from 2026-07-01 }
    """)
    assert changes == ["embargo of `press` ends (wider: all bands)"]


def test_two_rules_that_do_the_same_on_one_day_are_both_named() -> None:
    [(_, _, changes)] = days_of("retain a { until 2026-07-01 }  retain b { until 2026-07-01 }")
    assert changes == ["`a` expires (narrower: all bands)", "`b` expires (narrower: all bands)"]


def test_arithmetic_on_dates_moves_a_boundary() -> None:
    rule = 'suppress old {{ when today - 2026-01-01 {}  because "old" }}'
    assert [day for day, *_ in days_of(rule.format("> 2 weeks"))] == ["2026-01-16"]
    assert [day for day, *_ in days_of(rule.format("== 3 days"))] == ["2026-01-04", "2026-01-05"]


def test_a_deferral_that_becomes_a_refusal_is_a_change() -> None:
    [(day, _, changes), *_] = days_of("""
        retain r { when kind == a  from 2030-01-01 }
        retain s { when kind == a  until 2027-01-01 }
    """)
    assert (day, changes) == ("2027-01-01", ["`s` expires (same weights, another verdict or obligation)"])


def test_stages_are_listed_in_steps_and_epochs() -> None:
    head = HEAD.replace("depth everything", "phases { a until step 9  b until epoch 2  c }\ndepth everything")
    program = program_of("curriculum c { in a reach shallow  in b reach all at 0.5 }", head)
    steps, epochs = (told(calendar_of(program, clock, 0, 10_000), program) for clock in ("step", "epoch"))
    assert steps == [("9", True, ["the stage of `c` changes (wider: deep; narrower: shallow)"])]
    assert [(at, certain) for at, certain, _ in epochs] == [("2", True)]


def test_days_of_the_examples_themselves_are_told_as_such() -> None:
    program = program_of("retain r { when has erase  until erase }")
    found = calendar_of(program, "today", 0, 60_000)
    assert (found.turns, [(m.kind, m.name) for m in found.moving]) == ((), [("retain", "r")])


def test_only_the_days_asked_for_are_listed() -> None:
    program = program_of("retain r { from 2026-07-01  until 2026-12-01 }")
    first = (datetime.date(2026, 7, 1) - EPOCH_DAY).days
    assert [t.at for t in calendar_of(program, "today", first, first).turns] == [first]
    assert not calendar_of(program, "today", first + 1, first + 2).turns


# --- held against the evaluator -----------------------------------------------------------------------------

_FIELD = {"today": "at", "step": "step", "epoch": "epoch"}


def at(context: Context, clock: Clock, moment: int) -> Context:
    value = EPOCH_DAY + datetime.timedelta(moment) if clock == "today" else moment
    return replace(context, **{_FIELD[clock]: value})


def check_turns(
    program: Program, clock: Clock, first: int, last: int, example: dict[str, Any], context: Context
) -> None:
    """No decision changes by the text alone but at a turn, and at every turn that is certain one does.

    A pace makes none, so that decisions are those without it.
    """
    turns = {turn.at: turn for turn in calendar_of(program, clock, first, last).turns}
    possible = {turn.at for turn in calendar_of(program, clock, first, last, use_solver=False).turns}
    assert turns.keys() <= possible
    program = unpaced(program)
    moving = [leaf for leaf in comparisons(program, clock) if not is_fixed(leaf, clock)]
    for moment in range(first, last + 1):
        before, after = (at(context, clock, t) for t in (moment - 1, moment))
        facts = [read_facts(program, example, side)[0] for side in (before, after)]
        steady = all(holds(leaf, facts[0]) == holds(leaf, facts[1]) for leaf in moving)
        if steady and effect(program.decide(example, before)) != effect(program.decide(example, after)):
            assert moment in turns
    for turn in turns.values():
        check_witness(program, clock, turn)


def check_witness(program: Program, clock: Clock, turn: Turn) -> None:
    if not turn.certain:
        return
    assert turn.witness is not None
    metadata, context = turn.witness.metadata, turn.witness.context
    assert at(context, clock, turn.at) == context
    before = program.decide(metadata, at(context, clock, turn.at - 1))
    after = program.decide(metadata, context)
    assert effect(before) != effect(after)


_finite = contexts().filter(lambda c: all(v == v and abs(v) < 1e9 for v in c.signals.values()))


@settings(max_examples=12)
@given(dated_programs(), valid_examples(), _finite, st.sampled_from(("today", "today", "step", "epoch")))
def test_decisions_change_by_the_text_at_turns_only(
    program: Program, example: dict[str, Any], context: Context, clock: Clock
) -> None:
    first, last = (DAY - AROUND, DAY + AROUND) if clock == "today" else (1, 12)
    check_turns(program, clock, first, last, example, context)


@pytest.mark.soak
@settings(max_examples=1500)
@given(dated_programs(), valid_examples(), _finite, st.sampled_from(("today", "today", "step", "epoch")))
def test_soak_of_turns(program: Program, example: dict[str, Any], context: Context, clock: Clock) -> None:
    first, last = (DAY - AROUND, DAY + AROUND) if clock == "today" else (1, 12)
    check_turns(program, clock, first, last, example, context)


@pytest.mark.parametrize(
    ("op", "truths"),  # of `today op DAY` from a day before to that day, on it, and from it to a day after
    [
        ("lt", (None, False, False)),
        ("le", (True, True, None)),
        ("gt", (False, False, None)),
        ("ge", (None, True, True)),
        ("eq", (None, True, None)),
        ("ne", (None, False, None)),
    ],
)
def test_intervals_are_exact_at_their_ends(op: Any, truths: tuple[bool | None, ...]) -> None:
    condition = Compare(op, ClockValue("today"), Number(DAY))
    spans = ((DAY - 1, DAY), (DAY, DAY), (DAY, DAY + 1))
    assert tuple(Bounds(WAIVED, {"today": span}).truth(condition) for span in spans) == truths


@given(programs(), conditions, valid_examples(), _finite)
def test_what_intervals_call_certain_is_so(
    program: Program, condition: Any, example: dict[str, Any], context: Context
) -> None:
    program = replace(program, grants=(Grant("g", condition, (0,) * len(program.bands)),))
    day = context.today or 0
    truth = Bounds(program, {"today": (day - 1, day + 1)}).truth(condition)
    facts, problems = read_facts(program, example, context)
    if truth is not None and not problems:
        assert holds(condition, facts) == truth


# --- waivers ------------------------------------------------------------------------------------------------

WAIVED = program_of("""
    suppress minors { when minor  because "minors" }
    waive minors { when kind == a  approved by "A"  until 2027-01-01  because "ruling" }
""")
UNTIL = WAIVED.waivers[0].until
LATE = Compare("lt", ClockValue("today"), Number(UNTIL + 1))
INSIDE = Compare("lt", ClockValue("today"), Number(UNTIL))


def with_condition(when: Any) -> Program:
    return replace(WAIVED, waivers=(Waiver("w", "minors", when, "A", UNTIL),))


def test_a_compiled_waiver_is_proved_by_its_condition() -> None:
    [lapse] = lapses(WAIVED, UNTIL - 30)
    assert (lapse.proof, lapse.days, lapse.holds) == ("intervals", 30, True)


@pytest.mark.parametrize(
    ("when", "with_solver", "without"),
    [
        (LATE, "refuted", "unknown"),
        (Constant(True), "refuted", "unknown"),
        (And((INSIDE, LATE)), "intervals", "intervals"),
        (Or((INSIDE, And((LATE, Compare("gt", ClockValue("today"), Number(UNTIL)))))), "solver", "unknown"),
    ],
)
def test_a_waiver_made_otherwise_needs_the_solver_or_fails(when: Any, with_solver: str, without: str) -> None:
    program = with_condition(when)
    assert [lapses(program, 0, use_solver=use)[0].proof for use in (True, False)] == [with_solver, without]
