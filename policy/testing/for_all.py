"""`for all` cases: an expectation that holds for every example of a domain, tried on a bounded part of it.

    - name: health data never reaches the deep band
      for all: {phi: [true], lines: 0..100, source: any}
      example: {kind: concept}                     # attributes with one value
      context: {at: 2026-01-01, step: 0..5000}     # values or, here too, domains
      samples: 256                                 # optional: how many examples are tried at most
      seed: 0                                      # optional: of those that are drawn
      expect: [never reach deep]

Attributes that neither `for all` nor `example` names take any value too, if some condition reads them. What
is tried is the same on every run: all combinations, where `samples` suffices; otherwise all combinations of
the inputs that are listed whole (truth values, enumerations, small sets, lists) as far as `samples` allows,
then every value of every input at least once while the others are simple, then draws. The first example that
fails is made simpler, input by input, for as long as it fails.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal, InvalidOperation
from itertools import product
from math import prod
from random import Random
from typing import Any, Literal

from gradwarden.policy.context import Context
from gradwarden.policy.errors import Diagnostic, did_you_mean
from gradwarden.policy.evaluation.values import Fault, encode_date, encode_number, encode_value
from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import AttributeSpec, Program
from gradwarden.policy.source import Span
from gradwarden.policy.testing.expectations import Expectation
from gradwarden.policy.testing.inputs import (
    MAX_COUNT,
    Assignment,
    Domain,
    Scale,
    Variable,
    all_domains,
    day_scale,
    inputs_of,
    landmarks,
    number_scale,
    ranged,
)
from gradwarden.policy.testing.yaml_text import Node

DEFAULT_SAMPLES = 256
MAX_SAMPLES = 10_000
MAX_SHRINKS = 2_000
"""How many simpler examples are tried in place of one that fails."""

_RANGE = re.compile(r"(.+?)\.\.(.+)")


@frozen
class Generator:
    """What a file says of one input: `any`, a range (its two ends as text), or a list of values."""

    kind: Literal["any", "range", "values"]
    node: Node
    ends: tuple[str, str] = ("", "")
    values: tuple[Node, ...] = ()


@frozen
class ForAll:
    """An expectation about all examples of a domain."""

    name: str
    generators: Mapping[str, Generator]
    example: Mapping[str, Node]
    context: Context
    drawn: Mapping[Variable, Generator]
    """Parts of the context with a domain of their own; `context` holds the others."""
    expect: tuple[Expectation, ...]
    samples: int
    seed: int
    span: Span


def read_generator(node: Node) -> Generator:
    """Return what a node says of the values of an input."""
    if node.value == "any":
        return Generator("any", node)
    if isinstance(node.value, tuple):
        return Generator("values", node, values=node.value)
    if isinstance(node.value, str) and (found := _RANGE.fullmatch(node.value)):
        return Generator("range", node, ends=(found[1].strip(), found[2].strip()))
    return Generator("values", node, values=(node,))


def is_domain(node: Node) -> bool:
    """Whether a value of `context` stands for several."""
    return read_generator(node).kind != "values" or isinstance(node.value, tuple)


class _Misfit(Exception):  # noqa: N818 - becomes a diagnostic
    """A generator that does not fit its input."""


def domains(program: Program, case: ForAll) -> tuple[dict[Variable, Domain], list[Diagnostic]]:
    """Return the domain of every input of a case, and what does not fit the program."""
    known = all_domains(program)
    faults: list[Diagnostic] = []
    chosen = {variable: domain for variable, domain in known.items() if variable.kind == "attribute"}
    specs = {spec.name: spec for spec in program.attributes}
    marks, _ = landmarks(program)
    for name, generator in {**case.generators, **_fixed(case.example)}.items():
        variable = Variable("attribute", name)
        if name not in specs:
            message = f"policy `{program.name}` has no attribute `{name}`"
            faults.append(Diagnostic("GW428", message, generator.node.span, did_you_mean(name, specs)))
            continue
        try:
            chosen[variable] = _of_attribute(specs[name], generator, known[variable], marks.get(variable, ()))
        except _Misfit as misfit:
            faults.append(Diagnostic("GW430", f"`{name}`: {misfit}", generator.node.span))
    for variable, generator in case.drawn.items():
        try:
            chosen[variable] = _of_context(program, variable, generator, known, marks.get(variable, ()))
        except _Misfit as misfit:
            faults.append(Diagnostic("GW430", f"`{variable.name}`: {misfit}", generator.node.span))
    return chosen, faults


def _fixed(example: Mapping[str, Node]) -> dict[str, Generator]:
    return {name: Generator("values", node, values=(node,)) for name, node in example.items()}


def _of_attribute(spec: AttributeSpec, generator: Generator, whole: Domain, marks: Sequence[int]) -> Domain:
    """Return the part of an attribute's values that a generator names. Raises _Misfit."""
    match generator.kind:
        case "any":
            return whole
        case "values":
            values = tuple(node.plain() for node in generator.values)
            if not values:
                raise _Misfit("an empty list")
            for value in values:
                _check_value(spec, value)
            return Domain(values, True)
        case "range":
            if spec.type == "number":
                scale = _number_range(generator.ends, spec.lo, spec.hi, spec.places)
                return ranged(scale, marks, min(max(0, scale.lo), scale.hi))
            if spec.type == "date":
                return ranged(_day_range(generator.ends, spec.lo, spec.hi), marks, None)
            raise _Misfit(f"a {spec.type} has no ranges: write `any` or a list of values")


