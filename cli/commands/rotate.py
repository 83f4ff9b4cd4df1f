"""`gradwarden rotate`: hand a ledger over to another key."""

from __future__ import annotations

from pathlib import Path

import click

from gradwarden.cli.app import verb
from gradwarden.cli.options import FILE, read_passphrase
from gradwarden.cli.output import emit_json, format_option
from gradwarden.cli.signing import KeyAccess, check_ledger, other_keys_option, signing_options


@verb("rotate")
@click.argument("ledger", type=FILE)
@click.option("--sign", "private", type=FILE, required=True, metavar="KEY", help="Its key so far.")
@click.option("--to", "successor", type=FILE, required=True, metavar="KEY", help="The new private key.")
@click.option(
    "--to-passphrase-file", type=FILE, metavar="FILE",
    help="Take the passphrase of the new key from a file's first line.",
)  # fmt: skip
@other_keys_option
@signing_options
@format_option("text", "json")
def command(
    ledger: Path,
    private: Path,
    successor: Path,
    to_passphrase_file: Path | None,
    key_files: tuple[Path, ...],
    access: KeyAccess,
    output_format: str,
) -> int:
    """Hand a ledger over to another key, between two sessions of its run.

    An entry names the new key; the old one signs it, and the new one does too. From there on the new key
    signs the heads, and the run is resumed with it; the old one signs nothing more. Who trusts the old key
    can verify all of the ledger. Whoever may have a copy of the old key can still write another history from
    before that entry: give verifiers the new public key, and keep the head that is written now elsewhere.

    In a program, `Ledger.rotate` does this while the run goes on.

    \b
    Examples:
      gradwarden keygen run-2
      gradwarden rotate run.ledger --sign run.key --to run-2.key

    \b
    Exit status: 0 handed over, 2 not (the ledger is sealed, in use, damaged, or signed by other keys).
    """
    from gradwarden.runtime.ledger.keys import PublicKey, Signer
    from gradwarden.runtime.ledger.ledger import Ledger

    signer = access.signer(private)
    passphrase = None if to_passphrase_file is None else read_passphrase(to_passphrase_file)
    new = Signer.load(successor, passphrase)
    check_ledger(ledger)
    with Ledger.open(ledger, signer, keys=[PublicKey.load(path) for path in key_files]) as opened:
        index = opened.rotate(new)
    if output_format == "json":
        emit_json({"entry": index, "key": signer.public.vkey, "by": new.public.vkey})
        return 0
    click.echo(f"{ledger}: {signer.name} handed over to {new.name} at entry {index:,}")
    click.echo(new.public.vkey)
    return 0
