"""`gradwarden history`: which steps led to the weights of a checkpoint, and which were abandoned."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradwarden.cli.app import verb
from gradwarden.cli.diagnostics import plural, printable
from gradwarden.cli.inputs import check_begun
from gradwarden.cli.options import FILE
from gradwarden.cli.output import arrived, emit_json, emit_table, format_option, progress

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gradwarden.runtime.records.effective_history import EffectiveHistory, Stretch


@verb("history")
@click.argument("ledger", type=FILE)
@click.argument("checkpoint", required=False, metavar="[FILE|DIGEST]")
@format_option("text", "json")
def command(ledger: Path, checkpoint: str | None, output_format: str) -> int:
    """Say which steps led to the weights of a checkpoint; without one, to those that the run ended with.

    A run that goes back to an earlier checkpoint, after a crash or by choice, abandons the steps since
    (`Governor.rewind`). They stay in its ledger, and budgets and limits count them; they are no part of the
    effective history of its weights. The checkpoint is named by its file as the ledger names it, or by the
    first digits of its SHA-256. The chain is checked on the way; whether the marks are right, and signed, is
    for `gradwarden verify`.

    \b
    Examples:
      gradwarden history run.ledger
      gradwarden history run.ledger step-200.safetensors
      gradwarden history run.ledger 3f2a09bc --format json

    \b
    Exit status: 0 answered, 2 the ledger is damaged, unreadable, or names no such checkpoint.
    """
    from gradwarden.runtime.records.effective_history import effective_history

    check_begun(ledger)
    size = ledger.stat().st_size if ledger.is_file() else None
    with progress(f"reading {ledger.name}", size, "bytes") as advance:
        found = effective_history(ledger, checkpoint, arrived(advance))
    if output_format == "json":
        emit_json(_document(found))
    else:
        _show(found)
    return 0


def _document(found: EffectiveHistory) -> dict[str, Any]:
    return {
        "ok": True,
        "checkpoint": None if found.saved is None else found.saved.body(),
        "next_step": found.steps,
        **{
            name: {
                "steps": _count(stretches),
                "stretches": [{"first": one.first, "last": one.last, **one.outcomes} for one in stretches],
            }
            for name, stretches in (("effective", found.effective), ("abandoned", found.abandoned))
        },
        "rewinds": [{"entry": one.entry, **one.body} for one in found.rewinds],
    }


def _show(found: EffectiveHistory) -> None:
    if found.saved is None:
        click.echo(f"the weights with which the run ended, before step {found.steps:,}")
    else:
        saved = found.saved
        click.echo(printable(f"`{saved.file}`, saved before step {saved.step:,}, sha256 {saved.digest}"))
    rows = [
        (str(one.first), str(one.last), what, *(str(one.outcomes[name]) for name in _OUTCOMES))
        for what, stretches in (("effective", found.effective), ("abandoned", found.abandoned))
        for one in stretches
    ]
    rows.sort(key=lambda row: int(row[0]))
    emit_table(("first step", "last step", "", *_OUTCOMES), rows, numeric=(0, 1, 3, 4, 5))
    effective, abandoned = _count(found.effective), _count(found.abandoned)
    click.echo(f"{plural(effective, 'step')} led to them; {plural(abandoned, 'step')} abandoned")
    for one in found.rewinds:
        to = one.body["checkpoint"]
        click.echo(
            printable(
                f"entry {one.entry:,}: before step {one.body['step']:,} the run went back to `{to['file']}`"
            )
        )


_OUTCOMES = ("committed", "refused", "lost")


def _count(stretches: Iterable[Stretch]) -> int:
    return sum(one.last - one.first + 1 for one in stretches)
