"""Makes a witness readable: plain values wherever it still shows the same.

A solver picks any values that fit; a person wants the plainest example. Each value is replaced in turn by
plainer ones, and what the reference evaluator says still shows it is kept. The solver has no part in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

from gradwarden.policy.context import EPOCH_DAY, Context
from gradwarden.policy.evaluation.values import encode_number, encode_value
from gradwarden.policy.program import AttributeSpec
from gradwarden.policy.proving.inputs import Inputs
from gradwarden.policy.proving.smt import TRUE
from gradwarden.policy.proving.witness import Holds, Witness, number

PLAIN_DAY = (date(2026, 1, 1) - EPOCH_DAY).days
"""The day that is tried first wherever a date is free."""

MOST_WORDS = 16
"""How many values of an enumeration are tried in place of the one found."""


def simplify(witness: Witness, inputs: Inputs, holds: Holds) -> Witness:
    """Return a plainer witness of which `holds` is true, as it must be of the one given."""
    metadata: Mapping[str, object] = witness.metadata
    context = witness.context
    for name in witness.metadata:
        metadata = _simpler_attribute(metadata, context, inputs, holds, name)
    for name in sorted(context.signals):
        context = _simpler_signal(metadata, context, inputs, holds, name)
    for name in ("step", "epoch", "exposures"):
        context = _fewer_counts(metadata, context, holds, name)
    if context.today is not None:
        kept = context
        day = _nearest(
            context.today, PLAIN_DAY, lambda v: holds(metadata, replace(kept, at=EPOCH_DAY + timedelta(v)))
        )
        context = replace(context, at=EPOCH_DAY + timedelta(day))
    for rule in sorted(context.spent):
        unspent = replace(context, spent=context.spent - {rule})
        context = unspent if holds(metadata, unspent) else context
    return Witness(metadata, context)


def _fewer_counts(metadata: Mapping[str, object], context: Context, holds: Holds, name: str) -> Context:
    def counted(value: int) -> Context:
        changes: dict[str, Any] = {name: value}
        return replace(context, **changes)

    return counted(_nearest(getattr(context, name), 0, lambda v: holds(metadata, counted(v))))


def _simpler_attribute(
    metadata: Mapping[str, object], context: Context, inputs: Inputs, holds: Holds, name: str
) -> Mapping[str, object]:
    made = inputs.named(name)
    without = {key: value for key, value in metadata.items() if key != name}
    if not any(one.present is TRUE for one in made) and holds(without, context):
        return without
    if len(made) > 1:
        return metadata

    def still(value: object) -> bool:
        return holds({**metadata, name: value}, context)

    return {**metadata, name: _simpler_value(made[0].spec, metadata[name], still)}


def _simpler_value(spec: AttributeSpec, value: Any, still: Callable[[object], bool]) -> object:
    match spec.type:
        case "bool":
            plain: list[object] = [False]
        case "string":
            plain = [""]
        case "enum":
            plain = list(spec.values[:MOST_WORDS])
        case "set":
            return _fewer(value, still)
        case "number":
            encoded = int(encode_value(spec, value))
            to = _nearest(encoded, min(max(0, spec.lo), spec.hi), lambda v: still(number(v, spec.places)))
            return number(to, spec.places)
        case "date":
            encoded = int(encode_value(spec, value))
            day = _nearest(encoded, min(max(PLAIN_DAY, spec.lo), spec.hi), lambda v: still(_iso(v)))
            return _iso(day)
    return next((one for one in plain if one == value or still(one)), value)


def _simpler_signal(
    metadata: Mapping[str, object], context: Context, inputs: Inputs, holds: Holds, name: str
) -> Context:
    """Leave a signal out, or bring it as near to its default as may be."""
    made = inputs.signals[name]
    others = {key: value for key, value in context.signals.items() if key != name}
    silent = replace(context, signals=others)
    if holds(metadata, silent):
        return silent

    def supplied(value: int) -> Context:
        return replace(context, signals={**others, name: number(value, made.places)})

    value = encode_number(context.signals[name], made.places, made.lo, made.hi)
    return supplied(_nearest(value, made.default, lambda v: holds(metadata, supplied(v))))


def _fewer(members: list[str], still: Callable[[object], bool]) -> list[str]:
    for member in members:
        fewer = [other for other in members if other != member]
        if still(fewer):
            members = fewer
    return members


def _nearest(value: int, plain: int, still: Callable[[int], bool]) -> int:
    """Return a value as near to the plain one as halving the distance finds."""
    if value == plain or still(plain):
        return plain
    bad, good = plain, value
    while abs(good - bad) > 1:
        middle = (good + bad) // 2
        if still(middle):
            good = middle
        else:
            bad = middle
    return good


def _iso(day: int) -> str:
    return (EPOCH_DAY + timedelta(day)).isoformat()
