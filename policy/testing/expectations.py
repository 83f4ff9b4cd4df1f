"""What a test expects of a decision: exact values, and bounds where many decisions are meant.

    expect: {verdict: limit, weights: {deep: 0.5}, rules: [open, calm]}            # exact
    expect: {verdict: [refuse, defer], weights: {deep: at most 0.5}}               # one of; a bound
    expect: {rules: {with: [open], without: [calm]}}                               # some of a list
    expect: [never reach deep, at most 0.5 in middle, "verdict in [limit, refuse]", always refuse]

The last form is in the words of a policy's assertions; each sentence means the same as an entry above.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from gradwarden.policy.decision import OBLIGATIONS, VERDICTS, Decision, Stage
from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import MAX_CEILING, SCALE
from gradwarden.policy.source import Span
from gradwarden.policy.testing.reading import Reader
from gradwarden.policy.testing.yaml_text import Node

STAGES: tuple[str, ...] = get_args(Stage)
NAME_LISTS = ("rules", "advisory", "waived")
LISTS = (*NAME_LISTS, "obligations", "problems")
EXPECTATIONS = ("verdict", "weights", *NAME_LISTS, "obligations", "stage", "problems")

NOTHING_LEARNED = ("defer", "refuse", "invalid")
"""The verdicts of decisions whose weights are all 0."""

_BOUND = re.compile(r"at (most|least) +([0-9.eE+-]+)|([0-9.]+)\.\.([0-9.]+)")
_SENTENCES = (
    (re.compile(r"never +reach +(?P<band>\w+)"), "never"),
    (re.compile(r"at +(?P<side>most|least) +(?P<weight>[0-9.eE+-]+) +in +(?P<band>\w+)"), "bound"),
    (re.compile(r"verdict +in +\[(?P<verdicts>[\w ,]*)\]"), "verdicts"),
    (re.compile(r"always +refuse"), "refuse"),
)


@frozen
class Bound:
    """A weight in millionths that lies between two others, both included."""

    least: int = 0
    most: int = MAX_CEILING

    def __str__(self) -> str:
        if self.least == self.most:
            return show_weight(self.least)
        if self.least == 0:
            return f"at most {show_weight(self.most)}"
        if self.most == MAX_CEILING:
            return f"at least {show_weight(self.least)}"
        return f"{show_weight(self.least)}..{show_weight(self.most)}"


@frozen
class Some:
    """A list that holds some names and does not hold others."""

    with_: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


@frozen
class AnyOf:
    """One of several verdicts."""

    verdicts: tuple[str, ...]


@frozen
class Expectation:
    """One thing that a case expects, under its key of `expect`."""

    key: str
    value: Any
    span: Span
    names: tuple[Node, ...] = ()
    """Where the names of bands or rules stand in the text."""


@frozen
class Mismatch:
    """One expectation that a decision does not meet, both sides in the words of a test file."""

    key: str
    expected: str
    actual: str


def compare(expect: Sequence[Expectation], decision: Decision) -> Iterator[Mismatch]:
    """Yield what a decision does not meet, and of weights only those that differ."""
    for expectation in expect:
        actual, wanted = observe(decision, expectation.key), expectation.value
        match wanted:
            case dict():
                off = [band for band, weight in wanted.items() if not _weighs(actual.get(band), weight)]
                if off:
                    told = {band: wanted[band] for band in off}, {band: actual.get(band) for band in off}
                    yield Mismatch(expectation.key, show(told[0]), show(told[1]))
            case AnyOf(verdicts):
                if actual not in verdicts:
                    yield Mismatch(expectation.key, " or ".join(verdicts), show(actual))
            case Some(with_, without):
                missing = tuple(name for name in with_ if name not in actual)
                extra = tuple(name for name in without if name in actual)
                if missing or extra:
                    parts = [("with", missing), ("without", extra)]
                    told_parts = [f"{word} {show(names)}" for word, names in parts if names]
                    yield Mismatch(expectation.key, " ".join(told_parts), show(actual))
            case _ if wanted != actual:
                yield Mismatch(expectation.key, show(wanted), show(actual))


def _weighs(actual: int | None, wanted: int | Bound) -> bool:
    if isinstance(wanted, Bound):
        return actual is not None and wanted.least <= actual <= wanted.most
    return actual == wanted


def observe(decision: Decision, key: str) -> Any:
    """Return what a decision says under a key of `expect`, in a form to compare."""
    match key:
        case "weights":
            return dict(zip(decision.bands, decision.micro, strict=True))
        case "obligations":
            return tuple(sorted({obligation.kind for obligation in decision.obligations}))
        case "problems":
            return tuple(sorted({problem.attribute for problem in decision.problems}))
        case _:
            return getattr(decision, key)


def show(value: Any) -> str:
    """Return a value of a decision, or one that is expected, in the words of a test file."""
    match value:
        case None:
            return "null"
        case dict():
            return "{" + ", ".join(f"{band}: {_weight(weight)}" for band, weight in value.items()) + "}"
        case tuple():
            return "[" + ", ".join(value) + "]"
        case _:
            return str(value)


def _weight(weight: int | Bound | None) -> str:
    return str(weight) if isinstance(weight, Bound) else show_weight(weight)


def show_weight(micro: int | None) -> str:
    """Return a weight in millionths as the shortest decimal: `1`, `0.5`, `0.333333`."""
    if micro is None:
        return "null"
    whole, fraction = divmod(micro, SCALE)
    return f"{whole}.{fraction:06d}".rstrip("0").rstrip(".")


# --- reading ------------------------------------------------------------------------------------------------


def read_expectations(reader: Reader, node: Node | None) -> tuple[Expectation, ...]:
    """Return what `expect` says, as a mapping or as a list of sentences."""
    if node is None:
        return ()
    if node.value in ({}, ()):
        reader.fault("GW425", "`expect` is empty, so this case could never fail", node.span)
        return ()
    if isinstance(node.value, tuple):
        read = [_sentence(reader, item) for item in node.value]
        return tuple(expectation for expectation in read if expectation is not None)
    fields = reader.mapping(node, "`expect`", EXPECTATIONS)
    return tuple(_expectation(reader, key, value) for key, value in fields.items())


def _expectation(reader: Reader, key: str, node: Node) -> Expectation:
    if key == "weights":
        bands = reader.mapping(node, "`weights`", None)
        weights = {band: _bound(reader, value, band) for band, value in bands.items()}
        keys = tuple(pair[0] for pair in node.value.values()) if isinstance(node.value, dict) else ()
        return Expectation(key, weights, node.span, keys)
    if key == "verdict":
        return Expectation(key, _verdict(reader, node), node.span)
    if key == "stage":
        stage = None if node.value is None else reader.choice(node, "a stage", STAGES)
        return Expectation(key, stage, node.span)
    if isinstance(node.value, dict):
        fields = reader.mapping(node, f"`{key}`", ("with", "without"))
        if not fields:
            reader.fault("GW425", f"`{key}` is empty, so it could never fail", node.span)
        sides = {side: _names(reader, key, value) for side, value in fields.items()}
        empty: tuple[tuple[str, ...], tuple[Node, ...]] = ((), ())
        with_, without = sides.get("with", empty), sides.get("without", empty)
        return Expectation(key, Some(with_[0], without[0]), node.span, (*with_[1], *without[1]))
    names, where = _names(reader, key, node)
    return Expectation(key, names, node.span, where)


def _names(reader: Reader, key: str, node: Node) -> tuple[tuple[str, ...], tuple[Node, ...]]:
    pairs = reader.words(node, f"`{key}`")
    if key == "obligations":
        for word, where in pairs:
            reader.check_choice(word, where, "an obligation", OBLIGATIONS)
    nodes = tuple(where for _, where in pairs) if key in NAME_LISTS else ()
    return tuple(sorted({word for word, _ in pairs})), nodes


def _verdict(reader: Reader, node: Node) -> str | AnyOf:
    if not isinstance(node.value, tuple):
        return reader.choice(node, "a verdict", VERDICTS)
    if not node.value:
        reader.fault("GW425", "`verdict` lists none, so no decision could meet it", node.span)
    return AnyOf(tuple(reader.choice(item, "a verdict", VERDICTS) for item in node.value))


def _bound(reader: Reader, node: Node, band: str) -> int | Bound:
    """Read a weight: `0.5`, `at most 0.5`, `at least 0.5` or `0.1..0.5`."""
    found = _BOUND.fullmatch(node.value) if isinstance(node.value, str) else None
    if found is None:
        if isinstance(node.value, str):
            help = "write 0.5, at most 0.5, at least 0.5 or 0.1..0.5"
            reader.fault("GW423", f"`{node.value}` is not a weight of `{band}`", node.span, help)
            return 0
        return reader.weight(node, band)
    side, limit, low, high = found.groups()
    if side is None:
        bound = Bound(reader.micro(node, low, band), reader.micro(node, high, band))
        if bound.least > bound.most:
            reader.fault("GW423", f"no weight of `{band}` lies in {node.value}", node.span)
        return bound
    micro = reader.micro(node, limit, band)
    return Bound(most=micro) if side == "most" else Bound(least=micro)


def _sentence(reader: Reader, node: Node) -> Expectation | None:
    """Read one sentence of a list of expectations."""
    text = reader.text(node, "a sentence of `expect`")
    found = next(((m, kind) for pattern, kind in _SENTENCES if (m := pattern.fullmatch(text.strip()))), None)
    if found is None:
        if text:
            help = (
                "write `never reach BAND`, `at most W in BAND`, `verdict in [refuse, defer]`, `always refuse`"
            )
            reader.fault("GW427", f"`{text}` is not an expectation", node.span, help)
        return None
    match, kind = found
    if kind == "refuse":
        return Expectation("verdict", AnyOf(NOTHING_LEARNED), node.span)
    if kind == "verdicts":
        verdicts = tuple(match["verdicts"].replace(",", " ").split())
        for verdict in verdicts:
            reader.check_choice(verdict, node, "a verdict", VERDICTS)
        return Expectation("verdict", AnyOf(verdicts), node.span)
    band = match["band"]
    bound = Bound(most=0)
    if kind == "bound":
        micro = reader.micro(node, match["weight"], band)
        bound = Bound(most=micro) if match["side"] == "most" else Bound(least=micro)
    at = node.span.start + node.span.text.rfind(band)
    where = Node(band, Span(node.span.source, at, at + len(band)))
    return Expectation("weights", {band: bound}, node.span, (where,))
