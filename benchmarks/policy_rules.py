"""One policy of a hundred rules in four languages, from one table, over the examples of `policy_eval_cases`.

Ten rules grant and ninety forbid. Each has one to three tests; all are drawn once and for all. The peers
state the same thing: may this example be learned from?
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from benchmarks.policy_eval_cases import DECLARATIONS, LICENSES, ORIGINS, PII, REGIONS, SOURCES

GRANTS, LIMITS = 10, 90


@dataclass(frozen=True, slots=True)
class Test:
    """One test of an attribute. `kind`: in, flag, not, least, below, holds or is."""

    kind: str
    attribute: str
    operand: tuple[str, ...] | int = ()


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    tests: tuple[Test, ...]


def rules() -> tuple[list[Rule], list[Rule]]:
    """Return the rules that grant and those that forbid."""
    draw = Random(100)
    grants = [Rule(f"grant_{i:02}", tuple(_tests(draw, draw.choice((1, 1, 2))))) for i in range(GRANTS)]
    limits = [Rule(f"limit_{i:02}", tuple(_tests(draw, draw.choice((2, 3, 3))))) for i in range(LIMITS)]
    return grants, limits


def _tests(draw: Random, count: int) -> list[Test]:
    """Return tests of different attributes."""
    makers: Mapping[str, Callable[[], Test]] = {
        "license": lambda: Test("in", "license", tuple(sorted(draw.sample(LICENSES, 2)))),
        "source": lambda: Test("in", "source", tuple(sorted(draw.sample(SOURCES, 2)))),
        "region": lambda: Test("in", "region", (draw.choice(REGIONS),)),
        "consent": lambda: Test("not", "consent"),
        "erasure": lambda: Test("flag", "erasure"),
        "minor": lambda: Test("flag", "minor"),
        "pii": lambda: Test("flag", "pii"),
        "pii_kinds": lambda: Test("holds", "pii_kinds", (draw.choice(PII),)),
        "age_days": lambda: Test("least", "age_days", draw.randrange(600, 1500)),
        "sensitivity": lambda: Test("least", "sensitivity", draw.randrange(2, 5)),
        "score": lambda: Test("below", "score", draw.randrange(5, 40) * 10_000),
        "origin": lambda: Test("is", "origin", (draw.choice(ORIGINS),)),
    }
    return [makers[name]() for name in draw.sample(sorted(makers), count)]


def policy_text() -> str:
    grants, limits = rules()
    lines = [f"depth {rule.name} {{ when {_joined(rule, _policy, ' and ')}  reach all }}" for rule in grants]
    lines += [f"suppress {rule.name} {{ when {_joined(rule, _policy, ' and ')} }}" for rule in limits]
    return "policy hundred version 1\n" + DECLARATIONS + "\n".join(lines) + "\n"


def cedar_text() -> str:
    grants, limits = rules()
    form = "{effect}(principal, action, resource) when {{ {when} }};"
    lines = [form.format(effect="permit", when=_joined(rule, _cedar, " && ")) for rule in grants]
    lines += [form.format(effect="forbid", when=_joined(rule, _cedar, " && ")) for rule in limits]
    return "\n".join(lines)


def cel_text() -> str:
    grants, limits = (" || ".join(f"({_joined(rule, _cel, ' && ')})" for rule in group) for group in rules())
    return f"({grants}) && !({limits})"


def rego_text() -> str:
    grants, limits = rules()
    lines = [f"granted if {{ {_joined(rule, _rego, '; ')} }}" for rule in grants]
    lines += [f"forbidden if {{ {_joined(rule, _rego, '; ')} }}" for rule in limits]
    head = ["package hundred", "default allow := false", "allow if { granted; not forbidden }"]
    return "\n".join([*head, *lines]) + "\n"


def _joined(rule: Rule, form: Callable[[Test], str], joint: str) -> str:
    return joint.join(form(test) for test in rule.tests)


def _policy(test: Test) -> str:
    name, operand = test.attribute, test.operand
    match test.kind:
        case "in":
            return f"{name} in [{', '.join(_words(operand))}]"
        case "flag":
            return name
        case "not":
            return f"not {name}"
        case "least":
            return f"{name} >= {operand}"
        case "below":
            return f"{name} < {_number(operand) / 1_000_000}"
        case "holds":
            return f"{name} contains {_words(operand)[0]}"
        case _:
            return f'{name} == "{_words(operand)[0]}"'


def _cedar(test: Test) -> str:
    name, operand = f"context.{test.attribute}", test.operand
    match test.kind:
        case "in":
            return f"[{_quoted(operand)}].contains({name})"
        case "holds":
            return f"{name}.contains({_quoted(operand)})"
        case _:
            return _common(test, name, "!")


def _cel(test: Test) -> str:
    name, operand = test.attribute, test.operand
    match test.kind:
        case "in":
            return f"{name} in [{_quoted(operand)}]"
        case "holds":
            return f"{_quoted(operand)} in {name}"
        case _:
            return _common(test, name, "!")


def _rego(test: Test) -> str:
    name, operand = f"input.{test.attribute}", test.operand
    match test.kind:
        case "in":
            return f"{name} in {{{_quoted(operand)}}}"
        case "holds":
            return f"{_quoted(operand)} in {name}"
        case _:
            return _common(test, name, "not ")


def _common(test: Test, name: str, negation: str) -> str:
    """Return a test that the peers write alike."""
    match test.kind:
        case "flag":
            return name
        case "not":
            return f"{negation}{name}"
        case "least":
            return f"{name} >= {test.operand}"
        case "below":
            return f"{name} < {test.operand}"
        case _:
            return f"{name} == {_quoted(test.operand)}"


def _quoted(operand: tuple[str, ...] | int) -> str:
    return ", ".join(f'"{word}"' for word in _words(operand))


def _words(operand: tuple[str, ...] | int) -> tuple[str, ...]:
    assert isinstance(operand, tuple)
    return operand


def _number(operand: tuple[str, ...] | int) -> int:
    assert isinstance(operand, int)
    return operand
