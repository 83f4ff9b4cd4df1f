"""`gradwarden bind`: bind the ledgers of a job's ranks in its log of logs."""

from __future__ import annotations

import time
from pathlib import Path

import click

from gradwarden.cli.app import verb
from gradwarden.cli.diagnostics import plural, printable
from gradwarden.cli.failures import complain
from gradwarden.cli.options import FILE
from gradwarden.cli.output import emit_json, format_option
from gradwarden.cli.signing import KeyAccess, other_keys_option, signing_options


@verb("bind")
@click.argument("folder", type=FILE)
@click.option("--sign", "private", type=FILE, required=True, metavar="KEY", help="Signs the log of logs.")
@click.option(
    "--every", type=click.FloatRange(min=0.1), metavar="SECONDS",
    help="Go on until every rank's ledger is sealed, at these intervals.",
)  # fmt: skip
@other_keys_option
@signing_options
@format_option("text", "json")
def command(
    folder: Path,
    private: Path,
    every: float | None,
    key_files: tuple[Path, ...],
    access: KeyAccess,
    output_format: str,
) -> int:
    """Bind what the ranks of a job have signed, in its log of logs.

    For a job whose rank 0 does not do it (`Job(…, binds=False)`), or which was left: any process that can
    read the folder may. The new lines of each rank's ledger are read and checked, and its latest signed head
    is bound. What was bound, a rank can no longer take back. Once every rank's ledger is sealed, so is the
    job.

    \b
    Examples:
      gradwarden bind job/ --sign watcher.key
      gradwarden bind job/ --sign watcher.key --every 60

    \b
    Exit status: 0 bound, 1 a rank's ledger does not continue what was bound, 2 misuse or unreadable input.
    """
    from gradwarden.runtime.errors import JobError
    from gradwarden.runtime.jobs.binder import Binder
    from gradwarden.runtime.ledger.keys import PublicKey

    bindings = 0
    with Binder.resume(
        folder, access.signer(private), [PublicKey.load(path) for path in key_files]
    ) as binder:
        try:
            bindings += binder.bind()
            while every is not None and not binder.over:
                time.sleep(every)
                bindings += binder.bind()
        except JobError as error:
            complain(error.code, error.message, error.help)
            return 1
        sealed = binder.over
        if sealed:
            binder.seal()
    if output_format == "json":
        emit_json({"job": binder.job, "bindings": bindings, "sealed": sealed})
    else:
        state = "sealed: every rank's ledger is" if sealed else "it goes on"
        click.echo(printable(f"{folder}: {plural(bindings, 'new binding')}; {state}"))
    return 0
