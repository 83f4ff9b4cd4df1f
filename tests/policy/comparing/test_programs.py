"""What `diff` says of two programs agrees with what the evaluator decides about examples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradwarden.policy import Context, compile_policy, parse_policy
from gradwarden.policy.comparing.counts import DataDifference
from gradwarden.policy.comparing.guards import guard_differences
from gradwarden.policy.comparing.maintaining import maintenance_differences, semantics_differences
from gradwarden.policy.comparing.pairs import cells, rename_attributes
from gradwarden.policy.comparing.programs import Comparer, Difference
from gradwarden.policy.comparing.rules import rule_differences
from gradwarden.policy.comparing.schemas import schema_changes
from gradwarden.policy.evaluation.columns import encode_columns
from gradwarden.policy.evaluation.evaluate import decide
from gradwarden.policy.program import Program
from tests.strategies import contexts, programs, valid_examples

BASE = """policy p version 1 language 1
examples {
  license : one of mit, gpl, unknown
  lines : integer 0..1000
  person : string optional
  erase : date optional
}
signals { loss : number 0..10 default 1 }
model { shallow = top 25%  middle = next 50%  deep = rest }
depth open { when license == mit  reach all }
depth close { when license == gpl  reach shallow at 0.5 }
suppress long { when lines > 500  because "too long" }
retain kept { when has erase  until erase }
privacy people { when has person  within shallow  epsilon 3  delta 1e-6  clip 1  unit person }
waive long { when license == mit  approved by "Dr. X"  until 2030-01-01  because "agreed" }
assert shallow_people { never reach deep when has person }
gradient { deep at most 1 }
"""


def program(text: str = BASE, *changes: tuple[str, str]) -> Program:
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return compile_policy(parse_policy(text))


def relations(differences: Sequence[Difference]) -> dict[str, str]:
    return {difference.subject: difference.relation for difference in differences}


def compare(*changes: tuple[str, str]) -> Comparer:
    return Comparer(program(), program(BASE, *changes))


def changed_rules(comparer: Comparer) -> dict[str, str]:
    return {
        f"{rule.kind} {rule.title}": rule.difference.relation
        for rule in rule_differences(comparer)
        if rule.difference.relation != "same" or rule.was != rule.now
    }


def test_a_policy_is_the_same_as_itself() -> None:
    comparer = compare()
    found = [*comparer.bands(), *comparer.privacy(), *comparer.gradients()]
    assert relations(found) == {"shallow": "same", "middle": "same", "deep": "same", "people": "same"}
    assert changed_rules(comparer) == {}


@pytest.mark.parametrize(
    ("change", "bands", "rules"),
    [
        (("lines > 500", "lines > 600"), {}, {"suppress long": "wider"}),
        (("lines > 500", "lines > 400"), {}, {"suppress long": "narrower"}),
        (("license == gpl  reach shallow at 0.5", "license == gpl  reach shallow"), {"shallow": "wider"},
         {"depth close": "wider"}),
        (("license == gpl  reach shallow at 0.5", "license == gpl  reach deep"),
         {"shallow": "narrower", "deep": "wider"}, {"depth close": "both"}),
        (("until 2030-01-01", "until 2031-01-01"), {"shallow": "wider", "middle": "wider", "deep": "wider"},
         {"waive waive:long": "wider"}),
        (("until erase", "until erase  at most 2 exposures"),
         {"shallow": "narrower", "middle": "narrower", "deep": "narrower"}, {"retain kept": "narrower"}),
        (("has person  within shallow", "has person  within shallow, middle"), {"middle": "wider"},
         {"privacy people": "wider"}),
        (("never reach deep when has person", "never reach deep"),
         dict.fromkeys(("shallow", "middle", "deep"), "narrower"), {"assert shallow_people": "narrower"}),
    ],
)  # fmt: skip
def test_a_change_is_found_where_it_is(
    change: tuple[str, str], bands: dict[str, str], rules: dict[str, str]
) -> None:
    comparer = compare(change)
    if change[0] == "lines > 500":  # only gpl is suppressed for good: mit is waived until 2030
        bands = dict.fromkeys(("shallow", "middle", "deep"), rules["suppress long"])
    found = list(comparer.bands())
    assert relations(found) == {"shallow": "same", "middle": "same", "deep": "same", **bands}
    assert changed_rules(comparer) == rules
    for place, difference in enumerate(found):
        for shown, sign in ((difference.wider, 1), (difference.narrower, -1)):
            if shown is not None:
                before, after = (
                    decide(side, shown.witness.metadata, shown.witness.context)
                    for side in (comparer.old, comparer.new)
                )
                assert (before, after) == (shown.before, shown.after)
                assert sign * (after.micro[place] - before.micro[place]) > 0


def test_renamed_reordered_and_rewritten_rules_change_nothing() -> None:
    text = BASE.replace("depth open {", "depth permissive {").replace("suppress long", "suppress too_long")
    text = text.replace("waive long", "waive too_long").replace("lines > 500", "not lines <= 500")
    lines = text.splitlines()
    moved = [line for line in lines if line.startswith(("retain", "privacy", "assert"))]
    text = "\n".join([line for line in lines if line not in moved] + moved[::-1])
    comparer = Comparer(program(), program(text))
    assert set(relations(list(comparer.bands())).values()) == {"same"}
    assert changed_rules(comparer) == {
        "depth open -> permissive": "same",
        "suppress long -> too_long": "same",
        "waive waive:long -> waive:too_long": "same",
    }


def test_a_rule_may_be_wider_while_no_decision_changes() -> None:
    comparer = compare(
        ("depth close {", "depth again { when license == mit and lines < 9  reach deep }\ndepth close {")
    )
    assert set(relations(list(comparer.bands())).values()) == {"same"}
    assert changed_rules(comparer) == {"depth again": "wider"}


def test_what_is_new_and_what_is_gone_is_said() -> None:
    comparer = compare(("suppress long", "suppress other"), ("waive long", "waive other"), ("> 500", "> 501"))
    found = {
        f"{r.was}>{r.now}": (r.difference.relation, r.difference.notes) for r in rule_differences(comparer)
    }
    assert found[">other"] == ("narrower", ("new",))
    assert found["long>"] == ("wider", ("gone",))


@pytest.mark.parametrize(
    ("change", "relation", "note"),
    [
        (("epsilon 3", "epsilon 4"), "wider", "epsilon 3, now 4"),
        (("epsilon 3", "epsilon 2"), "narrower", "epsilon 3, now 2"),
        (("clip 1", "clip 2"), "wider", "clip 1, now 2"),
        (("delta 1e-6", "delta 1e-5"), "wider", "delta 0.000001, now 0.00001"),
        (("epsilon 3  delta 1e-6", "epsilon 2  delta 1e-5"), "both", "epsilon 3, now 2"),
        (("  unit person", ""), "both", "unit person, now none"),
        (("people { when has person", "people { when has person and lines > 9"), "wider", None),
        (("privacy people", "advisory privacy people"), "wider", "the rule is gone"),
        (("clip 1  unit", "clip 1  spent halt  unit"), "same", "spent refuse, now halt"),
        (("clip 1  unit", "clip 1  noise at most 2  unit"), "same", "noise none, now 2"),
        (("people { when has person", 'people { when has person and person != "x"'), "wider", None),
    ],
)  # fmt: skip
def test_privacy_is_compared_by_whom_it_protects_and_how_strictly(
    change: tuple[str, str], relation: str, note: str | None
) -> None:
    (found,) = compare(change).privacy()
    assert (found.subject, found.relation) == ("people", relation)
    assert note is None or note in found.notes
    if found.wider:
        assert [o.rule for o in found.wider.before.obligations] == ["people"]
        assert any(found.wider.after.micro)


def test_a_protection_under_another_name_is_one() -> None:
    comparer = compare(("privacy people", "privacy persons"))
    assert relations(list(comparer.privacy())) == {"people": "same", "persons": "same"}


HELD_OUT = "memorization fish { when lines > 9  hold out 1 in 4 tokens }"


@pytest.mark.parametrize(
    ("new", "relation", "note"),
    [
        (HELD_OUT, "same", None),
        (HELD_OUT.replace("4", "8"), "wider", "holds out 1 in 4 tokens, now 1 in 8"),
        (HELD_OUT.replace("4", "2"), "narrower", "holds out 1 in 4 tokens, now 1 in 2"),
        (HELD_OUT.replace("9", "99"), "wider", None),
        ("advisory " + HELD_OUT, "wider", "the rule is gone"),
        ("", "wider", "the rule is gone"),
        (HELD_OUT.replace("fish", "fishes").replace("4", "2"), "same", "the rule is gone"),
    ],
)
def test_tokens_held_out_are_compared_by_whose_and_how_many(
    new: str, relation: str, note: str | None
) -> None:
    comparer = Comparer(program(f"{BASE}\n{HELD_OUT}"), program(f"{BASE}\n{new}"))
    found = next(d for d in comparer.hold_outs() if d.subject == "fish")
    assert found.relation == relation
    assert note is None or note in found.notes


@pytest.mark.parametrize(
    ("change", "relation"),
    [(("at most 1 }", "at most 2 }"), "wider"), (("at most 1 }", "at most 0.5 }"), "narrower"),
     (("gradient { deep at most 1 }", ""), "wider")],
)  # fmt: skip
def test_gradient_caps_are_compared_by_their_norm(change: tuple[str, str], relation: str) -> None:
    assert relations(list(compare(change).gradients())) == {"deep": relation}


@pytest.mark.parametrize(
    ("old", "new", "relations_found"),
    [
        ("record 1 in 16 steps", "", {"contributions": "wider"}),
        ("record 1 in 16 steps", "record 1 in 17 steps", {"contributions": "wider"}),
        ("record 1 in 16 steps", "record 1 in 15 steps", {"contributions": "narrower"}),
        ("", "record 1 in 16 steps", {"contributions": "narrower"}),
        ("record 1 in 16 steps", "record 1 in 16 steps", {}),
    ],
)
def test_a_record_of_contributions_that_is_made_less_often_is_wider(
    old: str, new: str, relations_found: dict[str, str]
) -> None:
    def recording(clause: str) -> Program:
        return program(BASE.replace("deep at most 1 }", f"deep at most 1  {clause} }}"))

    assert relations(list(Comparer(recording(old), recording(new)).gradients())) == relations_found


@pytest.mark.parametrize(
    ("old", "new", "relation"),
    [
        (4, 4, "same"),
        (4, 2, "wider"),
        (4, 8, "narrower"),
        (4, 6, "both"),
        (4, None, "wider"),
        (None, 4, "narrower"),
    ],
)
def test_paces_are_compared_by_the_steps_in_which_they_open_a_band(
    old: int | None, new: int | None, relation: str
) -> None:
    before, after = (
        program(BASE + (f"gradient {{ deep at most 1 in {n} steps }}" if n else "")) for n in (old, new)
    )
    comparer = Comparer(before, after)
    assert relations(list(comparer.bands())) == {"shallow": "same", "middle": "same", "deep": relation}
    (rule,) = (r for r in rule_differences(comparer) if r.kind == "pace")
    assert rule.difference.relation == relation
    for shown in filter(None, (rule.difference.wider, rule.difference.narrower)):
        step = shown.witness.context.step
        assert [bool(n and step % n) for n in (old, new)] == (
            [True, False] if shown is rule.difference.wider else [False, True]
        )


GUARD = "starvation deep { below 0.1 after 10 steps report }"


@pytest.mark.parametrize(
    ("now", "relation"),
    [
        (GUARD, None),
        ("", "wider"),
        (GUARD.replace("below 0.1 ", ""), "wider"),
        (GUARD.replace("0.1", "0.05"), "wider"),
        (GUARD.replace("10 steps", "11 steps"), "wider"),
        (GUARD.replace("report", "accept"), "wider"),
        (GUARD.replace("report", "halt"), "narrower"),
        (GUARD.replace("0.1", "0.2"), "narrower"),
        (GUARD.replace("10 steps", "1 step"), "narrower"),
        (GUARD.replace("10 steps report", "11 steps halt"), "both"),
    ],
)
def test_starvation_guards_are_compared_by_the_droughts_they_tell_of(now: str, relation: str | None) -> None:
    old, new = program(BASE + GUARD), program(BASE + now)
    found = list(guard_differences(old, new, cells(old, new)))
    assert relations(found) == ({"deep": relation} if relation else {})
    turned = {"wider": "narrower", "narrower": "wider", "both": "both", None: None}
    back = relations(list(guard_differences(new, old, cells(new, old))))
    assert back == ({"deep": turned[relation]} if relation else {})


HELD = "maintain base { within deep  strength 0.01  drift at most 2%  from step 10 }"


@pytest.mark.parametrize(
    ("now", "relation"),
    [
        (HELD.replace("base", "other"), None),
        ("", "wider"),
        (HELD.replace("0.01", "0.001"), "wider"),
        (HELD.replace("strength 0.01", ""), "wider"),
        (HELD.replace("2%", "2.0001%"), "wider"),
        (HELD.replace("drift at most 2%", ""), "wider"),
        (HELD.replace("step 10", "step 11"), "wider"),
        (f"advisory {HELD}", "wider"),
        (HELD.replace("0.01", "0.1"), "narrower"),
        (HELD.replace("2%", "1%"), "narrower"),
        (HELD.replace("from step 10", ""), "narrower"),
        (HELD.replace("0.01", "0.1").replace("2%", "3%"), "both"),
    ],
)
def test_maintain_rules_are_compared_by_how_closely_they_hold_a_band(now: str, relation: str | None) -> None:
    old, new = program(BASE + HELD), program(BASE + now)
    found = list(maintenance_differences(old, new, cells(old, new)))
    assert relations(found) == ({"deep": relation} if relation else {})
    assert all(d.widens == (relation in ("wider", "both")) for d in found)
    turned = {"wider": "narrower", "narrower": "wider", "both": "both", None: None}
    back = relations(list(maintenance_differences(new, old, cells(new, old))))
    assert back == ({"deep": turned[relation]} if relation else {})


PRACTISED = "maintain base { within deep  rehearse all at least 20% }"


@pytest.mark.parametrize(
    ("now", "relation"),
    [
        (PRACTISED.replace("base", "other"), None),
        (PRACTISED.replace("20%", "19.9%"), "wider"),
        (PRACTISED.replace("20%", "21%"), "narrower"),
        (PRACTISED.replace("rehearse all at least 20%", "strength 1"), "both"),
        (PRACTISED.replace("rehearse all", "rehearse some"), "both"),
        ("", "wider"),
        ("advisory " + PRACTISED, "wider"),
    ],
)
def test_what_is_rehearsed_is_compared_by_share_and_by_what_it_is(now: str, relation: str | None) -> None:
    grants = "depth all { reach all } depth some { when lines > 1  reach all } "
    old, new = program(BASE + grants + PRACTISED), program(BASE + grants + now)
    found = list(maintenance_differences(old, new, cells(old, new)))
    assert relations(found) == ({"deep": relation} if relation else {})
    turned = {"wider": "narrower", "narrower": "wider", "both": "both", None: None}
    back = relations(list(maintenance_differences(new, old, cells(new, old))))
    assert back == ({"deep": turned[relation]} if relation else {})


def test_a_grant_of_another_name_is_the_same_rehearsal_and_another_one_of_its_name_is_not() -> None:
    def practised(grant: str) -> Program:
        return program(f"{BASE}{grant} {PRACTISED}".replace("rehearse all", f"rehearse {grant.split()[1]}"))

    old = practised("depth all { when lines > 1  reach all }")
    renamed, other = (
        practised(x) for x in ("depth b { when lines > 1  reach all }", "depth all { reach all }")
    )
    assert not list(maintenance_differences(old, renamed, cells(old, renamed)))
    (found,) = maintenance_differences(old, other, cells(old, other))
    assert (found.subject, found.relation) == ("deep", "both")
    assert "what is rehearsed is granted to other examples than before, or in another measure" in found.notes


def test_a_drift_that_is_measured_over_a_larger_band_lets_each_part_move_further() -> None:
    def held(shares: dict[str, tuple[str, ...]]) -> Program:
        rules = "".join(f"maintain m{n} {{ within {n}  drift at most 2% }} " for n in shares)
        source = bound_in_bands(shares, {})
        checked = program(
            "policy p version 1 language 1 model { "
            + " ".join(f'{band} = names "{band}.*"' for band in shares)
            + f" }} depth d {{ reach all }} {rules}"
        )
        return dataclasses.replace(source, maintained=checked.maintained)

    one, halves = held({"a": ("w.1", "w.2")}), held({"b": ("w.1",), "c": ("w.2",)})
    found = list(maintenance_differences(one, halves, cells(one, halves)))
    assert relations(found) == {"a -> b": "narrower", "a -> c": "narrower"}
    found = list(maintenance_differences(halves, one, cells(halves, one)))
    assert relations(found) == {"b -> a": "wider", "c -> a": "wider"}


def test_what_a_weight_of_zero_stops_is_compared() -> None:
    old, new = program(), program(BASE, ("deep = rest }", "deep = rest  semantics detach }"))
    assert relations(list(semantics_differences(old, new))) == {"semantics": "narrower"}
    assert relations(list(semantics_differences(new, old))) == {"semantics": "wider"}
    assert list(semantics_differences(new, new)) == []
    assert relations(list(Comparer(old, new).bands())) == dict.fromkeys(["shallow", "middle", "deep"], "same")


def test_without_a_model_nobody_knows_whether_the_same_parameters_are_held() -> None:
    old, new = program(BASE + HELD), program(BASE + HELD, ("top 25%", "top 30%"))
    assert relations(list(maintenance_differences(old, new, cells(old, new)))) == {"deep": "unknown"}


def test_without_a_model_a_band_that_is_drawn_otherwise_may_be_wider() -> None:
    found = {d.subject: d for d in compare(("top 25%", "top 30%")).bands()}
    assert {name: d.relation for name, d in found.items()} == dict.fromkeys(found, "unknown")
    assert all(d.widens and "bound" in d.notes[0] for d in found.values())


def test_a_band_of_another_name_is_the_same_band() -> None:
    text = BASE.replace("shallow", "upper").replace("upper_people", "shallow_people")
    found = relations(list(Comparer(program(), program(text)).bands()))
    assert found == {"shallow -> upper": "same", "middle": "same", "deep": "same"}


def test_bound_programs_are_compared_by_parameter() -> None:
    names = [f"blocks.{index}.weight" for index in range(4)]

    def bound(shallow: int) -> Program:
        text = BASE.replace("top 25%", "blocks 3" if shallow == 1 else "blocks 2..3").replace(
            "next 50%", "blocks 1"
        )
        source = program(text)
        shares = [names[4 - shallow :], names[1 : 4 - shallow] or [], names[:1]]
        bands = tuple(
            dataclasses.replace(band, parameters=tuple(share))
            for band, share in zip(source.bands, shares, strict=True)
        )
        return dataclasses.replace(source, bands=bands, model_map="m")

    comparer = Comparer(bound(1), bound(2))
    assert [(cell.name, cell.parameters) for cell in comparer.cells] == [
        ("shallow", 1), ("middle -> shallow", 1), ("middle", 1), ("deep", 1),
    ]  # fmt: skip
    assert relations(list(comparer.bands())) == {
        "shallow": "same", "middle -> shallow": "wider", "middle": "same", "deep": "same",
    }  # fmt: skip


def bound_in_bands(shares: dict[str, tuple[str, ...]], caps: dict[str, str]) -> Program:
    """A program that is bound to parameters, with caps of some bands' gradients."""
    gradient = "gradient { " + " ".join(f"{band} at most {norm}" for band, norm in caps.items()) + " }"
    model = " ".join(f'{band} = names "{band}.*"' for band in shares)
    source = program(
        f"policy p version 1 language 1 model {{ {model} }} depth d {{ reach all }} {gradient * bool(caps)}"
    )
    bands = tuple(dataclasses.replace(band, parameters=shares[band.name]) for band in source.bands)
    return dataclasses.replace(source, bands=bands, model_map="m")


