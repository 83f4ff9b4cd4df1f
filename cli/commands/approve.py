"""`gradwarden approve`: sign a compiled program, beside others who have."""

from __future__ import annotations

from pathlib import Path

import click

from gradwarden.cli.app import verb
from gradwarden.cli.cosigning import cosign
from gradwarden.cli.failures import InputError
from gradwarden.cli.inputs import load_program
from gradwarden.cli.options import FILE
from gradwarden.cli.output import format_option
from gradwarden.cli.signing import KeyAccess, signing_options


@verb("approve")
@click.argument("program", type=FILE, metavar="PROGRAM.json")
@click.option(
    "--sign", "key", type=FILE, required=True, metavar="KEY", help="The private key to sign it with."
)
@signing_options
@format_option("text", "json")
def command(program: Path, key: Path, access: KeyAccess, output_format: str) -> int:
    """Add a signature to a compiled program.

    The signature is one more line of PROGRAM.json.note, which is begun where it is missing; signatures by
    others stay as they are. So a policy is approved by several people, each with a key of their own: a run
    can ask for some number of them (`Governor(approvers=Approvers(keys, 2))`) for its first policy and each
    later one, and `verify --policy-key` shows that it did.

    \b
    Examples:
      gradwarden build clinical.policy -o clinical.json --sign officer.key
      gradwarden approve clinical.json --sign owner.key
      gradwarden verify run.ledger --key run.pub --policy-key officer.pub --policy-key owner.pub

    \b
    Exit status: 0 the signature was added, 2 it was not.
    """
    from gradwarden.runtime.ledger.program_signature import add_signature, note_path

    if program.suffix != ".json":
        raise InputError(f"`{program}` is no compiled program", help="`gradwarden build` makes one")
    loaded, signer = load_program(program), access.signer(key)
    return cosign(
        note_path(program),
        signer,
        lambda note: add_signature(loaded, signer, note),
        f"{loaded.name} version {loaded.version}, sha256 {loaded.digest}",
        {"name": loaded.name, "version": loaded.version, "digest": loaded.digest},
        output_format,
    )
