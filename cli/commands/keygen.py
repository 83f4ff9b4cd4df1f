"""`gradwarden keygen`: make an Ed25519 key pair."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradwarden.cli.app import verb
from gradwarden.cli.failures import InputError
from gradwarden.cli.options import FILE, passphrase_options
from gradwarden.cli.output import emit_json, format_option

if TYPE_CHECKING:
    from gradwarden.runtime.ledger.keys import PublicKey


@verb("keygen")
@click.argument("name", type=FILE)
@click.option("--witness", is_flag=True, help="Make the key of a witness, which cosigns heads of ledgers.")
@click.option(
    "--pkcs11",
    metavar="URI",
    help="Make the pair in a device, or take the one there; a passphrase is its PIN.",
)
@passphrase_options(confirm=True)
@format_option("text", "json")
def command(
    name: Path, witness: bool, pkcs11: str | None, passphrase: bytes | None, output_format: str
) -> int:
    """Make an Ed25519 key pair for signing ledgers and programs.

    Writes NAME.key, the private key (PKCS#8 PEM, readable by you alone), and NAME.pub, the public key that
    auditors need. The last part of NAME is the name under which signatures appear. Existing files are never
    overwritten. A witness has a key of its own kind, and should have a name that says whose it is, such as
    `witness.example.com`.

    With --pkcs11 the private key stays in a device, and only NAME.pub is written: of a pair that is made
    there, or of the one that the URI names, where the device has it. Verbs that sign take the same URI.

    \b
    Examples:
      gradwarden keygen run
      gradwarden keygen keys/release --passphrase
      gradwarden keygen ci --passphrase-env KEY_PASSPHRASE
      gradwarden keygen witness.example.com --witness
      gradwarden keygen run --pkcs11 'pkcs11:token=ward;object=run?module-path=/usr/lib/vendor/module.so'

    \b
    Exit status: 0 the pair was written, 2 it was not.
    """
    from gradwarden.runtime.ledger.keys import Signer, WitnessKey

    if name.name in ("", ".."):
        raise InputError(f"`{name}` cannot name a key", help="give it a name, such as `keys/release`")
    private, public = name.with_name(f"{name.name}.key"), name.with_name(f"{name.name}.pub")
    for path in (public,) if pkcs11 else (private, public):
        if path.exists() or path.is_symlink():
            raise InputError(
                f"`{path}` exists already", help="choose another name, or move the old file away"
            )
    if pkcs11:
        made, kept = _in_device(pkcs11, name.name, passphrase)
    else:
        signer = Signer.generate(name.name)
        signer.save(private, passphrase)
        protection = "protected by the passphrase" if passphrase else "not protected by a passphrase"
        made, kept = signer.public, f"wrote {private} (private, {protection}: keep it secret)"
    key: PublicKey = WitnessKey(made.name, made.raw) if witness else made
    key.save(public)
    if output_format == "json":
        emit_json({"private": pkcs11 or str(private), "public": str(public), "vkey": key.vkey})
        return 0
    click.echo(kept)
    click.echo(f"wrote {public} (public: give it to whoever verifies)")
    click.echo(key.vkey)
    return 0


def _in_device(text: str, name: str, pin: bytes | None) -> tuple[PublicKey, str]:
    """Return the public key of a pair in a device, made where it is missing, and what to say of it."""
    from gradwarden.runtime.ledger.token_signer import TokenUri, has_token_key, make_token_key, token_key

    uri = TokenUri.parse(text)
    if has_token_key(uri, pin):
        return token_key(uri, name, pin), f"the token `{uri.token}` has the private key already"
    return make_token_key(uri, name, pin), f"made the private key in the token `{uri.token}`, where it stays"
