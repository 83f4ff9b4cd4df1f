"""The conformance corpus holds for every evaluator, and for a reading of the language that shares no code."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden.policy import Policy, PolicyError, compile_policy, format_policy, load_policy, parse_policy
from gradwarden.policy.context import Context
from gradwarden.policy.evaluation.admission import Admission
from gradwarden.policy.evaluation.batch import decide_columns
from gradwarden.policy.evaluation.evaluate import decide, truth_of
from gradwarden.policy.evaluation.replay import Replayer
from gradwarden.policy.program import Constant, Program
from gradwarden.policy.source import Source, Span
from gradwarden.policy.syntax.parse import parse
from tests.corpus.generate import FOLDER, context_of, corpus, decision_data, interpreter_of
from tests.policy.reference_interpreter import Given
from tests.policy.typed_texts import some_context, some_example, typed_text

FILES = ("handwritten.jsonl", "generated.jsonl")
GOOD = sorted((FOLDER.parent / "good").rglob("*.policy"))
Json = dict[str, Any]


@cache
def entries(file: str) -> tuple[Json, ...]:
    return tuple(json.loads(line) for line in (FOLDER / file).read_text("utf-8").splitlines())


ENTRIES = [pytest.param(entry, id=entry["name"]) for file in FILES for entry in entries(file)]


def policy_of(entry: Json, folder: Path) -> Policy:
    """Load an entry's policy the way another implementation would: from its files."""
    for path, text in {**entry["imports"], "main.policy": entry["policy"]}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, "utf-8")
    return load_policy(folder / "main.policy")


# --- the corpus ---------------------------------------------------------------------------------------------


def test_the_corpus_is_large_and_small_enough_to_carry() -> None:
    counts = {file: sum(len(entry["cases"]) for entry in entries(file)) for file in FILES}
    assert counts["handwritten.jsonl"] >= 150
    assert sum(counts.values()) >= 1_000
    assert sum((FOLDER / file).stat().st_size for file in FILES) < 2_000_000


def test_names_are_unique() -> None:
    names = [entry["name"] for file in FILES for entry in entries(file)]
    assert len(set(names)) == len(names)
    for file in FILES:
        for entry in entries(file):
            cases = [case["name"] for case in entry["cases"]]
            assert len(set(cases)) == len(cases), entry["name"]


def test_the_corpus_fits_its_published_schema() -> None:
    schema = json.loads((FOLDER / "conformance.schema.json").read_text("utf-8"))
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    for entry in (*entries(FILES[0])[::3], *entries(FILES[1])[::12]):
        validator.validate(entry)
    for broken in ({**entries(FILES[0])[0], "format": "other"}, {**entries(FILES[0])[0], "more": 1}):
        assert not validator.is_valid(broken)


@pytest.mark.soak
def test_every_line_of_the_corpus_fits_the_schema() -> None:
    schema = json.loads((FOLDER / "conformance.schema.json").read_text("utf-8"))
    for file in FILES:
        for entry in entries(file):
            jsonschema.Draft202012Validator(schema).validate(entry)


def test_the_files_are_those_that_the_generator_writes() -> None:
    """The part by hand is written anew; the drawn part takes longer, and is compared by `make soak`."""
    from tests.corpus.generate import GROUPS, handwritten

    assert [json.loads(json.dumps(handwritten(group))) for group in GROUPS] == list(entries(FILES[0]))


@pytest.mark.soak
def test_the_draw_gives_the_same_corpus_again() -> None:
    assert json.loads(json.dumps(corpus())) == {file: list(entries(file)) for file in FILES}


def test_every_verdict_stage_effect_and_problem_occurs() -> None:
    expected = [case["expect"] for file in FILES for entry in entries(file) for case in entry["cases"]]
    assert {e["verdict"] for e in expected} == {"admit", "limit", "defer", "refuse", "invalid"}
    stages = {"schema", "suppress", "retain", "privacy", "memorization", "curriculum", "pace", "depth"}
    assert {e["stage"] for e in expected} == {*stages, "modulate", "assert", None}
    effects = {effect for e in expected for _, effect in e["causes"]}
    wanted = {
        "suppressed",
        "capped",
        "quarantined",
        "expired",
        "embargoed",
        "exposures_spent",
        "epochs_spent",
    }
    wanted |= {"confined", "budget_spent", "memorized", "held_out", "not_open", "paced", "not_granted"}
    wanted |= {"assertion"}
    assert effects == wanted
    problems = {code for e in expected for _, code in e["problems"]}
    assert problems == {
        *("missing", "unknown_attribute", "wrong_type", "out_of_range", "unknown_value", "too_long")
    }


def test_drawn_conditions_go_both_ways() -> None:
    seen: dict[bool, int] = {True: 0, False: 0}
    for entry in entries("generated.jsonl")[::6]:
        program = parse_policy(entry["policy"]).program
        valid = [case for case in entry["cases"] if case["expect"]["verdict"] != "invalid"]
        truths = zip(*(truth_of(program, c["example"], context_of(c["context"])) for c in valid), strict=True)
        for condition, values in zip(program.conditions(), truths, strict=True):
            if not isinstance(condition, Constant):
                seen[len(set(values)) == 2] += 1
    assert seen[True] > 9 * seen[False]


