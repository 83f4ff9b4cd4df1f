"""`gradwarden sign-model`: an OpenSSF signature of a folder of weights."""

from __future__ import annotations

from pathlib import Path

import click

from gradwarden.cli.app import verb
from gradwarden.cli.diagnostics import plural
from gradwarden.cli.failures import InputError
from gradwarden.cli.files import write_text
from gradwarden.cli.options import FILE, passphrase_options
from gradwarden.cli.output import emit_json, format_option


@verb("sign-model")
@click.argument("folder", type=FILE, metavar="DIR")
@click.option(
    "--sign", "key", type=FILE, required=True, metavar="PEM", help="A private key on P-256, P-384 or P-521."
)
@click.option("-o", "--output", type=FILE, required=True, metavar="SIG", help="Where to write the signature.")
@passphrase_options(confirm=False)
@format_option("text", "json")
def command(folder: Path, key: Path, output: Path, passphrase: bytes | None, output_format: str) -> int:
    """Sign the files of a model as the OpenSSF's format has it (OMS 1.0).

    Every file of DIR is listed with its SHA-256 but for the signature itself and what belongs to git. Tools
    for model signatures verify it (`model_signing verify key`), and so does `gradwarden verify-model`, which
    can also show that a ledger names the weights. The key is another one than the ledger's: that format does
    not take Ed25519.

    \b
    Examples:
      openssl ecparam -name prime256v1 -genkey -noout -out model.pem
      gradwarden sign-model weights/ --sign model.pem -o weights/model.sig

    \b
    Exit status: 0 the signature was written, 2 it was not.
    """
    from gradwarden.runtime.evidence.model_signature import Manifest, load_model_key, sign_model

    if not folder.is_dir():
        raise InputError(
            f"`{folder}` is no folder", help="put the weights into one: the format signs folders"
        )
    private = load_model_key(key, passphrase)
    manifest = Manifest.of(folder, [output])
    write_text(output, sign_model(manifest, private).decode())
    if output_format == "json":
        emit_json({"output": str(output), "model": manifest.name, "files": manifest.digests})
        return 0
    click.echo(f"wrote {output}: the signature of {plural(len(manifest.digests), 'file')} in {folder}")
    return 0
