"""What differs between the declarations of two programs: attributes and signals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gradwarden.policy.decimals import unscaled
from gradwarden.policy.evaluation.values import day_text
from gradwarden.policy.program import AttributeSpec, Program, SignalSpec


def schema_changes(old: Program, new: Program) -> Iterator[str]:
    """Yield what differs, one line each, by name."""
    yield from _changes(
        "attribute",
        {spec.name: _attribute(spec) for spec in old.attributes},
        {spec.name: _attribute(spec) for spec in new.attributes},
    )
    yield from _changes(
        "signal",
        {spec.name: _signal(spec) for spec in old.signals},
        {spec.name: _signal(spec) for spec in new.signals},
    )


def _changes(noun: str, old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    for name in sorted({*old, *new}):
        if name not in new:
            yield f"{noun} `{name}` is gone" + (": records that carry it are invalid" * (noun == "attribute"))
        elif name not in old:
            yield f"{noun} `{name}` is new: {new[name]}"
        elif old[name] != new[name]:
            yield f"{noun} `{name}`: {old[name]}, now {new[name]}"


def _attribute(spec: AttributeSpec) -> str:
    match spec.type:
        case "number":
            bounds = f"{unscaled(spec.lo, spec.places):f}..{unscaled(spec.hi, spec.places):f}"
            text = " ".join(filter(None, ["number", bounds, spec.unit, f"places {spec.places}"]))
        case "date":
            text = f"date {day_text(spec.lo)}..{day_text(spec.hi)}"
        case "enum":
            text = f"one of {', '.join(spec.values)}"
        case "set":
            text = f"set of {', '.join(spec.values)}"
        case _:
            text = spec.type
    return text + (" optional" if spec.optional else "")


def _signal(spec: SignalSpec) -> str:
    lo, hi, default = (f"{unscaled(value, spec.places):f}" for value in (spec.lo, spec.hi, spec.default))
    return f"number {lo}..{hi} default {default} places {spec.places}"
