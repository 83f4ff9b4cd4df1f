"""`gradwarden build`: compile a policy to the program that runs, and sign it."""

from __future__ import annotations

from pathlib import Path

import click

from gradwarden.cli.app import verb
from gradwarden.cli.files import write_text
from gradwarden.cli.inputs import load_program
from gradwarden.cli.options import FILE
from gradwarden.cli.output import emit_json, format_option
from gradwarden.cli.signing import KeyAccess, signing_options


@verb("build")
@click.argument("policy", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="Where to write the program (*.json).")
@click.option("--model-map", type=FILE, help="Bind the bands to the parameters of this model.")
@click.option("--sign", "key", type=FILE, metavar="KEY", help="Sign the program with this private key.")
@signing_options
@format_option("text", "json")
def command(
    policy: Path,
    output: Path,
    model_map: Path | None,
    key: Path | None,
    access: KeyAccess,
    output_format: str,
) -> int:
    """Compile a policy to the program that the runtime and the verifier execute.

    The program is plain JSON in its canonical form (RFC 8785), so that the same policy always gives the same
    bytes, identified by their SHA-256. With --sign a signature is written beside it, to PROGRAM.json.note (a
    C2SP signed note over the digest); `gradwarden verify PROGRAM.json --key KEY.pub` checks it.

    \b
    Examples:
      gradwarden build clinical.policy -o clinical.json
      gradwarden build clinical.policy -o clinical.json --model-map model.yaml --sign release.key
      gradwarden verify clinical.json --key release.pub

    \b
    Exit status: 0 the program was written, 2 it was not.
    """
    from gradwarden.runtime.ledger.program_signature import note_path, sign_program

    if output.suffix != ".json":
        raise click.UsageError(f"`{output}`: the name of a program ends in `.json`")
    program = load_program(policy, model_map)
    note = sign_program(program, [access.signer(key)]) if key is not None else None
    write_text(output, program.to_json())
    if note is not None:
        write_text(note_path(output), note)
    if output_format == "json":
        emit_json(
            {
                "output": str(output),
                "name": program.name,
                "version": program.version,
                "digest": program.digest,
                "model_map": program.model_map or None,
                "note": str(note_path(output)) if note is not None else None,
            }
        )
        return 0
    click.echo(f"wrote {output}: {program.name} version {program.version}, sha256 {program.digest}")
    if note is not None:
        click.echo(f"wrote {note_path(output)}: its signature by {key}")
    if not program.model_map:
        click.echo("its bands are not bound to a model; --model-map binds them")
    return 0
