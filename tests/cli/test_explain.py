"""`gradwarden explain`: one decision, in words and as data."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.cli.conftest import Run

EXAMPLE = {"kind": "a", "lines": 120, "topic": ["y"]}


def explain(run: Run, policy: Path, example: dict[str, object], *options: object) -> dict[str, object]:
    result = run("explain", policy, "--example", "-", "--format", "json", *options, input=json.dumps(example))
    assert result.exit_code == 0
    document: dict[str, object] = json.loads(result.stdout)
    return document


def test_the_decision_and_its_reasons_in_words(run: Run, policy: Path) -> None:
    result = run("explain", policy, "--example", "-", "--set", "loss=0", input=json.dumps(EXAMPLE))
    assert result.exit_code == 0
    assert result.stdout.startswith("limit\n  shallow  1\n  deep     0\n")
    assert (
        "  granted [depth]\n    reach shallow at 1, deep at 0.5\n      when kind == a  (kind = a)\n"
        in result.stdout
    )
    assert "    because a is ours\n" in result.stdout
    assert (
        "long [suppress]\n    capped: deep at most 0\n      when lines >= 100  (lines = 120)" in result.stdout
    )


def test_what_was_missing_for_a_grant_is_told(run: Run, policy: Path) -> None:
    result = run("explain", policy, "--example", "-", input=json.dumps({**EXAMPLE, "kind": "c"}))
    assert result.stdout.startswith("refuse: no depth rule grants anything")
    assert "none of these held\n  granted [depth]\n" in result.stdout
    assert "when kind == a  (kind = c)" in result.stdout


def test_problems_of_the_metadata_are_listed(run: Run, policy: Path) -> None:
    result = run("explain", policy, "--example", "-", input=json.dumps({"kind": "d", "topic": []}))
    assert result.exit_code == 0
    assert result.stdout.startswith("invalid: the metadata break the schema")
    assert "kind: " in result.stdout
    assert "lines: " in result.stdout


def test_obligations_come_with_their_terms(run: Run, policy: Path) -> None:
    result = run("explain", policy, "--example", "-", input=json.dumps({**EXAMPLE, "kind": "b"}))
    assert "privacy (rule people): epsilon 3, delta 0.000001, clip 1" in result.stdout


def test_the_context_given_is_the_context_used(run: Run, policy: Path) -> None:
    example = {"kind": "a", "lines": 1, "topic": [], "since": "2026-06-01"}
    before = explain(run, policy, example, "--at", "2026-05-31", "--set", "loss=0")
    after = explain(run, policy, example, "--at", "2026-06-01", "--set", "loss=0")
    half = explain(run, policy, example, "--at", "2026-05-31", "--set", "loss=5")
    assert before["decision"]["weights"] == {"shallow": 1.0, "deep": 0.5}  # type: ignore[index]
    assert after["decision"]["stage"] == "retain"  # type: ignore[index]
    assert half["decision"]["weights"]["deep"] == 0.25  # type: ignore[index]
    assert before["context"]["at_is_today"] is False  # type: ignore[index]


def test_today_is_used_and_said_where_no_date_is_given(run: Run, policy: Path) -> None:
    result = run("explain", policy, "--example", "-", input=json.dumps(EXAMPLE))
    assert "(today, as no --at was given)" in result.stdout
    context = explain(run, policy, EXAMPLE)["context"]
    assert context["at_is_today"] is True  # type: ignore[index]
    assert abs((datetime.now(UTC).date() - datetime.fromisoformat(context["at"]).date()).days) <= 1  # type: ignore[index]


def test_defaults_of_signals_are_said(run: Run, policy: Path) -> None:
    result = run("explain", policy, "--example", "-", input=json.dumps(EXAMPLE))
    assert "loss 1 (default)" in result.stdout


def test_a_spent_budget_can_be_supposed(run: Run, policy: Path) -> None:
    document = explain(run, policy, {**EXAMPLE, "kind": "b"}, "--spent", "people")
    assert {"rule": "people", "effect": "budget_spent"} in document["decision"]["causes"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("one.json", '{"kind": "a", "lines": 1, "topic": ["y"], "since": "2030-01-01"}'),
        ("one.yaml", "kind: a\nlines: 1\ntopic: [y]\nsince: 2030-01-01\n"),
        ("one.yml", "{kind: a, lines: 1, topic: [y], since: '2030-01-01', id: 7}"),
        ("one", '{"id": "x", "kind": "a", "lines": 1, "topic": ["y"], "since": "2030-01-01"}'),
    ],
)
def test_examples_are_read_from_json_and_yaml(run: Run, policy: Path, name: str, text: str) -> None:
    (policy.parent / name).write_text(text)
    result = run(
        "explain", policy, "--example", name, "--at", "2026-01-01", "--set", "loss=0", "--format", "json"
    )
    assert json.loads(result.stdout)["decision"]["weights"] == {"shallow": 1.0, "deep": 0.5}


def test_a_compiled_program_explains_as_its_policy_does(run: Run, policy: Path) -> None:
    run("build", policy, "-o", "sample.json")
    assert explain(run, Path("sample.json"), EXAMPLE) == explain(run, policy, EXAMPLE)


@pytest.mark.parametrize(
    "at", ["20260101", "2026-W01-1", "2026-02-30", "2026-1-1", "tomorrow", "", "2026-01-01T00:00"]
)
def test_a_date_has_one_form(run: Run, policy: Path, at: str) -> None:
    result = run("explain", policy, "--example", "-", "--at", at, input=json.dumps(EXAMPLE))
    assert result.exit_code == 2
    assert "is not a date such as 2026-01-31" in result.stderr


def test_a_signal_beyond_its_range_is_said_to_be_clamped(run: Run, policy: Path) -> None:
    result = run("explain", policy, "--example", "-", "--set", "loss=99", input=json.dumps(EXAMPLE))
    assert "loss 99 (taken as 10, the end of its range)" in result.stdout


def test_counts_are_bounded_as_in_the_language(run: Run, policy: Path) -> None:
    result = run("explain", policy, "--example", "-", "--step", 2**31, input=json.dumps(EXAMPLE))
    assert result.exit_code == 2


HELD = """
maintain kept { within deep, shallow  strength 0.01  drift at most 2.5%  from step 5  because "base" }
advisory maintain watched { within other  drift at most 10% }
"""


def test_what_holds_the_bands_that_an_example_shapes_is_told(run: Run, policy: Path) -> None:
    policy.write_text(policy.read_text().replace("model {", "model {\n  other = blocks 7") + HELD)
    example = json.dumps({**EXAMPLE, "lines": 1})
    early = run("explain", policy, "--example", "-", "--set", "loss=0", input=example)
    assert "kept [maintain]" not in early.stdout
    result = run("explain", policy, "--example", "-", "--set", "loss=0", "--step", 5, input=example)
    assert "maintained\n  kept [maintain]\n" in result.stdout
    told = "    shallow, deep: strength 0.01, drift at most 2.5%, from step 5\n    because base\n"
    assert told in result.stdout
    assert "watched" not in result.stdout
    document = explain(run, policy, {**EXAMPLE, "lines": 1}, "--step", 5)
    assert [rule["name"] for rule in document["maintained"]] == ["kept"]  # type: ignore[attr-defined]
