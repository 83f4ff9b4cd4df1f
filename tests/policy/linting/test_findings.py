"""Findings are true: what they say of a rule holds for every example and context that is tried."""

from __future__ import annotations

import datetime
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from gradwarden.policy import Context, PolicyError, parse_policy
from gradwarden.policy.evaluation.evaluate import decide, truth_of
from gradwarden.policy.linting.logic import lint_conditions
from gradwarden.policy.linting.overlaps import lint_overlaps
from gradwarden.policy.linting.possible import FUEL
from gradwarden.policy.linting.subject import MAX_TESTS, Report, Subject
from gradwarden.policy.program import AttributeSpec, Program
from tests.policy.strategies_text import conditions, declarations, text_of

HEAD = """policy p version 1 language 1
examples {
  kind : one of a, b, c
  consent : bool
  lines : integer 0..1000
  source : string
  who : string
  entropy : number 0..8
  note : string optional
}
signals { loss : number 0..10 default 1 }
model { shallow = top 25%  deep = rest }
"""
USES = """depth base {
  when kind == c and consent and lines > 2 and entropy > 1 and source != "x" and who != "" and has note
  reach all
}
modulate settle { scale shallow by loss from 1 to 0.5 }
"""


def codes(text: str) -> list[str]:
    """The findings of rules that are added to a policy without any."""
    return [warning.code for warning in parse_policy(HEAD + USES + text).warnings]


@pytest.mark.parametrize(
    ("guard", "found"),
    [
        ("below 0.6 after 5 steps halt", ["GW550"]),
        ("below 0.5 after 5 steps halt", []),  # where all examples have the greatest weight, it is fed
        ("below 0.6 after 5 steps accept", []),
        ("after 5 steps halt", []),
    ],
)
def test_a_guard_that_asks_for_more_than_is_granted_is_told(guard: str, found: list[str]) -> None:
    halved = USES.replace("reach all", "reach shallow, deep at 0.5")
    text = f"{HEAD}{halved}advisory depth more {{ reach all }}\nstarvation deep {{ {guard} }}\n"
    assert [warning.code for warning in parse_policy(text).warnings] == found
    private = 'privacy p { when who == "x"  within deep  epsilon 3  delta 1e-6  clip 1  unit who }\n'
    assert "GW550" not in [warning.code for warning in parse_policy(text + private).warnings]


# --- findings are true --------------------------------------------------------------------------------------