def _check_value(spec: AttributeSpec, value: object) -> None:
    if value is None:
        if not spec.optional:
            raise _Misfit("it must not be absent")
        return
    try:
        encode_value(spec, value)
    except Fault as fault:
        raise _Misfit(fault.detail) from None


def _number_range(ends: tuple[str, str], lo: int, hi: int, places: int) -> Scale:
    try:
        first, last = (encode_number(Decimal(end), places, lo, hi) for end in ends)
    except (InvalidOperation, Fault):
        raise _Misfit(f"{ends[0]}..{ends[1]} is not a range of numbers") from None
    if not lo <= first <= last <= hi:
        whole = number_scale(lo, hi, places)
        raise _Misfit(
            f"{ends[0]}..{ends[1]} is empty or reaches beyond {whole.decode(lo)}..{whole.decode(hi)}"
        )
    return number_scale(first, last, places)


def _day_range(ends: tuple[str, str], lo: int, hi: int) -> Scale:
    try:
        first, last = (encode_date(end) for end in ends)
    except Fault:
        raise _Misfit(
            f"{ends[0]}..{ends[1]} is not a range of dates such as 2026-01-01..2026-12-31"
        ) from None
    if not lo <= first <= last <= hi:
        raise _Misfit(f"{ends[0]}..{ends[1]} is empty or reaches beyond the dates declared")
    return day_scale(date.fromisoformat(ends[0]), date.fromisoformat(ends[1]))


def _of_context(
    program: Program,
    variable: Variable,
    generator: Generator,
    known: Mapping[Variable, Domain],
    marks: Sequence[int],
) -> Domain:
    """Return the values of a part of the context. Raises _Misfit."""
    if variable.kind == "signal":
        signal = next((s for s in program.signals if s.name == variable.name), None)
        if signal is None:
            raise _Misfit(f"policy `{program.name}` has no such signal")
        if generator.kind == "any":
            return known.get(variable) or Domain((number_scale(0, 0, signal.places).decode(0),), True)
        if generator.kind == "range":
            scale = _number_range(generator.ends, signal.lo, signal.hi, signal.places)
            return ranged(scale, marks, min(max(signal.default, scale.lo), scale.hi))
        return _listed(generator, lambda value: isinstance(value, int | float), "numbers")
    if variable.name == "at":
        if generator.kind == "values":
            return _listed(generator, lambda value: isinstance(value, date), "dates")
        ends = generator.ends if generator.kind == "range" else ("1990-01-01", "2060-12-31")
        return ranged(_day_range(ends, *_ALL_DAYS), marks, None)
    if generator.kind == "values":
        return _listed(generator, lambda value: isinstance(value, int) and 0 <= value < 2**53, "counts")
    if generator.kind == "any":
        return known.get(variable) or Domain((0,), True)
    scale = _number_range(generator.ends, 0, MAX_COUNT, 0)
    return ranged(scale, marks, scale.lo)


