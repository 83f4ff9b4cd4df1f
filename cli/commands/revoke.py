"""`gradwarden revoke`: declare that a key of a ledger signs no more."""

from __future__ import annotations

from pathlib import Path

import click

from gradwarden.cli.app import verb
from gradwarden.cli.options import FILE
from gradwarden.cli.output import emit_json, format_option
from gradwarden.cli.signing import KeyAccess, check_ledger, other_keys_option, signing_options


@verb("revoke")
@click.argument("ledger", type=FILE)
@click.argument("key_file", type=FILE, metavar="PUB")
@click.option("--sign", "private", type=FILE, required=True, metavar="KEY", help="Another key of the ledger.")
@click.option("--reason", required=True, metavar="TEXT", help="Why, in one line; it is recorded.")
@other_keys_option
@signing_options
@format_option("text", "json")
def command(
    ledger: Path,
    key_file: Path,
    private: Path,
    reason: str,
    key_files: tuple[Path, ...],
    access: KeyAccess,
    output_format: str,
) -> int:
    """Declare that a key of a ledger signs no more, between two sessions of its run.

    It takes another key that is in force: one that the run named when it began (`Ledger.open(keys=…)`) and
    that was kept in a safe, or one that the ledger was handed over to since. That key signs the entry, and
    the heads after it. What the revoked key signed before stands.

    Whoever has a copy of the revoked key can still write another history from before that entry: give
    verifiers the other public key in its place, and keep the head that is written now elsewhere.

    \b
    Examples:
      gradwarden revoke run.ledger run.pub --sign recovery.key --reason "the laptop was stolen"
      gradwarden rotate run.ledger --sign recovery.key --to run-2.key --key run.pub

    \b
    Exit status: 0 revoked, 2 not (the ledger is sealed, in use, damaged, or signed by other keys).
    """
    from gradwarden.runtime.ledger.keys import PublicKey
    from gradwarden.runtime.ledger.ledger import Ledger

    revoked = PublicKey.load(key_file)
    signer = access.signer(private)
    check_ledger(ledger)
    with Ledger.open(ledger, signer, keys=[revoked, *map(PublicKey.load, key_files)]) as opened:
        index = opened.revoke(revoked, reason)
    if output_format == "json":
        emit_json({"entry": index, "key": revoked.vkey, "by": signer.public.vkey, "reason": reason})
        return 0
    click.echo(f"{ledger}: {revoked.name} was revoked by {signer.name} at entry {index:,}")
    return 0
