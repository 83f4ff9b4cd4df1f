"""The outcome of comparing two policies, as text and as JSON data."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradwarden.cli.diagnostics import plural, printable
from gradwarden.cli.output import emit_table
from gradwarden.policy.decimals import unscaled
from gradwarden.policy.evaluation.explain import weights_text
from gradwarden.policy.frozen import frozen

if TYPE_CHECKING:
    from gradwarden.policy.comparing.counts import Count, DataDifference
    from gradwarden.policy.comparing.pairs import Cell
    from gradwarden.policy.comparing.programs import Difference, Shown
    from gradwarden.policy.comparing.rules import RuleDifference
    from gradwarden.policy.decision import Decision
    from gradwarden.policy.program import Program

COLOURS = {"same": None, "wider": "red", "narrower": "green", "both": "red", "unknown": "yellow"}
WORDS = {"both": "wider and narrower"}


@frozen
class Outcome:
    """All that was found out about two programs. comparable: some example fits both schemas."""

    old: Program
    new: Program
    parts: tuple[Cell, ...]
    comparable: bool
    bands: tuple[Difference, ...]
    privacy: tuple[Difference, ...]
    gradients: tuple[Difference, ...]
    maintenance: tuple[Difference, ...]
    semantics: tuple[Difference, ...]
    guards: tuple[Difference, ...]
    rules: tuple[RuleDifference, ...]
    schema: tuple[str, ...]
    counts: DataDifference | None = None
    exceeded: tuple[str, ...] = ()

    @property
    def decided(self) -> tuple[Difference, ...]:
        """What of the differences bears on what is learned; rules do so through these alone, guards never."""
        return (*self.bands, *self.privacy, *self.gradients, *self.maintenance, *self.semantics)

    @property
    def widens(self) -> bool:
        return any(difference.widens for difference in self.decided)

    @property
    def relation(self) -> str:
        """The differences in one word; what is unknown outweighs the rest."""
        found = {difference.relation for difference in self.decided} - {"same"}
        if "unknown" in found:
            return "unknown"
        return "both" if len(found) > 1 else found.pop() if found else "same"


# --- text ---------------------------------------------------------------------------------------------------


def show(outcome: Outcome, old: Path, new: Path) -> None:
    """Write the outcome to standard output."""
    for side, path, program in (("old", old, outcome.old), ("new", new, outcome.new)):
        click.echo(printable(f"{side}: {program.name} version {program.version} ({path})"))
    _show_lines("schema", outcome.schema)
    if not outcome.comparable:
        click.echo("no record fits both schemas: rules cannot be compared one by one (see --renamed)")
    for heading, differences in (
        ("bands", outcome.bands),
        ("privacy", outcome.privacy),
        ("gradients", outcome.gradients),
        ("maintenance", outcome.maintenance),
        ("model", outcome.semantics),
    ):
        _show_differences(heading, [(d.subject, d) for d in differences], outcome, new)
    _show_differences("starvation guards", [(d.subject, d) for d in outcome.guards], outcome, new)
    titles = [(f"{rule.kind} {rule.title}", rule.difference) for rule in outcome.rules]
    _show_differences("rules, each by itself", titles, outcome, new)
    if outcome.counts is not None:
        _show_counts(outcome.counts)
    for line in outcome.exceeded:
        click.echo(click.style(line, fg="red"))
    click.echo(_styled(outcome.relation) + _conclusion(outcome))


def _show_lines(heading: str, lines: Iterable[str]) -> None:
    for number, line in enumerate(lines):
        if not number:
            click.echo(click.style(heading, bold=True))
        click.echo(f"  {printable(line)}")


def _show_differences(heading: str, items: list[tuple[str, Difference]], outcome: Outcome, new: Path) -> None:
    if not items:
        return
    click.echo(click.style(heading, bold=True))
    width = max(len(title) for title, _ in items)
    for title, difference in items:
        notes = f" ({'; '.join(difference.notes)})" if difference.notes else ""
        click.echo(f"  {printable(title):{width}}  {_styled(difference.relation)}{printable(notes)}")
        for word, shown in (("wider", difference.wider), ("narrower", difference.narrower)):
            if shown is not None:
                _show_example(word, shown, outcome, new)


def _show_example(word: str, shown: Shown, outcome: Outcome, new: Path) -> None:
    click.echo(f"    {word} for {printable(shown.witness.to_json())}")
    for side, decision in (("old", shown.before), ("new", shown.after)):
        click.echo(f"      {side}: {_decision(decision)}")
    click.echo(click.style(f"      $ {printable(shown.witness.command(str(new), outcome.new))}", dim=True))


def _decision(decision: Decision) -> str:
    rules = ", ".join(decision.rules) or "no rule"
    if decision.problems:
        rules = "; ".join(f"{problem.attribute}: {problem.detail}" for problem in decision.problems)
    return printable(f"{decision.verdict}, {weights_text(decision)} [{rules}]")


def _show_counts(counts: DataDifference) -> None:
    click.echo(click.style(f"data: {plural(counts.examples, 'example')}", bold=True))
    rows = [("any band", counts.any), *counts.by_band.items()]
    rows += [
        (f"rule {now or was}", count)
        for (was, now), count in counts.by_rule.items()
        if count.gained or count.lost
    ]
    headings, numeric = ["", "gained", "lost"], [1, 2]
    if counts.tokens:
        headings += [f"{counts.tokens} gained", f"{counts.tokens} lost"]
        numeric += [3, 4]
    emit_table(headings, [_row(title, count, counts) for title, count in rows], numeric=numeric)


def _row(title: str, count: Count, counts: DataDifference) -> list[str]:
    row = [title, f"{count.gained:,}", f"{count.lost:,}"]
    if counts.tokens:
        row += [f"{_total(value, counts):,}" for value in (count.tokens_gained, count.tokens_lost)]
    return row


def _total(value: int, counts: DataDifference) -> Any:
    """Return a sum of scaled values as a number: an int where it is whole."""
    places = next(spec.places for spec in counts.new.attributes if spec.name == counts.tokens)
    exact = unscaled(value, places)
    return int(exact) if exact == int(exact) else float(exact)


def _styled(relation: str) -> str:
    return click.style(WORDS.get(relation, relation), fg=COLOURS[relation], bold=relation != "same")


def _conclusion(outcome: Outcome) -> str:
    words = {
        "same": "every example is decided as before, in every context",
        "wider": "the new policy lets more be learned",
        "narrower": "the new policy lets less be learned, and nothing more",
        "both": "the new policy lets more be learned in some cases, less in others",
        "unknown": "it could not be found out whether more can be learned",
    }
    return f": {words[outcome.relation]}"


# --- JSON ---------------------------------------------------------------------------------------------------


def to_json(outcome: Outcome, old: Path, new: Path) -> dict[str, Any]:
    """Return the outcome as JSON data."""
    sides = (("old", old, outcome.old), ("new", new, outcome.new))
    document: dict[str, Any] = {
        side: {"path": str(path), "name": program.name, "version": program.version, "digest": program.digest}
        for side, path, program in sides
    }
    document |= {
        "relation": outcome.relation,
        "widens": outcome.widens,
        "schema": list(outcome.schema),
        "bands": [_difference(d, outcome) for d in outcome.bands],
        "privacy": [_difference(d, outcome) for d in outcome.privacy],
        "gradients": [_difference(d, outcome) for d in outcome.gradients],
        "maintenance": [_difference(d, outcome) for d in outcome.maintenance],
        "semantics": [_difference(d, outcome) for d in outcome.semantics],
        "guards": [_difference(d, outcome) for d in outcome.guards],
        "rules": [
            {
                "kind": rule.kind,
                "was": rule.was or None,
                "now": rule.now or None,
                **_difference(rule.difference, outcome),
            }
            for rule in outcome.rules
        ],
        "data": None if outcome.counts is None else _counts(outcome.counts),
        "exceeded": list(outcome.exceeded),
    }
    return document


def _difference(difference: Difference, outcome: Outcome) -> dict[str, Any]:
    return {
        "name": difference.subject,
        "relation": difference.relation,
        "wider": _example(difference.wider, outcome),
        "narrower": _example(difference.narrower, outcome),
        "notes": list(difference.notes),
    }


def _example(shown: Shown | None, outcome: Outcome) -> dict[str, Any] | None:
    if shown is None:
        return None
    return {
        "example": json.loads(shown.witness.to_json()),
        "context": shown.witness.context_json(outcome.new),
        "before": shown.before.to_json(),
        "after": shown.after.to_json(),
    }


def _counts(counts: DataDifference) -> dict[str, Any]:
    return {
        "examples": counts.examples,
        "tokens": counts.tokens or None,
        "any": _count(counts.any, counts),
        "bands": {name: _count(count, counts) for name, count in counts.by_band.items()},
        "rules": [
            {"was": was or None, "now": now or None, **_count(count, counts)}
            for (was, now), count in counts.by_rule.items()
        ],
        "verdicts": [
            {"before": before, "after": after, "examples": examples}
            for (before, after), examples in sorted(counts.verdicts.items())
        ],
    }


def _count(count: Count, counts: DataDifference) -> dict[str, Any]:
    data: dict[str, Any] = {"gained": count.gained, "lost": count.lost}
    if counts.tokens:
        data["tokens_gained"] = _total(count.tokens_gained, counts)
        data["tokens_lost"] = _total(count.tokens_lost, counts)
    return data