_ALL_DAYS = (encode_date(date.min), encode_date(date.max))


def _listed(generator: Generator, fits: Callable[[Any], bool], noun: str) -> Domain:
    values = tuple(node.plain() for node in generator.values)
    if not values or not all(fits(value) and not isinstance(value, bool) for value in values):
        raise _Misfit(f"a list of {noun} is needed here")
    return Domain(values, True)


def assignments(inputs: Mapping[Variable, Domain], samples: int, seed: int) -> Iterator[dict[Variable, Any]]:
    """Yield at most `samples` assignments, each once, the same ones every time."""
    whole = {variable: domain for variable, domain in inputs.items() if domain.whole}
    combinations = prod(len(domain.values) for domain in whole.values())
    if len(whole) == len(inputs) and combinations <= samples:
        for values in product(*(domain.values for domain in whole.values())):
            yield dict(zip(whole, values, strict=True))
        return
    seen: set[str] = set()
    for assignment in _planned(inputs, whole if combinations <= samples else {}, samples, seed):
        key = repr(list(assignment.values()))
        if key not in seen:
            seen.add(key)
            yield assignment
        if len(seen) == samples:
            return


def _planned(
    inputs: Mapping[Variable, Domain], whole: Mapping[Variable, Domain], samples: int, seed: int
) -> Iterator[dict[Variable, Any]]:
    random = Random(seed)
    simplest = {variable: domain.values[0] for variable, domain in inputs.items()}
    yield simplest
    if whole:
        rest = {variable: domain for variable, domain in inputs.items() if variable not in whole}
        for values in product(*(domain.values for domain in whole.values())):
            drawn = {variable: domain.draw(random) for variable, domain in rest.items()}
            chosen = {**dict(zip(whole, values, strict=True)), **drawn}
            yield {variable: chosen[variable] for variable in inputs}
    for variable, domain in inputs.items():
        for value in domain.values:
            yield {**simplest, variable: value}
    for _ in range(4 * samples):
        yield {variable: domain.draw(random) for variable, domain in inputs.items()}


def shrink(
    fails: Callable[[Assignment], bool], assignment: Assignment, inputs: Mapping[Variable, Domain]
) -> dict[Variable, Any]:
    """Return an assignment that still fails and whose every input is as simple as could be found."""
    best = dict(assignment)
    left = MAX_SHRINKS
    improved = True
    while improved:
        improved = False
        for variable, domain in inputs.items():
            for value in domain.simpler(best[variable]):
                if left == 0:
                    return best
                left -= 1
                if fails({**best, variable: value}):
                    best[variable] = value
                    improved = True
                    break
    return best


def concrete(case: ForAll, assignment: Assignment) -> tuple[dict[str, Any], Context]:
    """Return the example and the context of an assignment."""
    example, drawn = inputs_of(assignment)
    base = case.context
    given = {variable.name for variable in assignment if variable.kind == "clock"}
    return example, Context(
        step=drawn.step if "step" in given else base.step,
        epoch=drawn.epoch if "epoch" in given else base.epoch,
        at=drawn.at if "at" in given else base.at,
        exposures=drawn.exposures if "exposures" in given else base.exposures,
        signals={**base.signals, **drawn.signals},
        spent=base.spent | drawn.spent,
    )