@pytest.mark.parametrize(
    ("whole", "parts", "found"),
    [
        ("1", {"b": "1", "c": "1"}, {"b": "wider", "c": "wider"}),
        ("1", {"b": "0.8", "c": "0.6"}, {"b": "narrower", "c": "narrower"}),
        ("1", {"b": "0.8"}, {"b": "both", "c": "wider"}),
        ("", {"b": "0.8"}, {"b": "narrower"}),
    ],
)
def test_caps_of_the_parts_of_a_band_add_up(whole: str, parts: dict[str, str], found: dict[str, str]) -> None:
    one = bound_in_bands({"a": ("w.1", "w.2")}, {"a": whole} if whole else {})
    halves = bound_in_bands({"b": ("w.1",), "c": ("w.2",)}, parts)
    assert relations(list(Comparer(one, halves).gradients())) == {
        f"a -> {band}": r for band, r in found.items()
    }
    turned = {"wider": "narrower", "narrower": "wider", "both": "both"}
    assert relations(list(Comparer(halves, one).gradients())) == {
        f"{band} -> a": turned[relation] for band, relation in found.items()
    }


def test_an_example_is_counted_once_for_a_band_that_lies_in_several_parts() -> None:
    old = bound_in_bands({"a": ("w.1",)}, {})
    new = bound_in_bands({"a": ("w.1", "w.2")}, {})
    old = dataclasses.replace(old, grants=(dataclasses.replace(old.grants[0], weights=(500_000,)),))
    comparer = Comparer(old, new)
    assert [cell.name for cell in comparer.cells] == ["a", "a"]
    counts = DataDifference(old, new, Context(), Context(), comparer.cells, [])
    counts.add(encode_columns(old, {}, 3), encode_columns(new, {}, 3))
    assert (counts.any.gained, counts.by_band["a"].gained, counts.by_band["a"].lost) == (3, 3, 0)