def _value(draw: DrawFn, spec: AttributeSpec) -> Any:
    match spec.type:
        case "bool":
            return draw(st.booleans())
        case "enum":
            return draw(st.sampled_from(spec.values))
        case "set":
            return draw(st.lists(st.sampled_from(spec.values), unique=True))
        case "string":
            return draw(st.sampled_from(["", "a", "b # not a comment", "x", "y", "s1", "p"]))
        case "date":
            return draw(st.sampled_from([datetime.date(2026, 1, 1), datetime.date(2026, 7, 1)]))
        case _:
            scale = 10**spec.places
            ends = (spec.lo, spec.hi, 0, 3 * scale, 5 * scale, scale // 2)
            return draw(st.sampled_from([end / scale for end in ends if spec.lo <= end <= spec.hi]))


@st.composite
def situations(draw: DrawFn, program: Program) -> tuple[dict[str, Any], Context]:
    example = {
        spec.name: _value(draw, spec)
        for spec in program.attributes
        if not spec.optional or draw(st.booleans())
    }
    context = Context(
        step=draw(st.sampled_from([0, 4, 9, 10, 99, 100])),
        epoch=draw(st.integers(0, 3)),
        at=datetime.date(2026, 3, 1) + datetime.timedelta(draw(st.integers(-400, 400))),
        exposures=draw(st.integers(0, 4)),
        signals={spec.name: draw(st.sampled_from([0, 0.25, 0.75, 1, 9])) for spec in program.signals},
    )
    return example, context


@st.composite
def overlapping(draw: DrawFn) -> str:
    """A policy some of whose rules are likely to cover or to contradict each other."""
    first, second = draw(conditions()), draw(conditions())
    parts = [
        f"depth one {{ when {first}  reach shallow, deep at 0.5 }}",
        f"depth two {{ when ({first}) and ({second})  reach shallow at 0.5 }}",
        f'suppress three {{ when ({first}) or ({second})  cap deep at 0  because "x" }}',
        f"suppress four {{ when {second}  cap deep at 0.25 }}",
        f'suppress five {{ when ({first}) and not ({first})  because "x" }}',
        f'suppress six {{ when ({second}) or not ({second})  cap shallow at 0.75  because "x" }}',
        f"assert seven {{ at most 0.5 in deep when {first} }}",
        f"assert eight {{ at most 0.75 in deep when ({second}) and ({first}) }}",
    ]
    return text_of([*draw(declarations()), *draw(st.lists(st.sampled_from(parts), unique=True, min_size=3))])


def _without(program: Program, name: str) -> Program:
    return replace(
        program,
        grants=tuple(rule for rule in program.grants if rule.name != name),
        limits=tuple(rule for rule in program.limits if rule.name != name),
        assertions=tuple(rule for rule in program.assertions if rule.name != name),
    )


def check_that_findings_are_true(text: str, data: st.DataObject, tries: int) -> None:
    try:
        policy = parse_policy(text)
    except PolicyError:
        return
    program = policy.program
    names = {span.start: name for name, span in policy.rules.items()}
    found = [w for w in policy.warnings if w.code in ("GW510", "GW513", "GW515", "GW516", "GW541")]
    idle = [name for w in found if w.code in ("GW515", "GW516") and (name := names.get(w.span.start))]
    dead = {w.message.split("`")[1] for w in found if w.code == "GW510" and w.message.endswith("never match")}
    for _ in range(tries if found else 0):
        example, context = data.draw(situations(program))
        decision = decide(program, example, context)
        for name in idle:
            other = decide(_without(program, name), example, context)
            assert (other.verdict, other.micro) == (decision.verdict, decision.micro), name
        truth = dict(zip(_owners(program), truth_of(program, example, context), strict=False))
        assert not any(truth.get(name) for name in dead)


def _owners(program: Program) -> list[str]:
    owners = [grant.name for grant in program.grants]
    owners += [limit.name for limit in program.limits for _ in limit.clauses]
    return [*owners, *(modulation.name for modulation in program.modulations)]


@settings(max_examples=25, deadline=None)
@given(overlapping(), st.data())
def test_rules_that_are_said_to_do_nothing_do_nothing(text: str, data: st.DataObject) -> None:
    check_that_findings_are_true(text, data, tries=4)


@pytest.mark.soak
@pytest.mark.timeout(3_600)
@settings(max_examples=1_000, deadline=None)
@given(overlapping(), st.data())
def test_rules_that_are_said_to_do_nothing_do_nothing_in_a_long_campaign(
    text: str, data: st.DataObject
) -> None:
    check_that_findings_are_true(text, data, tries=10)


# --- what is found, and what is not -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        # shadows
        (
            "depth x { when kind == a  reach all }\n"
            "depth y { when kind == a and consent  reach deep }",
            ["GW515"],
        ),
        ("depth x { when kind == a  reach shallow }\ndepth y { when kind == a and consent  reach deep }", []),
        ("depth x { when kind == a and consent  reach all }\ndepth y { when kind == a  reach deep }", []),
        ("depth x { when kind in [a, b]  reach all }\ndepth y { when kind == b  reach shallow }", ["GW515"]),
        (
            "advisory depth x { when kind == a  reach all }\n"
            "depth y { when kind == a and consent  reach deep }",
            [],
        ),
        (
            'suppress x { when kind == a  because "r" }\n'
            'suppress y { when kind == a and consent  because "r" }',
            ["GW515"],
        ),
        (
            'suppress x { when kind == a  because "r" }\n'
            'suppress y { when kind == a and consent  because "s" }',
            [],
        ),
        (
            'suppress x { when kind == a  because "r" }\n'
            'suppress y { when kind == a and consent  because "r" }\n'
            'waive x { approved by "A"  until 2027-01-01  because "z" }',
            [],
        ),
        (
            'suppress x { when lines > 5  cap deep at 0.5  because "r" }\n'
            'suppress y { when lines > 9  cap deep at 0.25  because "r" }',
            [],
        ),
        (
            'suppress x { when lines > 5  cap deep at 0.25  because "r" }\n'
            'suppress y { when lines > 9  cap deep at 0.5  because "r" }',
            ["GW515"],
        ),
        (
            "assert x { never reach deep when kind == b }\n"
            "advisory assert y { at most 0.5 in deep when kind == b and consent }",
            ["GW515"],
        ),
        (
            "assert x { always refuse when kind == b }\n"
            "assert y { never reach deep when kind == b }",
            ["GW515"],
        ),
        (
            "advisory assert x { always refuse when kind == b }\n"
            "assert y { never reach deep when kind == b }",
            [],
        ),
        # repetitions
        ("depth x { when kind == b  reach all }\ndepth y { when kind == b  reach all }", ["GW516"]),
        ("depth x { when kind == b  reach all }\nadvisory depth y { when kind == b  reach all }", []),
        (
            "retain x { when kind == b  at most 2 epochs }\n"
            "retain y { when kind == b  at most 3 epochs }",
            ["GW515"],
        ),
        # parts of conditions
        ("depth x { when kind == b and not consent and consent  reach all }", ["GW510"]),
        ("depth x { when has note and note == \"x\"  reach deep }", []),
        ("depth x { when kind == b and (not has note or note == \"x\")  reach deep }", []),
        ("depth x { when kind in [a, b, c] and consent  reach deep }", ["GW514"]),
        ('suppress x { when source starts with "ab" and source starts with "a"  because "r" }', ["GW514"]),
        ('suppress x { when source == "ab" or source starts with "a"  because "r" }', ["GW514"]),
        (
            "let law = kind in [a, b]\n"
            "suppress x { when law and kind == a  cap deep at 0  because \"r\" }",
            ["GW514"],
        ),
        ("let law = kind in [a, b] and consent\ndepth x { when law and kind == a  reach deep at 0.5 }", []),
        (
            "let never = kind == a and kind == b\n"
            "suppress x { when never or consent  because \"r\" }",
            ["GW510"],
        ),
        # curricula
        ("curriculum c { before step 5 reach shallow  from step 5 reach all }", []),
        ("curriculum c { before step 5 reach shallow  from step 6 reach all }", ["GW535"]),
        ("curriculum c { during step 0..4 reach shallow  during step 5..9 reach all }", []),
        ("curriculum c { during epoch 0..0 reach shallow  during epoch 2..2 reach all }", ["GW535"]),
        ("curriculum c { before step 5 reach shallow  from epoch 1 reach all }", []),
        ("curriculum c { from step 8 before step 9 reach shallow  before step 10 reach all }", []),
        ("curriculum c { from step 9 before step 5 reach shallow }", ["GW510"]),
        (
            "phases { one until step 5  two until step 9  three }\n"
            "curriculum c { in one reach shallow  in three reach all }",
            ["GW535"],
        ),
        (
            "phases { one until step 5  two until epoch 9  three }\n"
            "curriculum c { in one reach shallow  in three reach all }",
            [],
        ),
        # privacy; `settle` goes by `loss`, a signal of the loop's (GW549)
        (
            "privacy p { when kind == b  within shallow  epsilon 3  delta 1e-6  clip 1  unit who }\n"
            "retain r { when kind == b  at most 3 exposures }",
            ["GW525", "GW549"],
        ),
        (
            "signals { copies : integer 0..100 default 0 }\n"
            "privacy p { when kind == b  within shallow  epsilon 3  delta 1e-6  clip 1  unit who }\n"
            'suppress r { when kind == a and copies > 3  because "r" }',
            ["GW525", "GW549"],
        ),
        (
            "privacy p { when kind == b  within shallow  epsilon 3  delta 1e-6  clip 1  unit who }\n"
            "retain r { when kind == a  at most 3 exposures }",
            ["GW549"],
        ),
        (
            "privacy p { when kind == b  within shallow  epsilon 3  delta 1e-6  clip 1  unit who }\n"
            'suppress r { when exposures > 3  cap deep at 0  because "it is closed to p anyway" }',
            ["GW549"],
        ),
        (
            "privacy p { when kind == b  within shallow  epsilon 3  delta 1e-6  clip 1  unit who }\n"
            "advisory retain r { when kind == b  at most 3 exposures }",
            ["GW549"],
        ),
        (
            "privacy p { when kind == b  within shallow  epsilon 10  delta 0.001  clip 1  unit who }",
            ["GW549"],
        ),
        (
            "privacy p { when kind == b  within shallow  epsilon 10.1  delta 0.0011  clip 1  unit who }",
            ["GW526", "GW527", "GW549"],
        ),
        # effects
        ("memorization m { when loss < 1 refuse }", []),
        ("memorization m { when loss < 1.1 refuse }", ["GW545"]),
        ("memorization m { when loss < 1.1 and exposures > 0 refuse }", []),
        ("memorization m { when loss < 1.1 cap deep at 0 }", []),
        ("memorization m { when loss < 0.5  at most 3 exposures }", []),
        ("memorization m { when true  hold out 1 in 4 tokens }", ["GW513"]),
        (
            "memorization m { when kind in [a, b]  hold out 1 in 8 tokens }\n"
            "memorization n { when kind == a  hold out 1 in 4 tokens }",
            [],
        ),
        (
            "memorization m { when kind in [a, b]  hold out 1 in 2 tokens }\n"
            "memorization n { when kind == a  hold out 1 in 4 tokens }",
            ["GW515"],
        ),
        ("modulate m { scale deep by loss from 1 to 1, shallow by loss from 1 to 0.5 }", []),
        ("assert a { at most 1 in deep when consent }", ["GW541"]),
        ("assert a { consent implies kind == a or kind != a }", ["GW541"]),
        ("assert a { consent and kind == a implies consent }", []),
        ("suppress s { because \"all\" }", ["GW547"]),
        ("advisory suppress s { because \"all\" }", []),
        ("suppress s { cap deep at 1  because \"r\" }", ["GW533"]),
        ("suppress s { cap deep at 0.999999  because \"r\" }", []),
        # declarations
        ("maintain m { within deep  strength 1 }", []),
        (
            "band low = entropy < 3\n"
            "band high = entropy > 3\ndepth x { when low or high  reach deep }",
            ["GW542"],
        ),
        ("band low = entropy < 3\nband high = entropy > 3.1\ndepth x { when low or high  reach deep }", []),
        ("max weight 2", ["GW531"]),
        ("max weight 2\ndepth x { when kind == b  reach deep at 2 }", []),
        ("phases { one until step 5  two }\ndepth x { when phase == two and kind == b  reach deep }", []),
    ],
)  # fmt: skip
def test_findings_of_rules(rules: str, expected: list[str]) -> None:
    assert sorted(codes(rules)) == expected


