"""Checks what a policy declares: attributes, signals, model bands, phases and the ceiling of weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from gradwarden.policy.checking.scope import Faults, Scope
from gradwarden.policy.checking.types import (
    DAYS_IN,
    DEFAULT_PLACES,
    EXACT,
    MAX_COUNT,
    MAX_DAY,
    MAX_ENUM_VALUES,
    MAX_PLACES,
    MAX_SET_VALUES,
    MAX_STRING,
    MIN_DAY,
    RESERVED,
    Attribute,
    PhaseEnd,
    Signal,
)
from gradwarden.policy.decimals import scaled
from gradwarden.policy.program import MAX_CEILING, SCALE, AttributeSpec, Band, Selector, SignalSpec
from gradwarden.policy.source import Span
from gradwarden.policy.syntax import tree as s

MAX_BANDS = 64
MAX_ATTRIBUTES = 1_000
MAX_NAME = 64

_is_plain = re.compile(r"[a-z_][a-z0-9_]*").fullmatch


def check_schema(items: Sequence[s.Item], faults: Faults) -> Scope:
    """Return the scope that the declarations of all files make; faults are collected."""
    scope = Scope(faults)
    schema = _Schema(scope, faults)
    for item in items:
        declare = _DECLARE.get(item.__class__)
        if declare:
            declare(schema, item)
    return scope


def whole(faults: Faults, quantity: s.Quantity, lo: int, hi: int, what: str) -> int | None:
    """Return a whole number within lo..hi, or report what it should be."""
    value = scaled(quantity.value, 0)
    if value is None or not lo <= value <= hi or quantity.unit:
        faults.error("GW310", f"{what} must be a whole number from {lo} to {hi}", quantity.span)
        return None
    return value


def check_name(faults: Faults, name: s.Name) -> bool:
    """Return whether a declared name has the form of a name, or report that it has not."""
    if _is_plain(name.text):
        if len(name.text) <= MAX_NAME:
            return True
        faults.error("GW206", f"a name has at most {MAX_NAME} characters", name.span)
    else:
        help = f"write `{name.text.lower()}`"
        faults.error("GW206", f"the name `{name.text}` is not in lower case", name.span, help)
    return False


class _Schema:
    def __init__(self, scope: Scope, faults: Faults) -> None:
        self.scope = scope
        self.faults = faults
        self.seen: dict[str, Span] = {}

    # --- names ----------------------------------------------------------------------------------------------

    def new_term(self, name: s.Name) -> bool:
        """Return whether a name may be declared for use in conditions."""
        if name.text in RESERVED:
            self.faults.error(
                "GW206", f"`{name.text}` is a word of the language", name.span, "choose another name"
            )
            return False
        return check_name(self.faults, name) and self.once("", name)

    def once(self, what: str, name: s.Name) -> bool:
        key = f"{what} {name.text}"
        if key in self.seen:
            self.faults.error(
                "GW205", f"`{name.text}` is declared twice", name.span, f"it is declared at {self.seen[key]}"
            )
            return False
        self.seen[key] = name.span
        return True

    def condition(self, item: s.Let | s.EntropyBand) -> None:
        if self.new_term(item.name):
            self.scope.named[item.name.text] = item

    # --- attributes and signals -----------------------------------------------------------------------------

    def attributes(self, examples: s.Examples) -> None:
        for field in examples.fields:
            self.attribute(field)

    def signals(self, signals: s.Signals) -> None:
        for field in signals.fields:
            self.signal(field)

    def attribute(self, field: s.Field) -> None:
        if not self.new_term(field.name):
            return
        if field.name.text == "id":
            self.faults.error(
                "GW206",
                "`id` is the identity of an example, not metadata",
                field.name.span,
                "choose another name",
            )
            return
        if len(self.scope.attributes) == MAX_ATTRIBUTES:
            self.faults.error("GW466", f"a policy has at most {MAX_ATTRIBUTES} attributes", field.span)
            return
        match field.type:
            case s.SimpleType():
                spec = self.simple(field, field.type)
            case s.ChoiceType():
                spec = self.choice(field, field.type)
            case s.RangeType():
                spec = self.number(field, field.type)
        self.scope.attributes[field.name.text] = Attribute(spec, field.name.span)

    def simple(self, field: s.Field, type_: s.SimpleType) -> AttributeSpec:
        name, optional = field.name.text, field.optional
        if type_.kind == "string":
            return AttributeSpec(name, "string", optional, hi=MAX_STRING)
        if type_.kind == "bool":
            return AttributeSpec(name, "bool", optional)
        lo = type_.lo.days if type_.lo else MIN_DAY
        hi = type_.hi.days if type_.hi else MAX_DAY
        if lo > hi:
            self.faults.error("GW307", "this range is empty", type_.span, "write the earlier day first")
        return AttributeSpec(name, "date", optional, lo, max(lo, hi))

    def choice(self, field: s.Field, type_: s.ChoiceType) -> AttributeSpec:
        values: dict[str, None] = {}
        for word in type_.values:
            if word.text in values:
                self.faults.error("GW205", f"the value `{word.text}` is listed twice", word.span)
            elif not word.quoted and not _is_plain(word.text):
                self.faults.error(
                    "GW206",
                    f"the value `{word.text}` is not in lower case",
                    word.span,
                    f'write `"{word.text}"`',
                )
            values[word.text] = None
        most = MAX_SET_VALUES if type_.kind == "set" else MAX_ENUM_VALUES
        if len(values) > most:
            self.faults.error("GW315", f"at most {most} values can be listed here", type_.span)
        return AttributeSpec(field.name.text, type_.kind, field.optional, values=tuple(values))

    def number(self, field: s.Field, type_: s.RangeType) -> AttributeSpec:
        lo, hi, places = self.range(type_)
        return AttributeSpec(field.name.text, "number", field.optional, lo, hi, places, unit=type_.unit)

    def range(self, type_: s.RangeType) -> tuple[int, int, int]:
        """Return lo, hi and places of a declared number type."""
        places = 0 if type_.kind == "integer" else DEFAULT_PLACES
        if type_.places:
            if type_.kind == "integer":
                self.faults.error("GW309", "an `integer` has no places", type_.places.span, "use `number`")
            places = whole(self.faults, type_.places, 0, MAX_PLACES, "the number of places") or 0
        if type_.unit in DAYS_IN:
            self.faults.error(
                "GW206",
                f"`{type_.unit}` is a unit of durations",
                type_.span,
                "leave the unit out, or use dates",
            )
        lo, hi = (self.bound(bound, places) for bound in (type_.lo, type_.hi))
        if lo > hi:
            self.faults.error("GW307", "this range is empty", type_.span, "write the lesser bound first")
        return min(lo, hi), max(lo, hi), places

    def bound(self, bound: s.Quantity, places: int) -> int:
        value = scaled(bound.value, places)
        if value is None:
            self.faults.error(
                "GW309",
                f"`{bound.span.text}` has more than {places} decimal places",
                bound.span,
                "declare `places`",
            )
            return 0
        if abs(value) > EXACT:
            self.faults.error(
                "GW308",
                f"`{bound.span.text}` is too large for a number of {places} decimal places",
                bound.span,
                "declare fewer `places`, or use `integer`" if places else None,
            )
            return 0
        return value

    def signal(self, field: s.SignalField) -> None:
        if not self.new_term(field.name):
            return
        lo, hi, places = self.range(field.type)
        default = lo
        if field.default is None:
            self.faults.error(
                "GW451",
                f"the signal `{field.name.text}` needs a `default`",
                field.span,
                "it holds until a run gives a value",
            )
        else:
            default = self.bound(field.default, places)
            if not lo <= default <= hi:
                self.faults.error("GW314", "this default is outside the signal's range", field.default.span)
                default = lo
        spec = SignalSpec(field.name.text, lo, hi, places, default)
        self.scope.signals[field.name.text] = Signal(spec, field.type.unit, field.name.span)

    # --- the model ------------------------------------------------------------------------------------------

    def model(self, model: s.Model) -> None:
        if not self.once("model", s.Name("model", model.span)):
            return
        if not 1 <= len(model.parts) <= MAX_BANDS:
            self.faults.error("GW462", f"a model has from 1 to {MAX_BANDS} bands", model.span)
        bands = []
        for part in model.parts:
            if part.name.text in RESERVED:
                self.faults.error("GW206", f"`{part.name.text}` is a word of the language", part.name.span)
            if check_name(self.faults, part.name) and self.once("part", part.name):
                selectors = tuple(self.selector(selector) for selector in part.selectors)
                bands.append(Band(part.name.text, _canonical(selectors)))
                self.scope.band_spans[part.name.text] = part.name.span
        self.fractions(model)
        self.scope.declare_bands(tuple(bands))
        for extra in model.semantics[1:]:
            self.faults.error("GW452", "`semantics` is given twice", extra.span)
        self.scope.semantics = model.semantics[0].value if model.semantics else "mask"

    def selector(self, selector: s.PartSelector) -> Selector:
        lo, hi = selector.lo, selector.hi
        match selector.kind:
            case "top" | "next" if lo:
                amount = scaled(lo.value, 4)
                if amount is None or not 0 < amount <= SCALE:
                    self.faults.error("GW462", "a share of the depth is above 0% and at most 100%", lo.span)
                return Selector(selector.kind, amount=amount or SCALE)
            case "blocks" if lo and hi:
                first, last = (whole(self.faults, n, 0, MAX_COUNT, "a block") or 0 for n in (lo, hi))
                if first > last:
                    self.faults.error("GW307", "this range of blocks is empty", selector.span)
                return Selector("blocks", lo=first, hi=max(first, last))
            case "names" if selector.pattern:
                if not selector.pattern.text:
                    self.faults.error("GW462", "this pattern is empty", selector.pattern.span)
                return Selector("names", patterns=(selector.pattern.text,))
            case _:
                return Selector("rest")

    def fractions(self, model: s.Model) -> None:
        """Shares of the depth are laid end to end from the output: one per band, `top` first, `rest` last."""
        total = 0
        last: s.PartSelector | None = None
        for part in model.parts:
            shares = [x for x in part.selectors if x.kind in ("top", "next", "rest")]
            for extra in shares[1:]:
                self.faults.error(
                    "GW462", "a band takes one share of the depth", extra.span, "add the shares up"
                )
            for share in shares[:1]:
                self.follow(share, last)
                last = share
                total += scaled(share.lo.value, 4) or 0 if share.lo else 0
                if total > SCALE:
                    self.faults.error("GW462", "the shares of the depth exceed 100%", share.span)
                    total = 0

    def follow(self, share: s.PartSelector, last: s.PartSelector | None) -> None:
        if last is None and share.kind == "next":
            self.faults.error("GW462", "`next` has nothing before it", share.span, "the first share is `top`")
        elif last is not None and share.kind == "top":
            self.faults.error("GW462", "`top` stands once, first", share.span, "write `next`")
        elif last is not None and last.kind == "rest":
            self.faults.error("GW462", "nothing is left after `rest`", share.span, "`rest` is the last share")

    # --- phases and the ceiling -----------------------------------------------------------------------------

    def phases(self, phases: s.Phases) -> None:
        if not self.once("phases", s.Name("phases", phases.span)):
            return
        ends = []
        for phase in phases.phases:
            if not (check_name(self.faults, phase.name) and self.once("phase", phase.name)):
                continue
            end = whole(self.faults, phase.end, 1, MAX_COUNT, "the end of a phase") if phase.end else 0
            ends.append((phase, PhaseEnd(phase.name.text, phase.clock, end or 0)))
        if not ends:
            self.faults.error("GW461", "no phase is declared", phases.span)
        for phase, _ in ends[:-1]:
            if phase.clock is None:
                self.faults.error(
                    "GW461",
                    f"the phase `{phase.name.text}` never ends",
                    phase.span,
                    "write `until step N` or `until epoch N`",
                )
        if ends and ends[-1][0].clock is not None:
            self.faults.error(
                "GW461",
                "the last phase must be open",
                ends[-1][0].span,
                "leave its `until` out, or add a phase",
            )
        for (_, before), (phase, after) in pairwise(ends):
            if before.clock == after.clock is not None and before.end >= after.end:
                self.faults.error("GW461", f"the phase `{after.name}` ends before it begins", phase.span)
        self.scope.phases = tuple(end for _, end in ends)

    def max_weight(self, item: s.MaxWeight) -> None:
        if not self.once("max weight", s.Name("max weight", item.span)):
            return
        ceiling = scaled(item.weight.value, 6)
        if ceiling is None or not SCALE <= ceiling <= MAX_CEILING:
            self.faults.error("GW454", "the greatest weight lies from 1 to 4", item.weight.span)
            return
        self.scope.ceiling = ceiling


_DECLARE: dict[type, Callable[[_Schema, Any], None]] = {
    s.Examples: _Schema.attributes,
    s.Signals: _Schema.signals,
    s.Let: _Schema.condition,
    s.EntropyBand: _Schema.condition,
    s.Model: _Schema.model,
    s.Phases: _Schema.phases,
    s.MaxWeight: _Schema.max_weight,
}
"""What takes in each kind of declaration; the others declare rules."""


def _canonical(selectors: tuple[Selector, ...]) -> tuple[Selector, ...]:
    """Sort the selectors of one band and join its name patterns, whose order has no meaning."""
    patterns = tuple(sorted({pattern for x in selectors for pattern in x.patterns}))
    rest = sorted({x for x in selectors if x.kind != "names"}, key=lambda x: (x.kind, x.lo, x.hi, x.amount))
    return (*rest, Selector("names", patterns=patterns)) if patterns else tuple(rest)
