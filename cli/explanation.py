"""A decision in words: the weights, what is owed, and the rules behind it with the values they read."""

from __future__ import annotations

from collections.abc import Iterator

import click

from gradwarden.cli.diagnostics import printable
from gradwarden.policy.decision import Decision, Obligation
from gradwarden.policy.evaluation.explain import ConditionTrace, Explanation, MaintainedBands, RuleTrace
from gradwarden.policy.testing.runner import show_weight

COLOURS = {"admit": "green", "limit": "yellow", "defer": "blue", "refuse": "red", "invalid": "magenta"}

REASONS = {"depth": "no depth rule grants anything", "schema": "the metadata break the schema"}


def explanation_lines(explanation: Explanation) -> Iterator[str]:
    """Yield an explanation line by line, with colours that `click.echo` may strip."""
    decision = explanation.decision
    yield click.style(decision.verdict, fg=COLOURS[decision.verdict], bold=True) + _reason(decision)
    width = max(map(len, decision.bands), default=0)
    for band, weight in zip(decision.bands, decision.micro, strict=True):
        yield f"  {band:<{width}}  {show_weight(weight)}"
    yield from _section("problems", (_problem(p.attribute, p.code, p.detail) for p in explanation.problems))
    yield from _section("obligations", map(_obligation, decision.obligations))
    bearing = [rule for rule in explanation.rules if rule.state != "silent"]
    yield from _section("rules", (line for rule in bearing for line in _rule(rule)))
    yield from _section("maintained", (line for rule in explanation.maintained for line in _maintained(rule)))
    if any(cause.effect == "not_granted" for cause in decision.causes):
        grants = [rule for rule in explanation.rules if rule.role == "grants"]
        lines = (line for grant in grants for line in _rule(grant, holding=False))
        yield from _section("not granted, for none of these held", lines)


def _section(heading: str, lines: Iterator[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        if number == 0:
            yield click.style(heading, bold=True)
        yield f"  {line}"


def _reason(decision: Decision) -> str:
    if decision.stage is None:
        return ""
    return f": {REASONS.get(decision.stage, f'stopped by {decision.stage}')}"


def _problem(attribute: str, code: str, detail: str) -> str:
    return f"{attribute}: {printable(detail)} [{code}]"


def _obligation(obligation: Obligation) -> str:
    terms = obligation.privacy
    if obligation.one_in is not None:
        return f"{obligation.kind} (rule {obligation.rule}): 1 in {obligation.one_in} tokens"
    if terms is None:
        return f"{obligation.kind} (rule {obligation.rule})"
    unit = f", unit {terms.unit}" if terms.unit else ""
    told = f"epsilon {terms.epsilon}, delta {terms.delta}, clip {terms.clip}{unit}"
    if terms.noise:
        told += f", noise at most {terms.noise}"
    if terms.spent == "halt":
        told += "; the run halts when the budget is spent"
    return f"{obligation.kind} (rule {obligation.rule}): {told}"


def _rule(rule: RuleTrace, *, holding: bool = True) -> Iterator[str]:
    """Yield a rule with those of its conditions that hold, or that do not."""
    state = "" if rule.state in ("enforced", "silent") else f" ({rule.state}: not enforced)"
    yield f"{click.style(rule.name, bold=True)} [{rule.kind}]{state}"
    for condition in rule.conditions:
        if condition.holds == holding or rule.role == "asserts":
            yield from _condition(condition)
    if rule.because and holding:
        yield f"  because {printable(rule.because)}"


def _maintained(rule: MaintainedBands) -> Iterator[str]:
    state = "" if rule.level == "hard" else " (advisory: measured, not enforced)"
    yield f"{click.style(rule.name, bold=True)} [maintain]{state}"
    yield f"  {', '.join(rule.bands)}: {rule.terms}"
    if rule.because:
        yield f"  because {printable(rule.because)}"


def _condition(condition: ConditionTrace) -> Iterator[str]:
    yield f"  {condition.effect}"
    values = ", ".join(f"{name} = {value}" for name, value in condition.values.items())
    yield f"    when {printable(condition.text)}" + (f"  ({printable(values)})" if values else "")
