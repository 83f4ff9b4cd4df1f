"""`gradwarden schema`: JSON Schema and Croissant out of a policy, and a description held against one."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.cli.conftest import Run

POLICY = """\
policy sample version 2 language 1
examples {
  consent : bool
  license : one of mit, "GPL-2.0"
  tags    : set of minor, health
  score   : number 0..1 places 2
  lines   : integer 0..1000
  erase   : date optional
  source  : string
}
model { shallow = top 50%  deep = rest }
depth everything { when license == mit  reach all }
suppress minors { when tags contains minor  because "pupils are protected" }
retain request { when has erase  until erase }
advisory suppress gender { when source == "gender"  because "advice reflects nothing" }
"""

VALID = {
    "id": 7,
    "consent": True,
    "license": "GPL-2.0",
    "tags": ["minor"],
    "score": 0.25,
    "lines": 3,
    "source": "web",
}


@pytest.fixture
def sample(here: Path) -> Path:
    path = here / "sample.policy"
    path.write_text(POLICY, "utf-8")
    return path


def field(name: str, kind: Any, **more: Any) -> dict[str, Any]:
    return {"@type": "cr:Field", "@id": f"rows/{name}", "name": name, "dataType": kind, **more}


DESCRIPTION: dict[str, Any] = {
    "@type": "sc:Dataset",
    "name": "corpus",
    "rai:personalSensitiveInformation": ["Minors appear in school texts", "Gender"],
    "rai:dataCollection": "scraped",
    "http://mlcommons.org/croissant/RAI/dataUseCases": {"@value": "Not for biometric identification"},
    "recordSet": [
        {
            "@id": "licenses",
            "dataType": "sc:Enumeration",
            "field": [{"@id": "licenses/name", "dataType": "sc:Text"}],
            "data": [{"licenses/name": "mit"}, {"licenses/name": "GPL-2.0"}],
        },
        {"@id": "authors", "field": [field("source", "sc:Text")]},
        {
            "@id": "rows",
            "field": [
                field("id", "sc:Text"),
                field("text", "sc:Text"),
                field("consent", "sc:Boolean"),
                field("license", "sc:Text", references={"field": {"@id": "licenses/name"}}),
                field("tags", ["sc:Text", "https://example.org/Topic"], repeated=True),
                field("score", "cr:Float32"),
                field("lines", "https://schema.org/Integer"),
                field("source", "sc:URL"),
            ],
        },
    ],
}


def against(
    run: Run, policy: Path, document: Any, *options: object, status: int | None = None
) -> tuple[dict[str, Any], str]:
    path = policy.with_name("croissant.json")
    path.write_text(json.dumps(document))
    result = run("schema", policy, "--against", path, "--format", "json", *options)
    if status is not None:
        assert result.exit_code == status, result.stderr
    return json.loads(result.stdout), result.stderr


def test_the_schema_accepts_a_record_and_names_what_is_wrong_with_another(run: Run, sample: Path) -> None:
    result = run("schema", sample)
    assert result.exit_code == 0
    validator = Draft202012Validator(json.loads(result.stdout))
    assert validator.is_valid(VALID)
    wrong = VALID | {"license": "bsd", "lines": -1, "other": 1}
    assert {tuple(e.path) for e in validator.iter_errors(wrong)} == {("license",), ("lines",), ("other",)}


def test_a_compiled_program_has_the_same_schema(run: Run, sample: Path) -> None:
    run("build", sample, "-o", "p.json")
    assert run("schema", "p.json").stdout == run("schema", sample).stdout


def test_what_is_written_as_croissant_covers_the_policy(run: Run, sample: Path) -> None:
    written = json.loads(run("schema", sample, "--croissant").stdout)
    types = {f["name"]: f["dataType"] for f in written["recordSet"][-1]["field"]}
    assert (types["lines"], types["score"], types["erase"]) == ("sc:Integer", "sc:Float", "sc:Date")
    assert written["recordSet"][0]["data"] == [{"license_values/name": v} for v in ("mit", "GPL-2.0")]
    found, _ = against(run, sample, written, status=0)
    assert {entry["standing"] for entry in found["fields"]} == {"covered"}


def test_a_description_that_covers_a_policy(run: Run, sample: Path) -> None:
    found, _ = against(run, sample, DESCRIPTION, status=0)
    assert (found["dataset"], found["record_set"], found["covered"]) == ("corpus", "rows", True)
    standings = {entry["name"]: entry["standing"] for entry in found["fields"]}
    assert standings.pop("erase") == "absent"
    assert standings.pop("text") == "undeclared"
    assert set(standings.values()) == {"covered"}
    assert len(standings) == 6


@pytest.mark.parametrize(
    ("name", "change", "detail"),
    [
        ("consent", {"dataType": "sc:Text"}, "Boolean is needed, and the field is of Text"),
        ("score", {"dataType": "sc:Text"}, "Integer or Float is needed, and the field is of Text"),
        ("lines", {"dataType": None}, "Integer or Float is needed, and the field has no data type"),
        ("tags", {"repeated": False}, "a list of Text is needed, and the field is one value"),
        ("source", {"isArray": True}, "Text is needed, and the field is a list"),
        ("source", {"subField": [{}]}, "Text is needed, and the field is made of fields of its own"),
        ("license", {"dataType": "sc:DateTime"}, "Text is needed, and the field is of DateTime"),
    ],
)
def test_fields_that_do_not_fit_are_findings(
    run: Run, sample: Path, name: str, change: dict[str, Any], detail: str
) -> None:
    document = deepcopy(DESCRIPTION)
    next(f for f in document["recordSet"][2]["field"] if f["name"] == name).update(change)
    found, errors = against(run, sample, document, status=1)
    entry = next(entry for entry in found["fields"] if entry["name"] == name)
    assert (entry["standing"], entry["detail"]) == ("incompatible", detail)
    assert f"error[GW492]: `{name}` is incompatible: {detail}" in errors


def test_a_date_with_a_time_is_no_date(run: Run, sample: Path) -> None:
    document = deepcopy(DESCRIPTION)
    document["recordSet"][2]["field"].append(field("erase", "sc:DateTime"))
    _, errors = against(run, sample, document, status=1)
    assert "`erase` is incompatible: Date is needed" in errors


def test_values_that_the_policy_does_not_know_are_findings(run: Run, sample: Path) -> None:
    document = deepcopy(DESCRIPTION)
    document["recordSet"][0]["data"] += [{"licenses/name": "bsd"}]
    _, errors = against(run, sample, document, status=1)
    assert "`license` is incompatible: the policy does not declare the value `bsd`" in errors


def test_a_missing_field_is_a_finding_and_a_near_name_is_suggested(run: Run, sample: Path) -> None:
    document = deepcopy(DESCRIPTION)
    document["recordSet"][2]["field"][2]["name"] = "consents"
    _, errors = against(run, sample, document, status=1)
    assert "`consent` is missing: did you mean `consents`?" in errors


def test_full_addresses_and_language_tags_are_understood(run: Run, sample: Path) -> None:
    croissant = "http://mlcommons.org/croissant/"
    document = deepcopy(DESCRIPTION)
    document[f"{croissant}recordSet"] = document.pop("recordSet")
    for entry in document[f"{croissant}recordSet"]:
        entry[f"{croissant}field"] = entry.pop("field")
        for each in entry[f"{croissant}field"]:
            each[f"{croissant}dataType"] = [{"@id": kind} for kind in [each.pop("dataType")] if kind]
            each["https://schema.org/name"] = {"@value": each.pop("name", "name"), "@language": "en"}
    tags = document[f"{croissant}recordSet"][2][f"{croissant}field"][4]
    tags[f"{croissant}dataType"] = "sc:Text"
    assert against(run, sample, document, status=0)[0]["covered"]


def test_a_record_set_is_chosen_by_name(run: Run, sample: Path) -> None:
    found, errors = against(run, sample, DESCRIPTION, "--record-set", "authors", status=1)
    assert found["record_set"] == "authors"
    assert "`consent` is missing" in errors
    result = run("schema", sample, "--against", "croissant.json", "--record-set", "none")
    assert (result.exit_code, "it has `authors`, `rows`" in result.stderr) == (2, True)


def test_statements_are_listed_with_the_rules_that_mention_them(run: Run, sample: Path) -> None:
    found, _ = against(run, sample, DESCRIPTION, status=0)
    assert [(s["property"], s["text"], s["rules"]) for s in found["statements"]] == [
        ("rai:personalSensitiveInformation", "Minors appear in school texts", ["minors"]),
        ("rai:personalSensitiveInformation", "Gender", []),
        ("rai:dataUseCases", "Not for biometric identification", []),
    ]
    _, errors = against(run, sample, DESCRIPTION, "--strict", status=1)
    assert "no rule reflects rai:personalSensitiveInformation `Gender`" in errors


def test_the_text_says_all_of_it(run: Run, sample: Path) -> None:
    Path("c.json").write_text(json.dumps(DESCRIPTION))
    result = run("schema", sample, "--against", "c.json")
    assert result.exit_code == 0
    assert "sample version 2 against `rows` of c.json" in result.stdout
    assert "consent    covered" in result.stdout
    assert "1 further field, not declared by the policy: text" in result.stdout
    assert "rai:dataUseCases `Not for biometric identification`: no rule" in result.stdout


@pytest.mark.parametrize(
    "content",
    [
        *(
            "[]",
            "{}",
            '{"recordSet": 3}',
            '{"recordSet": [3, {"field": [null, 3]}]}',
            "nonsense",
            '{"a":1,"a":2}',
        ),
        '{"recordSet": {"name": [], "field": {"name": {"@value": 3}, "dataType": {}, "references": 1}}}',
    ],
)
def test_what_is_no_description_is_told_without_a_traceback(run: Run, sample: Path, content: str) -> None:
    Path("c.json").write_text(content)
    result = run("schema", sample, "--against", "c.json")
    assert result.exit_code in (1, 2)
    assert "error[" in result.stderr


@pytest.mark.parametrize(
    "options", [["--croissant", "--against", "c.json"], ["--strict"], ["--record-set", "x"], ["none"]]
)
def test_misuse_is_told(run: Run, sample: Path, options: list[str]) -> None:
    assert run("schema", sample, *options).exit_code == 2
