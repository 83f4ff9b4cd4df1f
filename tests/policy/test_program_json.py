"""The JSON form of programs: canonical to write, strict to read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.policy import PolicyError, compile_policy, load_policy, parse_policy
from gradwarden.policy.paces import paces
from gradwarden.policy.program_json import program_from_json, program_to_data, program_to_json
from tests.policy.strategies_text import declarations, text_of

CORPUS = Path(__file__).parent.parent / "corpus"
CLINICAL = compile_policy(load_policy(CORPUS / "good" / "clinical.policy"))
NUMBERS = compile_policy(load_policy(CORPUS / "good" / "numbers.policy"))


def refusal(text: str | bytes) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        program_from_json(text)
    return sorted({diagnostic.code for diagnostic in caught.value.diagnostics})


def changed(change: Callable[[Any], object], program: Any = CLINICAL) -> bytes:
    data = program_to_data(program)
    change(data)
    return rfc8785.dumps(data)


@given(declarations())
def test_programs_survive_the_round_trip(parts: list[str]) -> None:
    program = compile_policy(parse_policy(text_of(parts)))
    text = program_to_json(program)
    again = program_from_json(text)
    assert again == program
    assert program_to_json(again) == text
    assert again.digest == program.digest == sha256(text.encode()).hexdigest()


def test_the_form_is_canonical_json() -> None:
    text = CLINICAL.to_json()
    assert text.encode() == rfc8785.dumps(json.loads(text))


def test_a_threshold_is_written_only_where_there_is_one() -> None:
    head = "policy p version 1 language 1\nmodel { deep = rest }\nstarvation deep { "
    plain, thin = (
        compile_policy(parse_policy(f"{head}{below}after 3 steps halt }}\n")) for below in ("", "below 0.01 ")
    )
    assert program_to_data(plain)["starvation"] == [{"band": "deep", "steps": 3, "action": "halt"}]
    assert program_to_data(thin)["starvation"][0]["below"] == 10_000
    assert program_from_json(thin.to_json()) == thin
    assert refusal(changed(lambda d: d["starvation"][0].update(below=0), plain)) == ["GW441"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text + "\n",
        lambda text: text.replace(",", ", ", 1),
        lambda text: text.replace('"language":1', '"language":1.0'),
        lambda text: text.replace('"language":1', '"language":1e0'),
        lambda text: text.replace("clinical_finetune", "clinical\\u005ffinetune"),
    ],
)
def test_other_spellings_of_the_same_data_are_refused(edit: Callable[[str], str]) -> None:
    assert refusal(edit(CLINICAL.to_json())) == ["GW442"]


def test_fields_out_of_order_are_refused() -> None:
    data = program_to_data(CLINICAL)
    assert refusal(json.dumps(data, separators=(",", ":"))) == ["GW442"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "NaN",
        b"\xff",
        "\ud800",
        "[" * 100_000,
        '{"name":1,"name":2}',
        '{"a":' + "9" * 5_000 + "}",
    ],
)
def test_what_is_not_json_is_refused(text: str | bytes) -> None:
    assert refusal(text) == ["GW440"]


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("bands"),
        lambda data: data.update(extra=1),
        lambda data: data.update(version=-1),
        lambda data: data.update(recorded=0),
        lambda data: data.update(format="gradwarden/program/2"),
        lambda data: data.update(bands=[]),
        lambda data: data["grants"][0].update(when={"and": [], "or": []}),
        lambda data: data["grants"][0].update(when={}),
        lambda data: data["grants"][0].update(when={"call": "x"}),
        lambda data: data["grants"][0].update(weights=[0.5]),
        lambda data: data["limits"][0].update(kind="other"),
        lambda data: data["limits"][0]["clauses"][0].update(when=None),
        lambda data: data["attributes"][0].update(lo=2**53),
    ],
)
def test_data_that_break_the_schema_are_refused(change: Callable[[Any], object]) -> None:
    data = program_to_data(CLINICAL)
    change(data)
    assert refusal(json.dumps(data)) == ["GW441"]


def test_conditions_nested_without_end_are_refused() -> None:
    deep = '{"not":' * 3_000 + '{"constant":true}' + "}" * 3_000
    text = CLINICAL.to_json().replace('"when":{"flag":"phi"}', f'"when":{deep}', 1)
    assert deep in text
    assert refusal(text)[0] in ("GW440", "GW441", "GW442", "GW443")


def maintained(**changes: object) -> dict[str, object]:
    """A `maintain` rule as JSON data."""
    rule = {"name": "m", "bands": ["deep"], "strength": "1", "drift": None, "start": 0}
    return {**rule, "level": "hard", "because": "", "rehearsal": None, **changes}


def rehearsing(grant: str, band: str = "deep") -> dict[str, object]:
    return maintained(bands=[band], rehearsal={"rule": grant, "share": 1})


def paced(data: Any, clause: Mapping[str, object] | None = None, **changes: object) -> None:
    """Give the band `deep` a pace with something else about it, or about its clause."""
    caps = [1_000_000 * (band["name"] != "deep") for band in data["bands"]]
    own = {"when": {"not": {"every": 4}}, "effect": "paced", "caps": caps, "defers": True, **(clause or {})}
    limit = {"name": "pace:deep", "kind": "pace", "clauses": [own], "level": "hard", "because": ""}
    data["limits"].append({**limit, "privacy": None, **changes})
    data["limits"].sort(key=lambda x: x["name"])


def noised(data: Any) -> None:
    """Let noise move the band `deep`, which has a pace."""
    paced(data)
    next(limit for limit in data["limits"] if limit["privacy"])["privacy"]["bands"] = ["deep"]


def test_a_pace_is_read_as_it_was_written() -> None:
    program = program_from_json(changed(paced))
    assert paces(program) == {"deep": 4}
    assert program.digest != CLINICAL.digest


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: paced(d, name="deep"), "under another name"),
        (lambda d: paced(d, kind="suppress"), "under another name"),
        (lambda d: paced(d, name="pace:none"), "not the pace of a band"),
        (lambda d: paced(d, name="pace:shallow"), "not the pace of a band"),
        (lambda d: paced(d, level="advisory"), "not the pace of a band"),
        (lambda d: paced(d, {"caps": [0] * len(d["bands"])}), "not the pace of a band"),
        (lambda d: paced(d, {"defers": False}), "not the pace of a band"),
        (lambda d: paced(d, {"when": {"every": 4}}), "not the pace of a band"),
        (lambda d: paced(d, {"when": {"not": {"constant": True}}}), "not the pace of a band"),
        (noised, "noise moves"),
        (lambda d: d["grants"][0].update(when={"every": 4}), "takes turns"),
        (lambda d: d["grants"].reverse(), "not sorted"),
        (lambda d: d["grants"][0].update(name=d["limits"][0]["name"]), "one name"),
        (lambda d: d["grants"][0]["weights"].pop(), "one weight per band"),
        (lambda d: d["grants"][0].update(weights=[2_000_000] * 4), "above the greatest"),
        (lambda d: d["grants"][0].update(when={"flag": "kind"}), "not a bool"),
        (lambda d: d["grants"][0].update(when={"flag": "nothing"}), "not a bool"),
        (lambda d: d["grants"][0].update(when={"has": "consent"}), "not an optional"),
        (lambda d: d["grants"][0].update(when={"spent": "opted_out"}), "not a privacy rule"),
        (lambda d: d["grants"][0].update(when={"one_of": {"attribute": "kind", "codes": [7]}}), "codes"),
        (lambda d: d["grants"][0].update(when={"one_of": {"attribute": "kind", "codes": [1, 0]}}), "codes"),
        (lambda d: d["assertions"][0].update(band="none"), "no band"),
        (
            lambda d: d["limits"][0].update(
                privacy=d["limits"][1]["privacy"]
                or {"bands": [], "clip": "1", "delta": "1", "epsilon": "1", "unit": ""}
            ),
            "privacy terms",
        ),
        (lambda d: d["attributes"][0].update(lo=5, hi=-5), "is empty"),
        (lambda d: d.update(starvation=[{"band": "none", "steps": 1, "action": "halt"}]), "no band"),
        (lambda d: d.update(maintained=[maintained(bands=["none"])]), "no band"),
        (lambda d: d.update(maintained=[maintained(), maintained(name="n")]), "maintained twice"),
        (lambda d: d.update(maintained=[maintained(strength=None)]), "neither pulls nor bounds"),
        (lambda d: d.update(maintained=[maintained(name=d["grants"][0]["name"])]), "one name"),
        (lambda d: d.update(maintained=[rehearsing("patients")]), "which grants nothing"),
        (lambda d: d.update(maintained=[rehearsing("surface_labels")]), "does not reach the band"),
        (lambda d: d.update(maintained=[rehearsing("surface_labels", "shallow")]), "private examples"),
        (lambda d: d.update(maintained=[maintained(name="z"), maintained(bands=["middle"])]), "not sorted"),
        (
            lambda d: d.update(
                waivers=[
                    {
                        "name": "w",
                        "rule": "patients",
                        "when": {"constant": True},
                        "approved_by": "x",
                        "until": 1,
                        "because": "",
                    }
                ]
            ),
            "to waive",
        ),
        (
            lambda d: d["grants"][0].update(
                when={
                    "compare": {
                        "op": "lt",
                        "left": {"number": 1},
                        "right": {"mul": [{"number": 2**40}, {"clock": "step"}]},
                    }
                }
            ),
            "overflow",
        ),
        (
            lambda d: d["grants"][0].update(
                when={"compare": {"op": "lt", "left": {"number": 1}, "right": {"attribute": "source"}}}
            ),
            "not declared",
        ),
    ],
)
def test_programs_that_do_not_fit_together_are_refused(change: Callable[[Any], object], words: str) -> None:
    text = changed(change)
    assert refusal(text) == ["GW443"]
    with pytest.raises(PolicyError, match=words):
        program_from_json(text)


@given(st.data())
def test_damaged_programs_never_raise_anything_else(data: st.DataObject) -> None:
    text = NUMBERS.to_json()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 20)))
    patch = data.draw(
        st.one_of(st.text(max_size=6), st.sampled_from(["0", "-1", "null", "[]", "{}", '"x"', "1.5"]))
    )
    damaged = text[:start] + patch + text[end:]
    if damaged == text:
        return
    try:
        program = program_from_json(damaged)
    except PolicyError:
        return
    assert program.to_json() == damaged
    assert program.digest != NUMBERS.digest


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_any_json_is_a_program_or_a_policy_error(data: Any) -> None:
    with pytest.raises(PolicyError):
        program_from_json(json.dumps(data))
