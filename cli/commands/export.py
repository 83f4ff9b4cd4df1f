"""`gradwarden export`: write a ledger in the form in which transparency logs are served."""

from __future__ import annotations

from pathlib import Path

import click

from gradwarden.cli.app import verb
from gradwarden.cli.diagnostics import plural
from gradwarden.cli.failures import give_up
from gradwarden.cli.inputs import check_begun, head_under
from gradwarden.cli.options import FILE
from gradwarden.cli.output import emit_json, format_option


@verb("export")
@click.argument("form", type=click.Choice(["tiles"]))
@click.argument("ledger", type=FILE)
@click.argument("directory", type=FILE, metavar="DIR")
@click.option("--head", type=FILE, metavar="NOTE", help="The head to export. [default: the last one]")
@format_option("text", "json")
def command(form: str, ledger: Path, directory: Path, head: Path | None, output_format: str) -> int:
    """Write a ledger in the form in which transparency logs are served.

    `tiles` is the layout of C2SP tlog-tiles: a checkpoint, the Merkle tree in tiles of 256 hashes and the
    entries in bundles of 256, as static files for any web server. What a head covers is written; --head takes
    a cosigned one. DIR is made if need be, and can be written again when the ledger has grown: no tile ever
    changes, and a ledger that does not continue what DIR holds is refused.

    The bundles are the ledger itself: whoever can read the directory can read every entry.

    \b
    Examples:
      gradwarden export tiles run.ledger public/log
      gradwarden export tiles run.ledger public/log --head cosigned.note --format json

    \b
    Exit status: 0 written, 1 refused: the ledger is not the one of the head, or not that of DIR, 2 misuse or
    unreadable input.
    """
    from gradwarden.runtime.errors import HeadMismatch
    from gradwarden.runtime.evidence.tiles import export_tiles

    check_begun(ledger)
    under = head_under(head, ledger)
    try:
        exported = export_tiles(ledger, directory, under)
    except HeadMismatch as error:
        return give_up(error, output_format)
    if output_format == "json":
        emit_json(
            {
                "ok": True,
                "form": form,
                "directory": str(directory),
                "origin": under.checkpoint.origin,
                "size": exported.size,
                "root": under.checkpoint.root.hex(),
                "tiles": exported.tiles,
                "bundles": exported.bundles,
                "written": exported.written,
            }
        )
        return 0
    tiles, bundles = plural(exported.tiles, "tile"), plural(exported.bundles, "bundle")
    entries = plural(exported.size, "entry", "entries")
    click.echo(f"wrote {directory}: {entries} in {tiles} and {bundles}, {exported.written:,} of them new")
    return 0