PRIVATE = "privacy p { when kind == b  within shallow  epsilon 3  delta 1e-6  clip 1  unit who }\n"
READ_ALL = USES.split("modulate")[0]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("modulate m { scale deep by loss from 1 to 0.5 }\n" + PRIVATE, ["GW549"]),
        ("let lost = loss > 3\nsuppress m { when lost and kind == a  because \"r\" }\n" + PRIVATE, ["GW549"]),
        ("memorization m { when loss < 0.5  cap deep at 0 }\n" + PRIVATE, ["GW549"]),
        (
            "memorization m { when loss < 0.5  cap deep at 0 }\n" + PRIVATE + PRIVATE.replace(" p ", " q "),
            ["GW549"],
        ),
        ("memorization m { when loss < 0.5  cap deep at 0 }\n", []),
        ("memorization m { when loss < 0.5  cap deep at 0 }\nadvisory " + PRIVATE, ["GW528"]),
        ("let lost = loss > 3\n" + PRIVATE, ["GW511"]),
        (
            "memorization m { when loss < 0.5  cap deep at 0 }\n"
            "# gradwarden: allow GW549 because the loss is the example's own\n" + PRIVATE,
            [],
        ),
        (
            "signals { loss_ratio : number 0..10 default 1 }\n"
            "memorization m { when loss_ratio < 0.5 cap deep at 0 }\n" + PRIVATE,
            ["GW509"],
        ),
    ],
)  # fmt: skip
def test_a_signal_of_the_loop_voids_a_privacy_claim(rules: str, expected: list[str]) -> None:
    found = parse_policy(HEAD + READ_ALL + rules).warnings
    assert sorted(warning.code for warning in found) == expected


