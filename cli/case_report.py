"""One failed case in words: where decision and expectation part, and the example that shows it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click

from gradwarden.cli.diagnostics import printable
from gradwarden.policy.testing.expectations import observe, show

if TYPE_CHECKING:
    from gradwarden.policy.context import Context
    from gradwarden.policy.decision import Decision
    from gradwarden.policy.testing.inputs import Assignment
    from gradwarden.policy.testing.runner import CaseResult


def difference_lines(result: CaseResult) -> Iterator[str]:
    """Yield what was expected and what was decided instead, key by key; what agrees is left out."""
    for mismatch in result.mismatches:
        yield mismatch.key
        yield click.style(f"  - expected  {mismatch.expected}", fg="green")
        yield click.style(f"  + decided   {mismatch.actual}", fg="red")


def counterexample_lines(result: CaseResult) -> Iterator[str]:
    """Yield the example that a `for all` case fails on, in the form that `explain` takes."""
    if not result.is_counterexample:
        return
    yield f"failed on example {len(result.tried)} of those tried; made simpler, it is"
    yield from example_lines(result.case.example, result.case.context)


def example_lines(example: Mapping[str, Any], context: Context) -> Iterator[str]:
    """Yield an example as `explain --example` reads it, and the options that give its context."""
    yield f"  --example  {printable(json.dumps(plain(example), ensure_ascii=False))}"
    if options := context_options_text(context):
        yield f"  {printable(options)}"


def decisions_apart(decided: Decision, damaged: Decision) -> Iterator[str]:
    """Yield in what a decision and that of a damaged policy part."""
    for key in ("verdict", "weights", "rules", "advisory", "waived", "obligations", "stage"):
        one, other = observe(decided, key), observe(damaged, key)
        if key == "weights":
            one, other = (
                {band: weight for band, weight in side.items() if one[band] != other[band]}
                for side in (one, other)
            )
        if one != other:
            yield f"  {key}: {show(one)}, damaged {show(other)}"


def assignment_text(assignment: Assignment) -> str:
    """Return values of inputs in one line: `lines = 418, step = 10`."""
    parts = []
    for variable, value in assignment.items():
        if variable.kind == "spent":
            parts.append(f"the budget of {variable.name} {'spent' if value else 'not spent'}")
        elif value is None:
            parts.append(f"no {variable.name}")
        else:
            parts.append(f"{variable.name} = {json.dumps(plain(value), ensure_ascii=False)}")
    return printable(", ".join(parts))


def plain(value: Any) -> Any:
    """Return a value of an example as JSON data."""
    match value:
        case Mapping():
            return {key: plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case date():
            return value.isoformat()
        case _:
            return value


def context_options_text(context: Context) -> str:
    """Return the options of `explain` that give a context; those with their default are left out."""
    parts = [
        f"--{name} {value}"
        for name, value in (
            ("step", context.step),
            ("epoch", context.epoch),
            ("exposures", context.exposures),
        )
        if value
    ]
    if context.at is not None:
        parts.append(f"--at {context.at}")
    parts += [f"--set {name}={plain(value)}" for name, value in context.signals.items()]
    parts += [f"--spent {shlex.quote(rule)}" for rule in sorted(context.spent)]
    return " ".join(parts)


def context_json(context: Context) -> dict[str, Any]:
    """Return a context as JSON data, under the names of a test file."""
    return {
        "step": context.step,
        "epoch": context.epoch,
        "at": None if context.at is None else context.at.isoformat(),
        "exposures": context.exposures,
        "signals": plain(dict(context.signals)),
        "spent": sorted(context.spent),
    }
