"""`gradwarden archive`: compress the older entries of a ledger, and keep them beside it."""

from __future__ import annotations

from pathlib import Path

import click

from gradwarden.cli.app import verb
from gradwarden.cli.options import FILE
from gradwarden.cli.output import emit_json, format_option


@verb("archive")
@click.argument("ledger", type=FILE)
@click.option(
    "--key", "key_files", type=FILE, multiple=True, metavar="PUB",
    help="Only entries under a head that this key has signed; repeatable.",
)  # fmt: skip
@click.option(
    "--keep", type=click.IntRange(min=0), metavar="N", default=0,
    help="Leave at least the last N entries in the ledger.",
)  # fmt: skip
@click.option(
    "--level", type=click.IntRange(1, 19), metavar="L", default=9, show_default=True,
    help="How hard to compress.",
)  # fmt: skip
@format_option("text", "json")
def command(ledger: Path, key_files: tuple[Path, ...], keep: int, level: int, output_format: str) -> int:
    """Compress the older entries of a ledger, and keep them in an archive beside it.

    All entries before the last signed head that may go are moved to `LEDGER.archive-N.zst`; the head stays,
    and the ledger goes on from it. Every command reads archives as if nothing had been moved, as long as they
    lie beside the ledger with `LEDGER.archived`. Without them `verify` says what it could not check, and
    proofs about what is left, and that the archived head is a part of it, can still be made.

    The ledger is checked first, and cut only once the archive has been written, synced and read back. No run
    may be writing it. Whoever decompresses the archives in order (`zstd -d`) and appends the ledger has all
    of it again. Needs gradwarden[archive].

    \b
    Examples:
      gradwarden archive run.ledger --key run.pub
      gradwarden archive run.ledger --keep 100000 --format json

    \b
    Exit status: 0 archived, 2 nothing was: misuse, a damaged ledger, nothing to archive.
    """
    from gradwarden.runtime.archiving import archive_ledger
    from gradwarden.runtime.ledger.keys import PublicKey

    keys = [PublicKey.load(path) for path in key_files]
    done = archive_ledger(ledger, keys, keep=keep, level=level)
    if output_format == "json":
        emit_json(
            {
                "ok": True,
                "file": str(done.file),
                "first": done.first,
                "end": done.end,
                "bytes": done.size,
                "compressed": done.compressed,
            }
        )
        return 0
    share = done.compressed / done.size
    click.echo(
        f"`{done.file}`: entries {done.first:,} to {done.end - 1:,}, {done.size:,} bytes in "
        f"{done.compressed:,} ({share:.0%})"
    )
    click.echo(f"`{ledger}` goes on from the signed head in entry {done.end:,}")
    return 0
