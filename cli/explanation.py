"""A decision in words: the weights, what caused them, and the rules behind it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import click

from gradwarden.policy.decision import Decision
from gradwarden.policy.phrasing import Phrasing
from gradwarden.policy.program import Program
from gradwarden.policy.testing import show_weight

COLOURS = {"admit": "green", "limit": "yellow", "defer": "blue", "refuse": "red", "invalid": "magenta"}

EFFECTS = {
    "suppressed": "nothing may be learned",
    "capped": "some bands are capped",
    "quarantined": "only the quarantine band is open",
    "expired": "its retention period is over",
    "embargoed": "its embargo has not ended",
    "exposures_spent": "it has been learned as often as allowed",
    "epochs_spent": "its last epoch is over",
    "confined": "bands outside `within` are closed, noise is due inside",
    "budget_spent": "the privacy budget is spent",
    "memorized": "it counts as memorized",
    "not_open": "the stage has not opened some bands",
    "assertion": "the decision would break this assertion",
    "not_granted": "no depth rule grants anything",
}


class RuleNote(NamedTuple):
    """One rule that had a part in a decision."""

    name: str
    kind: str
    standing: str
    """matched, advisory or waived."""
    effect: str
    when: tuple[str, ...]
    because: str


def rule_notes(program: Program, decision: Decision) -> list[RuleNote]:
    """Return the rules that matched, in the order in which they are combined."""
    standing = dict.fromkeys(decision.rules, "matched")
    standing |= dict.fromkeys(decision.advisory, "advisory") | dict.fromkeys(decision.waived, "waived")
    effects: dict[str, list[str]] = {}
    for cause in decision.causes:
        effects.setdefault(cause.rule, []).append(cause.effect)
    return [
        RuleNote(name, kind, standing[name], effect or _effect_words(effects.get(name, [])), when, because)
        for name, kind, effect, when, because in _all_rules(program)
        if name in standing
    ]


def _effect_words(effects: list[str]) -> str:
    return "; ".join(EFFECTS[effect] for effect in dict.fromkeys(effects))


def _all_rules(program: Program) -> Iterator[tuple[str, str, str, tuple[str, ...], str]]:
    """Yield (name, kind, effect where it is fixed, conditions, because) of every rule."""
    phrasing = Phrasing(program)
    for grant in program.grants:
        reach = ", ".join(
            f"{band} at {show_weight(weight)}"
            for band, weight in zip(program.band_names, grant.weights, strict=True)
            if weight
        )
        when = (phrasing.condition(grant.when),)
        yield grant.name, "depth", f"reaches {reach or 'no band'}", when, grant.because
    for limit in program.limits:
        conditions = tuple(dict.fromkeys(phrasing.condition(clause.when) for clause in limit.clauses))
        yield limit.name, limit.kind, "", conditions, limit.because
    for modulation in program.modulations:
        bands = ", ".join(f"{s.band} by {s.signal}" for s in modulation.scalings)
        when = (phrasing.condition(modulation.when),)
        yield modulation.name, "modulate", f"scales {bands}", when, modulation.because
    for assertion in program.assertions:
        when = (phrasing.condition(assertion.when),)
        yield assertion.name, "assert", "", when, assertion.because


def explanation_lines(program: Program, decision: Decision) -> Iterator[str]:
    """Yield a decision in words, line by line, with colours that `click.echo` may strip."""
    yield click.style(decision.verdict, fg=COLOURS[decision.verdict], bold=True) + _headline(decision)
    width = max(map(len, decision.bands), default=0)
    for band, weight in zip(decision.bands, decision.micro, strict=True):
        yield f"  {band:<{width}}  {show_weight(weight)}"
    if decision.problems:
        yield click.style("problems", bold=True)
        for problem in decision.problems:
            yield f"  {problem.attribute}: {problem.detail} [{problem.code}]"
    if decision.obligations:
        yield click.style("obligations", bold=True)
        for obligation in decision.obligations:
            yield f"  {obligation.kind} (rule {obligation.rule}){_terms(obligation.privacy)}"
    notes = rule_notes(program, decision)
    if notes:
        yield click.style("rules", bold=True)
        for note in notes:
            yield from _note_lines(note)
    if any(cause.effect == "not_granted" for cause in decision.causes):
        yield click.style("not granted", bold=True) + ": no depth rule matched"
        for name, kind, effect, when, _ in _all_rules(program):
            if kind == "depth":
                yield f"  {name} {effect} when {when[0]}"


def _headline(decision: Decision) -> str:
    if decision.stage is None:
        return ""
    what = {"depth": "no depth rule grants anything", "schema": "the metadata break the schema"}
    return f": {what.get(decision.stage, f'stopped by {decision.stage}')}"


def _terms(terms: Any) -> str:
    if terms is None:
        return ""
    unit = f", unit {terms.unit}" if terms.unit else ""
    return f": epsilon {terms.epsilon}, delta {terms.delta}, clip {terms.clip}{unit}"


def _note_lines(note: RuleNote) -> Iterator[str]:
    standing = "" if note.standing == "matched" else f" ({note.standing}: not enforced)"
    effect = f": {note.effect}" if note.effect else ""
    yield f"  {click.style(note.name, bold=True)} [{note.kind}]{standing}{effect}"
    for when in note.when:
        yield f"    when {when}"
    if note.because:
        yield f"    because {note.because}"
