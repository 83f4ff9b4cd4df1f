"""What verbs write: JSON documents and tables on standard output, progress on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

Advance = Callable[[int], None]
"""Reports that so many more units of work are done."""

FORMAT_HELP = "How to write the report."


def format_option(*formats: str) -> Callable[[Any], Any]:
    """Return the `--format` option; the first format is the default."""
    return click.option(
        "--format",
        "output_format",
        type=click.Choice(formats),
        default=formats[0],
        show_default=True,
        help=FORMAT_HELP,
    )


def emit_json(document: object) -> None:
    """Write one JSON document to standard output, escaped where its encoding cannot hold a character."""
    import json

    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(document, indent=2, allow_nan=False)
    click.echo(text)


def emit_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Sequence[int] = ()
) -> None:
    """Write an aligned table; columns listed in `numeric` are set flush right. Nothing is cut off."""
    if not rows:
        return
    from rich.cells import cell_len

    widths = [max(cell_len(row[i]) for row in (headings, *rows)) for i in range(len(headings))]

    def lay_out(row: Sequence[str]) -> str:
        cells = []
        for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
            padding = " " * (width - cell_len(cell))
            cells.append(padding + cell if index in numeric else cell + padding)
        return "  ".join(cells).rstrip()

    click.echo(click.style(lay_out(headings), bold=True))
    for row in rows:
        click.echo(lay_out(row))


def moment(seconds: int) -> str:
    """Return a time in seconds since 1970 as people read it, in UTC; as a number where no calendar has it."""
    from datetime import UTC, datetime

    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return f"{seconds} s after 1970"


@contextmanager
def progress(label: str, total: int | None, unit: str) -> Iterator[Advance]:
    """Show a bar on standard error while the block runs, if a person is watching."""
    if not sys.stderr.isatty():
        yield lambda _count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    context = click.get_current_context(silent=True)
    console = Console(stderr=True, no_color=context is not None and context.find_root().color is False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(label, total=total)
        yield lambda count: bars.update(task, advance=count)


def arrived(advance: Advance) -> Callable[..., None]:
    """Return what is told how much is done so far, and of how much, and advances by what is new."""
    seen = 0

    def report(done: int, _total: int = 0) -> None:
        nonlocal seen
        advance(done - seen)
        seen = done

    return report
