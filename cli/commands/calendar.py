"""`gradwarden calendar`: every date on which decisions change, and what changes on it."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradwarden.cli.app import verb
from gradwarden.cli.calendar_report import Report, to_ics, to_json, to_text
from gradwarden.cli.failures import InputError, complain
from gradwarden.cli.inputs import load_program
from gradwarden.cli.manifest import open_manifest
from gradwarden.cli.options import FILE, MAX_COUNT, ContextOptions, DateType, SettingType, today
from gradwarden.cli.output import arrived, emit_json, format_option, progress

if TYPE_CHECKING:
    from gradwarden.policy.comparing.data_calendar import DataCalendar
    from gradwarden.policy.program import Program

COUNT = click.IntRange(0, MAX_COUNT)


@verb("calendar")
@click.argument("policy", type=FILE)
@click.option("--data", type=FILE, help="A manifest: count the examples whose decisions change.")
@click.option("--from", "first", type=DateType(), help="The first day. [default: today, UTC]")
@click.option("--to", "last", type=DateType(), help="The last day. [default: no end]")
@click.option(
    "--max-waiver", type=click.IntRange(0), metavar="DAYS",
    help="The longest that a waiver may still last, counted from the first day.",
)  # fmt: skip
@click.option("--step", type=COUNT, metavar="N", default=0, help="With --data: the training step.")
@click.option("--epoch", type=COUNT, metavar="N", default=0, help="With --data: the epoch.")
@click.option("--exposures", type=COUNT, metavar="N", default=0, help="With --data: earlier exposures.")
@click.option(
    "--set", "settings", multiple=True, type=SettingType(), help="With --data: a signal; repeatable."
)
@click.option(
    "--spent", multiple=True, metavar="RULE", help="With --data: a rule whose budget is spent; repeatable."
)
@format_option("text", "json", "ics")
def command(
    policy: Path,
    data: Path | None,
    first: date | None,
    last: date | None,
    max_waiver: int | None,
    step: int,
    epoch: int,
    exposures: int,
    settings: tuple[tuple[str, float], ...],
    spent: tuple[str, ...],
    output_format: str,
) -> int:
    """List every date on which decisions change, and what changes on it.

    Consent, retention, embargoes, waivers and stages are intervals of time, so a policy decides alike between
    two dates of this list. A date is listed only where some example is decided otherwise from that day on;
    with z3 installed (`gradwarden[prove]`) that is decided over all examples and contexts, without it the
    dates are listed as `may change`. Steps and epochs follow, and what depends on a date in each example. The
    turns of a band that is moved in one step of several are not listed.

    With --data the examples of a manifest are decided, each on its own dates too, and counted.

    For every waiver it is proved that it lifts nothing from its `until` on.

    \b
    Examples:
      gradwarden calendar clinical.policy
      gradwarden calendar clinical.policy --data cohort.parquet --to 2027-12-31
      gradwarden calendar clinical.policy --max-waiver 180
      gradwarden calendar clinical.policy --format ics > clinical.ics

    \b
    Exit status: 0 the list was made, 1 a waiver lasts too long or outlives its lapse, 2 unreadable input.
    """
    program = load_program(policy)
    start = first or today()
    end = last or date.max
    if start > end:
        raise InputError(f"`--from {start}` is after `--to {end}`")
    given = ContextOptions(step, epoch, date.min, exposures, settings, spent)
    counted = _count(program, data, given, start, end) if data else None
    report = _report(program, start, end, first is None, last is None, max_waiver, counted, data, given)
    if output_format == "json":
        emit_json(to_json(report))
    elif output_format == "ics":
        click.echo(to_ics(report).encode(), nl=False)
    else:
        to_text(report)
    findings = report.findings()
    for finding in findings:
        complain(finding.code, finding.message, finding.help)
    return int(bool(findings))


def _days(day: date) -> int:
    from gradwarden.policy.context import EPOCH_DAY

    return (day - EPOCH_DAY) // timedelta(1)


def _report(
    program: Program,
    start: date,
    end: date,
    is_today: bool,
    is_open: bool,
    max_waiver: int | None,
    counted: DataCalendar | None,
    data: Path | None,
    given: ContextOptions,
) -> Report:
    from gradwarden.policy.comparing.calendar import calendar_of
    from gradwarden.policy.comparing.moments import CLOCKS
    from gradwarden.policy.comparing.waivers import lapses

    calendars = []
    if counted is None:
        with progress(f"calendar of {program.name}", len(CLOCKS), "clocks") as advance:
            for clock in CLOCKS:
                span = (_days(start), _days(end)) if clock == "today" else (0, MAX_COUNT)
                calendars.append(calendar_of(program, clock, *span))
                advance(1)
    return Report(
        program=program,
        first=start,
        last=None if is_open else end,
        first_is_today=is_today,
        calendars=tuple(calendars),
        lapses=tuple(lapses(program, _days(start))),
        max_waiver=max_waiver,
        counted=counted,
        data=data,
        given=given,
    )


def _count(program: Program, data: Path, given: ContextOptions, start: date, end: date) -> DataCalendar:
    """Go over a manifest, piece by piece."""
    from gradwarden.policy.comparing.data_calendar import DataCalendar
    from gradwarden.policy.evaluation.columns import encode_columns

    calendar = DataCalendar(program, given.context(program), _days(start), _days(end))
    manifest = open_manifest(data, program)
    with progress(f"reading {data.name}", manifest.total, manifest.unit) as advance:
        report = arrived(advance)
        for piece in manifest.pieces:
            calendar.add(encode_columns(program, piece.columns, len(piece.places)))
            calendar.examples += len(piece.malformed)
            calendar.invalid += len(piece.malformed)
            report(piece.done)
    if not calendar.examples:
        complain(InputError.code, f"`{data}` holds no records", None, severity="warning")
    return calendar