def test_records_that_become_valid_are_a_widening() -> None:
    comparer = compare(
        ("lines : integer 0..1000", "lines : integer 0..2000"), ("lines > 500", "lines in 501..1000")
    )
    found = {d.subject: d for d in comparer.bands()}
    assert {d.relation for d in found.values()} == {"wider"}
    assert found["deep"].wider is not None
    assert found["deep"].wider.before.verdict == "invalid"
    assert list(schema_changes(comparer.old, comparer.new)) == [
        "attribute `lines`: number 0..1000 places 0, now number 0..2000 places 0"
    ]


def test_only_records_that_carry_an_attribute_suffer_from_its_loss() -> None:
    lines = BASE.splitlines(keepends=True)
    new = program("".join(line for line in lines if "erase" not in line and "loss" not in line))
    assert list(schema_changes(program(), new)) == [
        "attribute `erase` is gone: records that carry it are invalid",
        "signal `loss` is gone",
    ]


def test_a_renamed_attribute_is_compared_as_the_same_value() -> None:
    text = BASE.replace("license", "licence").replace("person", "who").replace("shallow_people", "s")
    text = text.replace("assert s ", "assert shallow_people ")
    old, new = program(), program(text)
    assert not Comparer(old, new).comparable()
    renamed = rename_attributes(old, {"license": "licence", "person": "who"})
    assert set(relations(list(Comparer(renamed, new).bands())).values()) == {"same"}
    assert set(relations(list(Comparer(renamed, new).privacy())).values()) == {"same"}


