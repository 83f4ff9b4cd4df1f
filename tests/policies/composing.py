"""Composes modules of the library as a policy would, and gathers examples that their tests vouch for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import cache
from importlib.resources import files
from pathlib import Path

from gradwarden.policy import compile_policy, load_policy, parse_policy
from gradwarden.policy.context import Context
from gradwarden.policy.program import Program
from gradwarden.policy.testing.test_file import Case, parse_tests, sibling_tests

FOLDER = Path(str(files("gradwarden.policies")))
MODULES = sorted(path.stem for path in FOLDER.glob("modules/*.policy"))
POLICIES = sorted(FOLDER.glob("*.policy"))
ANY_DAY = date(2026, 6, 1)

Given = tuple[Mapping[str, object], Context]
"""An example and the context it is decided in."""


@cache
def shipped(name: str) -> Program:
    return compile_policy(load_policy(FOLDER / f"{name}.policy"))


@cache
def compose(modules: tuple[str, ...], joined: str = "and") -> Program:
    """Return the policy that imports the modules and grants everything to what all of them admit."""
    admitted = f" {joined} ".join(f"{module}_admissible" for module in modules)
    lines = [
        "policy composed version 1 language 1",
        'import "schemas/depth_quarantine.policy"',
        *(f'import "modules/{module}.policy"' for module in modules),
        f"depth granted {{ when {admitted} reach all, quarantine }}",
    ]
    return parse_policy("\n".join(lines), "composed.policy", FOLDER).program


def within(part: Program, whole: Program) -> Program:
    """Return a program that decides as `part` does about records that carry what `whole` declares."""
    return replace(part, attributes=whole.attributes)


@cache
def vouched(module: str) -> tuple[Given, ...]:
    """Return the examples of the library's tests that fit a module alone, cut to what it declares."""
    alone = compose((module,))
    found = []
    for path in POLICIES:
        if not {limit.name for limit in alone.limits} <= {limit.name for limit in shipped(path.stem).limits}:
            continue
        tests = sibling_tests(path)
        for case in parse_tests(tests.read_text("utf-8"), tests).cases:
            if not isinstance(case, Case):
                continue
            example = project(case.example, alone)
            if alone.decide(example, case.context).verdict != "invalid":
                found.append((example, case.context))
    return tuple(found)


def project(example: Mapping[str, object], program: Program) -> dict[str, object]:
    declared = {spec.name for spec in program.attributes}
    return {name: value for name, value in example.items() if name in declared}


def merge(given: Sequence[Given]) -> Given:
    """Return one example that carries what all of them carry; the later wins where they differ.

    The clock is that of the last; a day is given even where none of them needs one.
    """
    example = {name: value for own, _ in given for name, value in own.items()}
    contexts = [context for _, context in given]
    signals = {name: value for context in contexts for name, value in context.signals.items()}
    spent = frozenset[str]().union(*(context.spent for context in contexts))
    at = next((context.at for context in reversed(contexts) if context.at), ANY_DAY)
    return example, replace(contexts[-1], at=at, signals=signals, spent=spent)


def widened(whole: Program, part: Program, given: Given) -> dict[str, tuple[int, int]]:
    """Return the bands that `whole` lets an example shape more than `part` does, with both weights.

    A band that `part` lacks may be shaped no more than the most that it allows in any band.
    """
    example, context = given
    ours = whole.decide(example, context)
    theirs = part.decide(project(example, part), context)
    allowed = {band: max(theirs.micro) for band in ours.bands} | dict(
        zip(theirs.bands, theirs.micro, strict=True)
    )
    weights = dict(zip(ours.bands, ours.micro, strict=True))
    return {band: (w, allowed[band]) for band, w in weights.items() if w > allowed[band]}
