"""Looks for examples: near those at hand, and one of every kind where the kinds can be listed.

Two values of an input are of one kind where no condition tells them apart. If each comparison reads one
input, and each text is only tested for being one of some texts, then the values at and next to all bounds
hold one of each kind (`inputs`; of steps that take turns, as many as a round has after each bound), and
trying all combinations tries everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from math import lcm, prod
from random import Random
from typing import Any

from gradwarden.policy.context import Context
from gradwarden.policy.evaluation.evaluate import holds, read_facts
from gradwarden.policy.program import Compare, Condition, Every, Program, Text
from gradwarden.policy.testing.inputs import (
    MAX_MARKS,
    Assignment,
    Domain,
    Variable,
    all_domains,
    has_one_bound,
    inputs_of,
    landmarks,
    leaves,
    roots,
    variables_read,
)

MAX_KINDS = 4_000
"""How many combinations are tried to show that two programs decide alike."""

MAX_TRIED = 800
"""How many examples are tried to find one."""

_STEP = Variable("clock", "step")

_FRESH = "\N{BLACK SQUARE}"
"""A text that no policy names, in all likelihood: the kind of all other texts."""


def assignment_of(program: Program, example: Mapping[str, Any], context: Context) -> dict[Variable, Any]:
    """Return the assignment that an example and a context are."""
    domains = all_domains(program)
    found: dict[Variable, Any] = {}
    for variable, domain in domains.items():
        match variable.kind:
            case "attribute":
                found[variable] = example.get(variable.name)
            case "signal":
                found[variable] = context.signals.get(variable.name, domain.values[0])
            case "clock":
                found[variable] = getattr(context, variable.name)
            case "spent":
                found[variable] = variable.name in context.spent
    return found


def simplest(program: Program) -> dict[Variable, Any]:
    """Return the assignment of the simplest value to every input."""
    return {variable: domain.values[0] for variable, domain in all_domains(program).items()}


def neighbours(
    program: Program, conditions: Iterable[Condition], bases: Sequence[Assignment]
) -> Iterator[dict[Variable, Any]]:
    """Yield examples that differ from those given, at most in what the conditions read. At most MAX_TRIED."""
    conditions = list(conditions)
    domains = {v: d for v, d in all_domains(program).items() if v in variables_read(conditions)}
    starts = [simplest(program), *bases]
    share = max(MAX_TRIED // len(starts), 40)
    between = [leaf for c in conditions for leaf in leaves(c) if isinstance(leaf, Compare)]
    between = [leaf for leaf in between if len(variables_read([leaf])) > 1]
    random = Random(0)
    for base in starts:
        for chosen in _changes(domains, share, random):
            assignment = {**base, **chosen}
            yield assignment
            yield from _on_the_line(assignment, between, domains)


def _changes(domains: Mapping[Variable, Domain], most: int, random: Random) -> Iterator[dict[Variable, Any]]:
    """Yield values for some inputs: one changed, then all combinations if they are few, or draws."""
    for variable, domain in domains.items():
        for value in domain.values[:most]:
            yield {variable: value}
    if prod(len(domain.values) for domain in domains.values()) <= most:
        for values in product(*(domain.values for domain in domains.values())):
            yield dict(zip(domains, values, strict=True))
        return
    for _ in range(most):
        changed = [variable for variable in domains if random.random() < 0.7]
        yield {variable: random.choice(domains[variable].values) for variable in changed}


def _on_the_line(
    assignment: Assignment, between: Sequence[Compare], domains: Mapping[Variable, Domain]
) -> Iterator[dict[Variable, Any]]:
    """Yield the assignment with one input moved to where a comparison between several is just decided."""
    for compare in between:
        read = variables_read([compare])
        known = {v: _encoded(domains[v], assignment.get(v)) for v in read if v in domains}
        for variable, domain in domains.items():
            if variable not in known or domain.scale is None:
                continue
            for root in roots(compare, variable, {v: n for v, n in known.items() if v != variable}):
                for value in (root - 1, root, root + 1):
                    if domain.scale.lo <= value <= domain.scale.hi:
                        yield {**assignment, variable: domain.scale.decode(value)}


def _encoded(domain: Domain, value: Any) -> int:
    return 0 if value is None or domain.scale is None else domain.scale.encode(value)


def find(
    program: Program, condition: Condition, wanted: bool, bases: Sequence[Assignment]
) -> dict[Variable, Any] | None:
    """Return an example on which a condition has the truth wanted, None where none was found."""
    for assignment in neighbours(program, [condition], bases):
        facts, problems = read_facts(program, *inputs_of(assignment))
        if not problems and holds(condition, facts) is wanted:
            return assignment
    return None


def kinds(program: Program, conditions: Iterable[Condition]) -> Iterator[dict[Variable, Any]] | None:
    """Return one example of each kind that conditions tell apart; None where they cannot be listed."""
    conditions = list(dict.fromkeys(conditions))
    read = variables_read(conditions)
    domains = {variable: domain for variable, domain in all_domains(program).items() if variable in read}
    if len(domains) != len(read):
        return None
    leaf_set = dict.fromkeys(leaf for condition in conditions for leaf in leaves(condition))
    marks, _ = landmarks(program)
    if any(isinstance(leaf, Compare) and not has_one_bound(leaf) for leaf in leaf_set):
        return None
    if any(len(marks.get(variable, ())) > MAX_MARKS for variable in read):
        return None
    period = lcm(*(leaf.steps for leaf in leaf_set if isinstance(leaf, Every)))
    values: dict[Variable, tuple[Any, ...]] = {}
    for variable, domain in domains.items():
        texts = [leaf for leaf in leaf_set if isinstance(leaf, Text) and leaf.attribute == variable.name]
        if variable.kind == "attribute" and texts:
            if any(leaf.test != "equals" for leaf in texts):
                return None
            named = dict.fromkeys(operand for leaf in texts for operand in leaf.operands)
            absent = [value for value in domain.values[:1] if value is None]
            values[variable] = (*absent, *named, _FRESH)
        elif variable == _STEP and period > 1:
            if period * len(domain.values) > MAX_KINDS:
                return None
            # Between two bounds conditions change their truth only as the step's remainder does.
            values[variable] = tuple({step + turn for step in domain.values for turn in range(period)})
        elif domain.whole or domain.scale is not None:
            values[variable] = domain.values
        else:
            return None  # a set with too many members
    if prod(len(listed) for listed in values.values()) > MAX_KINDS:
        return None
    base = simplest(program)
    return ({**base, **dict(zip(values, chosen, strict=True))} for chosen in product(*values.values()))