def test_a_condition_that_the_checker_has_judged_is_told_once() -> None:
    assert codes("depth x { when lines > 2000  reach deep }") == ["GW506"]


def test_the_parts_that_exclude_each_other_are_named() -> None:
    policy = parse_policy(
        HEAD + USES + "depth x { when consent and lines > 9 and kind == a and lines < 3  reach deep }"
    )
    [finding] = policy.warnings
    assert finding.help == "`lines > 9` and `lines < 3` exclude each other"


def test_of_idle_rules_only_one_is_named() -> None:
    rules = "".join(f"depth d{n} {{ when kind == b and lines > {n}  reach deep }}\n" for n in (5, 4, 3))
    named = [w.message for w in parse_policy(HEAD + USES + rules).warnings]
    assert named == ["`d4` leaves `d5` nothing to do", "`d3` leaves `d4` nothing to do"]


def test_shared_declarations_may_be_idle(tmp_path) -> None:
    (tmp_path / "shared.policy").write_text(
        "let idle = kind == b\nsignals { other : number 0..1 default 0 }\n"
    )
    text = (HEAD + USES).replace("language 1\n", 'language 1\nimport "shared.policy"\n')
    assert parse_policy(text, directory=tmp_path).warnings == ()


def test_policies_load_without_being_looked_through() -> None:
    policy = parse_policy(HEAD + USES)
    assert "warnings" not in vars(policy)
    assert policy.warnings is policy.warnings


@pytest.mark.parametrize(
    "rule",
    [
        "depth d{n} {{ when lines > {n}  reach deep }}",
        'suppress d{n} {{ when lines > {n} and consent  because "{n}" }}',
        "depth d{n} {{ when (consent or lines > {n}) and (kind == a or lines < 9)"
        " and (kind == b or lines > 3) and (consent or lines != {n})  reach deep }}",
    ],
)
def test_a_large_policy_is_not_searched_without_end(rule: str) -> None:
    checked = parse_policy(HEAD + USES + "\n".join(rule.format(n=n) for n in range(200))).checked
    subject = Subject.of(checked)
    lint_conditions(subject, Report())
    lint_overlaps(subject, Report())
    assert subject.domain.fuel is not None
    assert MAX_TESTS >= subject.domain.fuel > -FUEL
    subject.domain.fuel = 0
    report = Report()
    lint_conditions(subject, report)
    assert report.findings == []