@pytest.mark.parametrize(
    ("attribute", "test", "relation"),
    [
        ("license : string", 'license == "mit"', "same"),
        ("license : string", 'license starts with "mi"', "wider"),
        ("license : string optional", 'has license and license in ["gpl", "mit"]', "wider"),
        ("license : string", 'license == "mi"', "both"),
        ("license : one of mit, apache", "license == mit", "same"),
    ],
)
def test_an_enumeration_may_become_a_string(attribute: str, test: str, relation: str) -> None:
    text = (
        "policy p version 1 language 1 examples {{ {} }} model {{ m = rest }} depth d {{ when {} reach all }}"
    )
    listed = program(text.format("license : one of mit, gpl", "license == mit"))
    other = program(text.format(attribute, test))
    turned = {"wider": "narrower"}.get(relation, relation)
    assert relations(list(Comparer(listed, other).bands())) == {"m": relation}
    assert relations(list(Comparer(other, listed).bands())) == {"m": turned}


def test_a_text_that_two_types_take_is_no_proof() -> None:
    text = (
        "policy p version 1 language 1 examples {{ day : {} }} model {{ m = rest }} "
        "depth d {{ when {} reach all }} privacy q {{ when {} within m epsilon {} delta 1e-6 clip 1 }}"
    )
    dated = program(text.format("date", "day >= 2026-01-01", "day >= 2026-01-01", 1))
    written = program(text.format("string", 'day == "2026-01-01"', 'day == "2026-01-01"', 2))
    for old, new in ((dated, written), (written, dated)):
        comparer = Comparer(old, new)
        for found in (*comparer.bands(), *comparer.privacy()):
            assert found.widens
            assert found.wider or found.relation == "unknown"


