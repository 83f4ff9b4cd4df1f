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

if TYPE_CHECKING:
    from gradwarden.policy.context import Context
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
    yield f"  --example  {printable(json.dumps(plain(result.case.example), ensure_ascii=False))}"
    if options := context_options_text(result.case.context):
        yield f"  {printable(options)}"


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
