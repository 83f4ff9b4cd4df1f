"""What is fuzzed: for each reader of foreign input a generator, and a run that must end in one of two ways.

Either the input is taken, and then what was promised of it must hold (formatting keeps the program, a
program reads back equal, both evaluators agree), or it is refused with a `GradwardenError`. Anything else is
a finding.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import yaml

from gradwarden.cli.explanation import explanation_lines
from gradwarden.cli.inputs import read_example
from gradwarden.cli.manifest import open_manifest
from gradwarden.policy.compile import compile_policy
from gradwarden.policy.context import EPOCH_DAY, Context
from gradwarden.policy.errors import GradwardenError
from gradwarden.policy.evaluation.batch import decide_columns
from gradwarden.policy.evaluation.explain import explain
from gradwarden.policy.load import load_policy, parse_policy
from gradwarden.policy.model_map import ModelMap, bind
from gradwarden.policy.program import AttributeSpec, Program
from gradwarden.policy.program_json import program_from_json, program_to_data
from gradwarden.policy.syntax.format import format_policy
from gradwarden.policy.testing.runner import fit_faults, run_cases
from gradwarden.policy.testing.test_file import parse_tests
from tests.fuzz.mutations import SCALARS, mutated, mutated_data
from tests.fuzz.sentences import declaration, policy_text

ROOT = Path(__file__).parents[2]
SMALL = 1_500
"""The longest seed, in characters: small inputs reach as deep as long ones, and many more are tried."""


@dataclass(frozen=True, slots=True)
class Target:
    """A reader of foreign input. `run` returns whether the input was taken."""

    generate: Callable[[Random], Any]
    run: Callable[[Any], bool]
    share: int
    """How many inputs of a thousand are its."""


def refused(error: GradwardenError) -> bool:
    """Render a refusal, as every caller would."""
    if not str(error).strip():
        raise AssertionError("a refusal without words")
    return False


# --- policy texts -------------------------------------------------------------------------------------------


@cache
def seeds() -> tuple[str, ...]:
    """Return the small texts of the corpus and of the library, good and bad."""
    paths = [*ROOT.glob("tests/corpus/*/*.policy"), *ROOT.glob("policies/*.policy")]
    texts = [path.read_bytes().decode("utf-8", "replace") for path in sorted(paths)]
    return tuple(text for text in texts if len(text) <= SMALL)


def any_declaration(random: Random) -> str:
    text = declaration(random)
    return mutated(random, text) if random.randrange(3) else text


def any_policy_text(random: Random) -> str:
    form = random.randrange(10)
    if form < 3:
        return policy_text(random)
    text = policy_text(random) if form < 9 else random.choice(seeds())
    return mutated(random, text)


def run_policy_text(text: str) -> bool:
    """Check and, where it is a policy, compile, format, write, read back and decide."""
    try:
        policy = parse_policy(text)
    except GradwardenError as error:
        return refused(error)
    program = compile_policy(policy)
    formatted = format_policy(text)
    assert format_policy(formatted) == formatted
    assert compile_policy(parse_policy(formatted)) == program
    assert program_from_json(program.to_json()) == program
    decide_both_ways(program, Random(len(text)))
    return True


def run_format(text: str) -> bool:
    """Format a text that need not check."""
    try:
        formatted = format_policy(text)
    except GradwardenError:
        return False
    assert format_policy(formatted) == formatted
    return True


def decide_both_ways(program: Program, random: Random) -> None:
    """Decide and explain examples, and hold the evaluators together."""
    rows = [some_example(program, random) for _ in range(2)]
    context = some_context(program, random)
    names = dict.fromkeys(name for row in rows for name in row)
    explanations = [explain(program, row, context) for row in rows]
    assert all("\n".join(explanation_lines(explanation)) for explanation in explanations)
    if names:  # a table without columns has no rows
        columns = decide_columns(program, {n: [row.get(n) for row in rows] for n in names}, context)
        assert [columns.decision(i) for i in range(len(rows))] == [e.decision for e in explanations]


def some_context(program: Program, random: Random) -> Context:
    return Context(
        step=random.choice((0, 1, 5, 10, 2**31 - 1)),
        epoch=random.choice((0, 1, 2, 3)),
        at=date(2026, 1, 31) + timedelta(random.choice((-400, -1, 0, 1, 400))),
        exposures=random.choice((0, 1, 3, 100)),
        signals={
            s.name: random.choice((s.lo, s.hi, 0.5, -1e9)) for s in program.signals if random.randrange(2)
        },
        spent=frozenset(limit.name for limit in program.limits if limit.privacy and random.randrange(2)),
    )


def some_example(program: Program, random: Random) -> dict[str, Any]:
    """Return metadata that mostly fit."""
    example = {}
    for spec in program.attributes:
        if not (spec.optional and random.randrange(3) == 0):
            example[spec.name] = some_value(spec, random) if random.randrange(20) else random.choice(SCALARS)
    if random.randrange(30) == 0:
        example[random.choice(("id", "extra", "\x00"))] = 1
    return example


def some_value(spec: AttributeSpec, random: Random) -> Any:
    match spec.type:
        case "bool":
            return bool(random.randrange(2))
        case "number":
            encoded = random.choice((spec.lo, spec.hi, random.randint(spec.lo, spec.hi)))
            return encoded if spec.places == 0 else encoded / 10**spec.places
        case "enum":
            return random.choice(spec.values)
        case "set":
            return [value for value in spec.values if random.randrange(2)]
        case "date":
            days = random.randint(spec.lo, spec.hi)
            return EPOCH_DAY + timedelta(days)
        case "string":
            return random.choice(("", "a", "ab", "éa", "restricted", "a" * 500))


# --- policies over several files ----------------------------------------------------------------------------

PATHS = (
    *("a.policy", "b.policy", "c.policy", "main.policy", "./a.policy", "sub/a.policy", "../a.policy", "sub"),
    *("/etc/passwd", "a", "missing.policy", "A" * 300 + ".policy", "é.policy", "", ".", "a\\\\b.policy"),
    *("sub/../a.policy", "link.policy", "loop.policy", "a.policy ", "\N{PILE OF POO}.policy", ".policy"),
)


def some_files(random: Random) -> dict[str, str]:
    files = {}
    for name in ("main.policy", "a.policy", "b.policy", "sub/a.policy"):
        paths = [random.choice(PATHS) for _ in range(random.choice((0, 1, 1, 2, 4)))]
        imports = "".join(f'import "{path}"\n' for path in paths)
        body = random.choice(("", "depth d { reach all }\n", policy_text(random)))
        files[name] = imports + body
    files["main.policy"] = "policy p version 1 language 1\nmodel { deep = rest }\n" + files["main.policy"]
    if random.randrange(4) == 0:
        name = random.choice(tuple(files))
        files[name] = mutated(random, files[name])
    return files


@cache
def folder() -> Path:
    """Return a folder for files under test, in memory where the system has such a place."""
    shared = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="gradwarden-fuzz-", dir=shared if shared.is_dir() else None))
    (root / "sub").mkdir()
    (root / "link.policy").symlink_to("a.policy")
    (root / "loop.policy").symlink_to("loop.policy")
    return root


def run_files(files: Mapping[str, str]) -> bool:
    for name, text in files.items():
        (folder() / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load_policy(folder() / "main.policy")
    except GradwardenError as error:
        return refused(error)
    return True


# --- programs -----------------------------------------------------------------------------------------------


@cache
def programs() -> tuple[tuple[Program, Any, bytes], ...]:
    """Return programs of the corpus, as data and as canonical JSON."""
    found = []
    for path in sorted(ROOT.glob("tests/corpus/good/*.policy")):
        program = compile_policy(load_policy(path))
        found.append((program, program_to_data(program), program.to_json().encode()))
    return tuple(found)


def some_program(random: Random) -> bytes:
    _, data, text = random.choice(programs())
    if random.randrange(4):
        words = text.decode()
        at = random.randrange(len(words))
        window = words[at : at + 200]
        return (words[:at] + mutated(random, window) + words[at + 200 :]).encode("utf-8", "surrogatepass")
    for _ in range(random.randint(1, 2)):
        data = mutated_data(random, data)
    return _dumped(data).encode("utf-8", "surrogatepass")


def _dumped(data: Any) -> str:
    try:
        return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    except (RecursionError, TypeError):  # too deep to write, or keys that cannot be sorted
        return "[" * 5_000


def run_program(data: bytes) -> bool:
    try:
        program = program_from_json(data)
    except GradwardenError as error:
        return refused(error)
    assert program.to_json().encode() == data
    decide_both_ways(program, Random(len(data)))
    return True


# --- test files, model maps, examples, manifests ------------------------------------------------------------

TESTS = """format: gradwarden/policy-test/1
cases:
  - name: one
    example: {license: MIT, lines: 120, at: 2026-01-31}
    context: {step: 0, at: 2026-01-01, epoch: 1, exposures: 2, signals: {loss: 1.0}, spent: [p]}
    expect: {verdict: admit, weights: {deep: 1}, rules: [permissive], stage: null, problems: []}
  - name: many
    table:
      base: {lines: 120}
      context: {at: 2026-01-01}
      rows:
        - {example: {license: MPL-2.0}, expect: {verdict: limit}}
        - {name: named, expect: {obligations: [privacy], waived: []}}
