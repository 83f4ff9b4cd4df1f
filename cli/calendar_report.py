"""The calendar of a policy as text, JSON and iCalendar."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import click

from gradwarden.cli.diagnostics import plural, printable
from gradwarden.cli.options import ContextOptions
from gradwarden.policy.comparing.calendar import Calendar, Moving, Turn
from gradwarden.policy.comparing.calendar_words import what_changes, what_it_means
from gradwarden.policy.comparing.changes import DIRECTIONS
from gradwarden.policy.comparing.data_calendar import DataCalendar, DayCount
from gradwarden.policy.comparing.icalendar_text import Event, calendar_text
from gradwarden.policy.comparing.waivers import Lapse
from gradwarden.policy.errors import Diagnostic
from gradwarden.policy.evaluation.phrasing import Phrasing
from gradwarden.policy.evaluation.values import day_text
from gradwarden.policy.program import Program

PROOFS = {
    "intervals": "lifts nothing from then on (proved on its condition)",
    "solver": "lifts nothing from then on (proved by z3)",
    "refuted": "can still lift the rule after that day",
    "unknown": "not proved to end on that day",
}

UNCERTAIN = "may change"


@dataclass(frozen=True)
class Report:
    """What was found out about one policy. `calendars` is empty where a data set was counted instead."""

    program: Program
    first: date
    last: date | None
    first_is_today: bool
    calendars: tuple[Calendar, ...]
    lapses: tuple[Lapse, ...]
    max_waiver: int | None
    counted: DataCalendar | None
    data: Path | None
    given: ContextOptions

    def findings(self) -> list[Diagnostic]:
        """Return the waivers that last too long, and those that are not proved to end."""
        found = []
        for lapse in self.lapses:
            waiver, until = lapse.waiver, day_text(lapse.waiver.until)
            if not lapse.holds:
                message = f"the waiver of `{waiver.rule}` until {until} {PROOFS[lapse.proof]}"
                found.append(Diagnostic("GW491", message, help="join its condition with `today < until`"))
            if self.max_waiver is not None and lapse.days > self.max_waiver:
                message = (
                    f"the waiver of `{waiver.rule}` until {until}, approved by `{waiver.approved_by}`, lasts "
                    f"{plural(lapse.days, 'day')} from {self.first}, more than {self.max_waiver:,}"
                )
                found.append(Diagnostic("GW490", message, help="let it lapse earlier, and renew it"))
        return found


# --- text ---------------------------------------------------------------------------------------------------


def to_text(report: Report) -> None:
    """Write a report to standard output."""
    program = report.program
    click.echo(printable(f"{program.name} version {program.version}, {_span(report)}"))
    if report.counted is not None:
        _show_counted(report, report.counted)
    else:
        for calendar in report.calendars:
            _show_calendar(report, calendar)
    if report.lapses:
        click.echo(click.style("\nwaivers", bold=True))
        for lapse in report.lapses:
            click.echo(f"  {printable(_lapse_words(lapse))}")


def _span(report: Report) -> str:
    first = f"from {report.first}" + (" (today, as no --from was given)" if report.first_is_today else "")
    return f"{first} to {report.last}" if report.last else f"{first} on"


def _show_calendar(report: Report, calendar: Calendar) -> None:
    if calendar.clock == "today":
        how = (
            "decided by z3 over all examples and contexts"
            if calendar.method == "solver"
            else "z3 is not installed (pip install 'gradwarden[prove]'): listed is what may change"
        )
        click.echo(how)
        if not calendar.turns:
            click.echo("\non no day does any decision change by the text of the policy")
    elif calendar.turns:
        click.echo(click.style(f"\nin {calendar.clock}s", bold=True))
    for turn in calendar.turns:
        at = day_text(turn.at) if calendar.clock == "today" else f"{calendar.clock} {turn.at:,}"
        blank = "\n" if calendar.clock == "today" else ""
        click.echo(
            f"{blank}{click.style(at, fg='cyan', bold=True)}" + ("" if turn.certain else f"  {UNCERTAIN}")
        )
        for line in _turn_lines(report.program, turn):
            click.echo(f"  {printable(line)}")
    if calendar.moving:
        word = "day" if calendar.clock == "today" else calendar.clock
        click.echo(click.style(f"\non a {word} that depends on the example or the run", bold=True))
        for moving in calendar.moving:
            click.echo(f"  {printable(_moving_words(report.program, moving))}")


def _turn_lines(program: Program, turn: Turn) -> Iterator[str]:
    for change in turn.changes:
        means = what_it_means(change, program.band_names)
        yield what_changes(change) + (f" ({means})" if means else "")


def _moving_words(program: Program, moving: Moving) -> str:
    noun = "waiver of" if moving.kind == "waive" else moving.kind
    return f"{noun} `{moving.name}`: {Phrasing(program).condition(moving.comparison)}"


def _lapse_words(lapse: Lapse) -> str:
    waiver = lapse.waiver
    when = f"in {plural(lapse.days, 'day')}" if lapse.days > 0 else "lapsed"
    by = f"approved by {waiver.approved_by}"
    return f"`{waiver.rule}` until {day_text(waiver.until)} ({when}), {by}: {PROOFS[lapse.proof]}"


def _show_counted(report: Report, counted: DataCalendar) -> None:
    records = plural(counted.examples, "record")
    invalid = f", of which {counted.invalid:,} invalid, never learned" if counted.invalid else ""
    click.echo(printable(f"over {report.data}: {records}{invalid}"))
    if not counted.days:
        click.echo("\non no day does the decision on any of them change")
    for day, count in sorted(counted.days.items()):
        head = click.style(day_text(day), fg="cyan", bold=True)
        click.echo(
            f"\n{head}  {plural(count.examples, 'example')} change{'s' if count.examples == 1 else ''}"
        )
        for line in _count_lines(report.program, count):
            click.echo(f"  {printable(line)}")


def _count_lines(program: Program, count: DayCount) -> Iterator[str]:
    kinds = [f"{count.directions[name]:,} {name}" for name in DIRECTIONS if count.directions[name]]
    kinds += [f"{count.refused:,} newly refused"] if count.refused else []
    kinds += [f"{count.opened:,} newly learned"] if count.opened else []
    yield ", ".join(kinds)
    for word, counter in (("wider", count.wider), ("narrower", count.narrower)):
        found = [f"{band} {counter[band]:,}" for band in program.band_names if counter[band]]
        if found:
            yield f"{word}: {', '.join(found)}"
    for word, counter in (
        ("begins to apply", count.begins),
        ("ceases to apply", count.ends),
        ("applies again, its waiver over", count.restored),
        ("is waived", count.lifted),
    ):
        for rule, examples in sorted(counter.items()):
            yield f"`{rule}` {word}: {examples:,}"


# --- JSON ---------------------------------------------------------------------------------------------------


def to_json(report: Report) -> dict[str, Any]:
    """Return a report as JSON data."""
    program = report.program
    document: dict[str, Any] = {
        "policy": {"name": program.name, "version": program.version, "digest": program.digest},
        "from": str(report.first),
        "from_is_today": report.first_is_today,
        "to": str(report.last) if report.last else None,
        "waivers": [_lapse_json(lapse) for lapse in report.lapses],
        "findings": [{"code": f.code, "message": f.message, "help": f.help} for f in report.findings()],
    }
    if report.counted is not None:
        counted = report.counted
        context = {key: value for key, value in report.given.to_json().items() if not key.startswith("at")}
        document |= {"data": str(report.data), "context": context}
        document |= {"records": counted.examples, "invalid": counted.invalid}
        document["dates"] = [{"date": day_text(d), **_count_json(c)} for d, c in sorted(counted.days.items())]
        return document
    for calendar in report.calendars:
        name = "date" if calendar.clock == "today" else calendar.clock
        document["method"] = calendar.method
        document[f"{name}s"] = [_turn_json(program, name, turn) for turn in calendar.turns]
        document[f"moving_{name}s"] = [
            {"kind": m.kind, "rule": m.name, "condition": Phrasing(program).condition(m.comparison)}
            for m in calendar.moving
        ]
    return document


def _turn_json(program: Program, name: str, turn: Turn) -> dict[str, Any]:
    return {
        name: day_text(turn.at) if name == "date" else turn.at,
        "certain": turn.certain,
        "changes": [
            {
                "kind": change.kind,
                "rule": change.name,
                "effect": change.effect or None,
                "what": what_changes(change),
                "begins": change.begins,
                "ends": change.ends,
                "wider": None if change.wider is None else list(change.wider),
                "narrower": None if change.narrower is None else list(change.narrower),
            }
            for change in turn.changes
        ],
        "witness": _witness_json(program, turn),
    }


def _witness_json(program: Program, turn: Turn) -> dict[str, Any] | None:
    import json

    if turn.witness is None:
        return None
    return {
        "example": json.loads(turn.witness.to_json()),
        "command": turn.witness.command("POLICY", program),
    }


def _count_json(count: DayCount) -> dict[str, Any]:
    named = ("wider", "narrower", "begins", "ends", "restored", "lifted")
    return {
        "examples": count.examples,
        "directions": {name: count.directions[name] for name in DIRECTIONS},
        "newly_refused": count.refused,
        "newly_learned": count.opened,
        **{name: dict(sorted(getattr(count, name).items())) for name in named},
    }


def _lapse_json(lapse: Lapse) -> dict[str, Any]:
    return {
        "rule": lapse.waiver.rule,
        "until": day_text(lapse.waiver.until),
        "approved_by": lapse.waiver.approved_by,
        "days": lapse.days,
        "lapses": lapse.holds,
        "proof": lapse.proof,
    }


# --- iCalendar ----------------------------------------------------------------------------------------------


def to_ics(report: Report) -> str:
    """Return a report as iCalendar text.

    An event is known by policy and day, so that a calendar which is imported again is updated; it is stamped
    with the first day, so that the same report gives the same text.
    """
    stamp = datetime.combine(report.first, time(), UTC)
    return calendar_text(f"gradwarden: {report.program.name}", _events(report), stamp)


def _events(report: Report) -> Iterator[Event]:
    program = report.program
    if report.counted is not None:
        for number, count in sorted(report.counted.days.items()):
            summary = f"{program.name}: {plural(count.examples, 'decision')} change"
            key = f"{program.name} {report.data} {day_text(number)}"
            yield Event(key, _date(number), summary, "\n".join(_count_lines(program, count)))
        return
    turns = next(calendar.turns for calendar in report.calendars if calendar.clock == "today")
    for turn in turns:
        words = "; ".join(what_changes(change) for change in turn.changes)
        summary = f"{program.name}: {words}" + ("" if turn.certain else f" ({UNCERTAIN})")
        key = f"{program.name} {day_text(turn.at)}"
        yield Event(key, _date(turn.at), summary, "\n".join(_turn_lines(program, turn)))


def _date(number: int) -> date:
    return date.fromisoformat(day_text(number))
