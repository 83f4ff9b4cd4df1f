"""`gradwarden keygen`: make an Ed25519 key pair."""

from __future__ import annotations

from pathlib import Path

import click

from gradwarden.cli.app import verb
from gradwarden.cli.failures import InputError
from gradwarden.cli.options import FILE, passphrase_options
from gradwarden.cli.output import emit_json, format_option


@verb("keygen")
@click.argument("name", type=FILE)
@click.option("--witness", is_flag=True, help="Make the key of a witness, which cosigns heads of ledgers.")
@passphrase_options(confirm=True)
@format_option("text", "json")
def command(name: Path, witness: bool, passphrase: bytes | None, output_format: str) -> int:
    """Make an Ed25519 key pair for signing ledgers and programs.

    Writes NAME.key, the private key (PKCS#8 PEM, readable by you alone), and NAME.pub, the public key that
    auditors need. The last part of NAME is the name under which signatures appear. Existing files are never
    overwritten. A witness has a key of its own kind, and should have a name that says whose it is, such as
    `witness.example.com`.

    \b
    Examples:
      gradwarden keygen run
      gradwarden keygen keys/release --passphrase
      gradwarden keygen ci --passphrase-env KEY_PASSPHRASE
      gradwarden keygen witness.example.com --witness

    \b
    Exit status: 0 the pair was written, 2 it was not.
    """
    from gradwarden.runtime.ledger.cosignature import witness_key
    from gradwarden.runtime.ledger.keys import Signer

    if name.name in ("", ".."):
        raise InputError(f"`{name}` cannot name a key", help="give it a name, such as `keys/release`")
    private, public = name.with_name(f"{name.name}.key"), name.with_name(f"{name.name}.pub")
    for path in (private, public):
        if path.exists() or path.is_symlink():
            raise InputError(
                f"`{path}` exists already", help="choose another name, or move the old file away"
            )
    signer = Signer.generate(name.name)
    signer.save(private, passphrase)
    key = witness_key(signer) if witness else signer.public
    key.save(public)
    if output_format == "json":
        emit_json({"private": str(private), "public": str(public), "vkey": key.vkey})
        return 0
    protection = "protected by the passphrase" if passphrase else "not protected by a passphrase"
    click.echo(f"wrote {private} (private, {protection}: keep it secret)")
    click.echo(f"wrote {public} (public: give it to whoever verifies)")
    click.echo(key.vkey)
    return 0