"""

MAP = """format: gradwarden/model-map/1
model: m
layers:
- {name: embed, block: null, depth: 1000000, parameters: [{name: e.w, shape: [2, 2], aliases: [h.w]}]}
- {name: b0, block: 0, depth: 500000, parameters: [{name: b.0.w, shape: [2]}]}
- {name: b1, block: 1, depth: 0, parameters: [{name: adapter.w, shape: [1]}]}
"""


def _yaml_text(random: Random, seed: str) -> str:
    if random.randrange(3):
        return mutated(random, seed)
    data = mutated_data(random, yaml.load(seed, Loader=yaml.CSafeLoader))
    return _dumped(data)


def run_tests(text: str) -> bool:
    program = programs()[0][0]
    try:
        tests = parse_tests(text, Path("x_test.yaml"))
    except GradwardenError as error:
        return refused(error)
    run_cases(program, [case for case in tests.cases if case.context.at is not None])
    assert all(map(str, fit_faults(program, tests)))
    return True


def run_map(text: str) -> bool:
    try:
        model_map = ModelMap.from_yaml(text)
        bind(programs()[0][0].bands, model_map)
    except GradwardenError as error:
        return refused(error)
    assert ModelMap.from_yaml(model_map.to_yaml()) == model_map
    return True


def some_record(random: Random) -> tuple[int, str]:
    number = random.randrange(len(programs()))
    data: Any = some_example(programs()[number][0], random)
    text = json.dumps(data, ensure_ascii=False, default=str)
    if random.randrange(2):
        text = mutated(random, text)
    return number, text


def run_example(record: tuple[int, str]) -> bool:
    number, text = record
    path = folder() / "example"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    program = programs()[number][0]
    try:
        example = read_example(path)
        explanation = explain(program, example, some_context(program, Random(len(text))))
    except GradwardenError as error:
        return refused(error)
    assert "\n".join(explanation_lines(explanation))
    json.dumps(explanation.to_json())
    return explanation.decision.verdict != "invalid"


def some_manifest(random: Random) -> tuple[int, str, str]:
    number = random.randrange(len(programs()))
    program = programs()[number][0]
    rows = [some_example(program, random) for _ in range(random.randint(1, 4))]
    ending = random.choice((".jsonl", ".csv", ".tsv"))
    if ending == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    else:
        comma = "," if ending == ".csv" else "\t"
        names = [spec.name for spec in program.attributes]
        cells = [[str(row.get(name, "")) for name in names] for row in rows]
        text = "".join(comma.join(line) + "\n" for line in [names, *cells])
    return number, ending, mutated(random, text) if random.randrange(3) else text


def run_manifest(manifest: tuple[int, str, str]) -> bool:
    number, ending, text = manifest
    path = folder() / f"data{ending}"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    program = programs()[number][0]
    context = some_context(program, Random(len(text)))
    taken = False
    try:
        for piece in open_manifest(path, program, 50).pieces:
            if piece.columns:
                decisions = decide_columns(program, piece.columns, context)
                taken = taken or bool((decisions.verdicts < 4).any())
    except GradwardenError as error:
        return refused(error)
    return taken


TARGETS: Mapping[str, Target] = {
    "policy": Target(any_policy_text, run_policy_text, 150),
    "format": Target(any_declaration, run_format, 250),
    "imports": Target(some_files, run_files, 20),
    "program": Target(some_program, run_program, 140),
    "tests": Target(lambda random: _yaml_text(random, TESTS), run_tests, 130),
    "model_map": Target(lambda random: _yaml_text(random, MAP), run_map, 10),
    "example": Target(some_record, run_example, 155),
    "manifest": Target(some_manifest, run_manifest, 155),
}
"""Every reader by name."""


def remove_folder() -> None:
    """Remove what `folder` made."""
    import shutil

    if folder.cache_info().currsize:
        shutil.rmtree(folder(), ignore_errors=True)
        folder.cache_clear()


def shown(value: Any) -> str:
    """Return an input in a form that can be pasted into a test."""
    return (
        value if isinstance(value, str) else os.fsdecode(value) if isinstance(value, bytes) else repr(value)
    )