# --- every reading of the language --------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_evaluator_decides_as_the_corpus_says(entry: Json, tmp_path: Path) -> None:
    program = compile_policy(policy_of(entry, tmp_path))
    interpreter = interpreter_of([entry["policy"], *entry["imports"].values()])
    for case in entry["cases"]:
        example, context, expect = case["example"], context_of(case["context"]), case["expect"]
        readings = {
            "evaluator": decision_data(decide(program, example, context)),
            "interpreter": interpreter.decide(example, Given(**case["context"])),
            "replayer": _replayed(program, example, context),
        }
        if example:  # a table without columns has no rows
            columns = {name: [value] for name, value in example.items()}
            readings["columns"] = decision_data(decide_columns(program, columns, context).decision(0))
        for reading, decision in readings.items():
            assert decision == expect, (reading, case["name"])


def _replayed(program: Program, example: Json, context: Context) -> Json:
    """Admit an example to a step, and decide it again from what the step records."""
    admission = Admission(program)
    admission.add([example])
    admitted = admission.admit(np.array([0]), context)
    replayer = Replayer(program)
    classes = [replayer.class_of(body) for body in admission.class_bodies()]
    (decision,) = replayer.replay_step(
        [classes[number] for number in admitted.class_ids],
        slots=admitted.slots,
        exposures=None if admitted.exposures is None else admitted.exposures.tolist(),
        signals={name: values.tolist() for name, values in admitted.signals.items()},
        step=context.step,
        epoch=context.epoch,
        today=context.today,
        spent=context.spent,
    )
    return decision_data(decision)


def _pinned(chosen: Iterator[Json] | list[Json], folder: Path) -> None:
    pytest.importorskip("z3", reason="proofs need the extra `prove`")
    from tests.policy.proving.test_encoding import check_pinned

    for number, entry in enumerate(chosen):
        program = compile_policy(policy_of(entry, folder / str(number)))
        for case in entry["cases"]:
            if case["expect"]["verdict"] != "invalid" and case["example"]:
                check_pinned(program, [case["example"]], context_of(case["context"]))


def test_the_solver_decides_as_the_evaluators(tmp_path: Path) -> None:
    _pinned([*entries(FILES[0])[::12], *entries(FILES[1])[::40]], tmp_path)


@pytest.mark.soak
def test_the_solver_decides_the_whole_corpus_as_the_evaluators(tmp_path: Path) -> None:
    _pinned([entry for file in FILES for entry in entries(file)], tmp_path)


@given(random=st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_a_second_reading_of_the_language_agrees(random: Random) -> None:
    """The compiled evaluator and the reference interpreter decide alike, whatever the policy says."""
    _agree(random)


@pytest.mark.soak
@pytest.mark.parametrize("part", range(8))
def test_soak_of_the_second_reading(part: int) -> None:
    for number in range(1_000):
        _agree(Random(part * 1_000 + number))


def _agree(random: Random) -> None:
    text = typed_text(random)
    try:
        text.rules.extend(_paces(random, parse_policy(text.text).program))
        program = parse_policy(text.text).program
    except PolicyError as error:  # the generator's fault: its texts type-check by construction
        raise AssertionError(f"{text.text}\n{error}") from None
    interpreter = interpreter_of([text.text])
    for _ in range(4):
        example, context = some_example(random, text.attributes), some_context(random, text)
        decision = decision_data(decide(program, example, context_of(context)))
        assert interpreter.decide(example, Given(**context)) == decision, (text.text, example, context)


def _paces(random: Random, program: Program) -> list[str]:
    """Paces of some bands, as text; none of those that noise moves."""
    private = {band for limit in program.limits if limit.privacy for band in limit.privacy.bands}
    bands = [band for band in program.band_names if band not in private and random.randrange(3) == 0]
    return [f"gradient {{ {band} at most 1 in {random.randint(2, 5)} steps }}" for band in bands]


# --- formatting ---------------------------------------------------------------------------------------------


def _texts() -> Iterator[Any]:
    for file in FILES:
        for entry in entries(file):
            yield pytest.param(entry["policy"], id=entry["name"])
            for path, text in entry["imports"].items():
                yield pytest.param(text, id=f"{entry['name']}/{path}")
    for path in GOOD:
        yield pytest.param(path.read_text("utf-8"), id=f"good/{path.stem}")


def without_spans(node: Any) -> Any:
    """A syntax tree as plain values, spans left out."""
    if isinstance(node, tuple):
        return [without_spans(item) for item in node]
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        fields: Mapping[str, Any] = {f.name: getattr(node, f.name) for f in dataclasses.fields(node)}
        plain = {name: without_spans(v) for name, v in fields.items() if not isinstance(v, Span | Source)}
        return (type(node).__name__, plain)
    return node


@pytest.mark.parametrize("text", list(_texts()))
def test_parsing_what_was_formatted_gives_the_same_tree(text: str) -> None:
    formatted = format_policy(text)
    before, after = (parse(Source("policy", x))[0] for x in (text, formatted))
    assert without_spans(before.items) == without_spans(after.items)
    assert format_policy(formatted) == formatted


@pytest.mark.parametrize("entry", ENTRIES)
def test_formatting_keeps_the_digest(entry: Json, tmp_path: Path) -> None:
    laid_out = {
        **entry,
        "policy": format_policy(entry["policy"]),
        "imports": {path: format_policy(text) for path, text in entry["imports"].items()},
    }
    before, after = policy_of(entry, tmp_path / "before"), policy_of(laid_out, tmp_path / "after")
    assert compile_policy(after).digest == compile_policy(before).digest