def test_too_little_time_is_no_proof() -> None:
    comparer = Comparer(program(), program(BASE, ("0.5", "0.25")), timeout=1e-9)
    found = list(comparer.bands())
    assert {d.relation for d in found} == {"unknown"}
    assert all("gave up" in d.notes[0] for d in found)


# --- laws ---------------------------------------------------------------------------------------------------


def fitting(context: Context) -> Context:
    signals = {name: value for name, value in context.signals.items() if math.isfinite(float(value))}
    return dataclasses.replace(context, signals=signals)


def matched(comparer: Comparer, metadata: dict[str, Any], context: Context) -> list[tuple[str, int]]:
    before, after = (decide(side, metadata, context) for side in (comparer.old, comparer.new))
    found = []
    for cell in comparer.cells:
        old = 0 if cell.old is None else before.micro[cell.old]
        new = 0 if cell.new is None else after.micro[cell.new]
        found.append((cell.name, new - old))
    return found


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs(), programs(), st.lists(st.tuples(valid_examples(), contexts()), min_size=1, max_size=8))
def test_no_example_shows_what_was_not_found(
    old: Program, new: Program, examples: list[tuple[dict[str, Any], Context]]
) -> None:
    comparer = Comparer(old, new)
    found = {difference.subject: difference for difference in comparer.bands()}
    for metadata, context in examples:
        for name, change in matched(comparer, metadata, fitting(context)):
            relation = found[name].relation
            assert change <= 0 or relation in ("wider", "both", "unknown")
            assert change >= 0 or relation in ("narrower", "both", "unknown")


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs())
def test_dropping_a_limit_never_narrows_and_dropping_a_grant_never_widens(old: Program) -> None:
    old = dataclasses.replace(old, assertions=())
    for dropped, allowed in (("limits", {"same", "wider"}), ("grants", {"same", "narrower"})):
        rules = getattr(old, dropped)
        if rules:
            new = dataclasses.replace(old, **{dropped: rules[1:]})
            assert set(relations(list(Comparer(old, new).bands())).values()) <= allowed


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs(), programs(), st.lists(valid_examples(), max_size=12), contexts())
def test_counts_over_data_are_what_deciding_each_example_gives(
    old: Program, new: Program, examples: list[dict[str, Any]], context: Context
) -> None:
    context = fitting(context)
    context = dataclasses.replace(
        context, signals={k: v for k, v in context.signals.items() if k != "undeclared"}
    )
    rules = [(grant.name, grant.name) for grant in new.grants] + [("limit_0", "")]
    comparer = Comparer(old, new)
    counts = DataDifference(old, new, context, context, comparer.cells, rules, tokens="age")
    columns = {name: [row.get(name) for row in examples] for name in {key for row in examples for key in row}}
    half = len(examples) // 2
    for part in (slice(0, half), slice(half, None)):
        piece = {name: values[part] for name, values in columns.items()}
        size = len(examples[part])
        counts.add(encode_columns(old, piece, size), encode_columns(new, piece, size))
    assert counts.examples == len(examples)
    gained: dict[str, int] = dict.fromkeys(counts.by_band, 0)
    tokens = 0
    for metadata in examples:
        changes = dict(matched(comparer, metadata, context))
        for name, change in changes.items():
            gained[name] += change > 0
        if any(change > 0 for change in changes.values()):
            age = encode_columns(new, {"age": [metadata.get("age")]}, 1).encoded["age"].values
            tokens += int(np.asarray(age)[0])
    assert {name: count.gained for name, count in counts.by_band.items()} == gained
    assert counts.any.tokens_gained == tokens
    for was, now in rules:
        came = sum(
            (now in decide(new, m, context).rules) > (was in decide(old, m, context).rules) for m in examples
        )
        assert counts.by_rule[was, now].gained == came
