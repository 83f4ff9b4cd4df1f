"""`gradwarden sign-data`: sign the manifest of examples that one supplies."""

from __future__ import annotations

from pathlib import Path

import click

from gradwarden.cli.app import verb
from gradwarden.cli.cosigning import cosign
from gradwarden.cli.options import FILE
from gradwarden.cli.output import format_option
from gradwarden.cli.signing import KeyAccess, signing_options


@verb("sign-data")
@click.argument("manifest", type=FILE, metavar="MANIFEST")
@click.option(
    "--sign", "key", type=FILE, required=True, metavar="KEY", help="The private key of the supplier."
)
@signing_options
@format_option("text", "json")
def command(manifest: Path, key: Path, access: KeyAccess, output_format: str) -> int:
    """Sign a manifest of examples, as who supplies them.

    The signature covers the file byte by byte, and is one more line of MANIFEST.note; signatures by others
    stay as they are. A run records that note (`Governor.supply`) before its first step, and
    `verify --data MANIFEST --supplier PUB` shows that the examples were those that were signed.

    \b
    Examples:
      gradwarden sign-data records.jsonl --sign clinic.key
      gradwarden verify run.ledger --key run.pub --data records.jsonl --secret run.ledger.secret \\
        --supplier clinic.pub

    \b
    Exit status: 0 the signature was added, 2 it was not.
    """
    from gradwarden.runtime.evidence.supply import note_path, sign_supply, supply_of

    supply, signer = supply_of(manifest), access.signer(key)
    return cosign(
        note_path(manifest),
        signer,
        lambda note: sign_supply(supply, signer, note),
        f"{manifest}, sha256 {supply.digest}",
        {"digest": supply.digest, "bytes": supply.size},
        output_format,
    )
