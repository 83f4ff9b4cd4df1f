"""`gradwarden witness`: cosign the head of a ledger, if it continues the last one seen."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradwarden.cli.app import verb
from gradwarden.cli.diagnostics import printable
from gradwarden.cli.failures import complain
from gradwarden.cli.files import write_text
from gradwarden.cli.inputs import PROOF_HELP, check_begun, head_under, read_bytes, told_of
from gradwarden.cli.options import FILE
from gradwarden.cli.output import emit_json, format_option
from gradwarden.cli.signing import KeyAccess, signing_options

if TYPE_CHECKING:
    from gradwarden.runtime.evidence.proof_file import ConsistencyProof
    from gradwarden.runtime.evidence.witness import Cosigned, Refusal, Witness

HELP = {
    "rollback": "the ledger was cut, or put back to an earlier state: the record keeps the evidence",
    "fork": "the ledger was rewritten: the record keeps the evidence",
    "inconsistent": "give a proof from the last head seen: `gradwarden proof LEDGER --from NOTE`",
    "wrong_size": "give a proof from the last head seen: `gradwarden proof LEDGER --from NOTE`",
    "unknown_key": "give the public key of the ledger with --key",
}


@verb("witness")
@click.argument("ledger", type=FILE, metavar="LEDGER|PROOF")
@click.option(
    "--key", "key_files", type=FILE, multiple=True, required=True, metavar="PUB",
    help="A public key that signs the ledger; repeatable.",
)  # fmt: skip
@click.option("--sign", "private", type=FILE, required=True, metavar="KEY", help="The witness's private key.")
@click.option("--record", type=FILE, required=True, metavar="FILE", help="What this witness has seen.")
@click.option("--head", type=FILE, metavar="NOTE", help="The head to cosign. [default: the ledger's last]")
@click.option("-o", "--output", type=FILE, metavar="FILE", help="Where to write the head. [default: stdout]")
@signing_options
@format_option("text", "json")
def command(
    ledger: Path,
    key_files: tuple[Path, ...],
    private: Path,
    record: Path,
    head: Path | None,
    output: Path | None,
    access: KeyAccess,
    output_format: str,
) -> int:
    """Cosign the head of a ledger, if it continues the last one that this witness has seen.

    A witness is somebody else than the trainer, with a key (`gradwarden keygen NAME --witness`) and a record
    of their own. It vouches for one thing: that the ledger only grew. Given a ledger, it makes the
    consistency proof itself; given a proof (`gradwarden proof LEDGER --from NOTE`), it needs no ledger. The
    first head of a ledger is taken as it is. What is written is the head with one more signature, a C2SP
    cosignature, for `gradwarden verify --checkpoint … --witness …`.

    The record is made where there is none. It must not be lost, or put back to an earlier state: a witness
    that forgets could cosign two histories.

    \b
    Examples:
      gradwarden witness run.ledger --key run.pub --sign witness.key --record seen.json -o cosigned.note
      gradwarden witness grown.proof --key run.pub --sign witness.key --record seen.json -o cosigned.note
      gradwarden witness run.ledger --head cosigned.note --key run.pub --sign second.key --record second.json

    \b
    Exit status: 0 cosigned, 1 refused (cut, rewritten, not signed by the key), 2 misuse or unreadable input.
    """
    from gradwarden.runtime.errors import HeadMismatch
    from gradwarden.runtime.evidence.witness import Refusal, open_witness
    from gradwarden.runtime.ledger.keys import PublicKey

    keys = [PublicKey.load(path) for path in key_files]
    signer = access.signer(private, witness=True)
    request = _request(ledger)
    if request is not None and head is not None:
        raise click.UsageError(f"`{ledger}` is a proof, which has a head of its own; --head is for a ledger")
    try:
        with open_witness(record, signer, keys) as witness:
            if request is not None:
                outcome = witness.consider(request, int(time.time()))
            else:
                outcome = _consider_ledger(witness, ledger, head)
    except HeadMismatch as error:
        if output_format == "json":
            emit_json({"ok": False, "refusal": "head_mismatch", "message": error.message})
        complain(error.code, error.message, error.help)
        return 1
    if isinstance(outcome, Refusal):
        return _refuse(outcome, ledger, output_format)
    if output is not None:
        write_text(output, outcome.note.decode())
    _show(outcome, signer.name, output, output_format)
    return 0


def _request(path: Path) -> ConsistencyProof | None:
    """Return the proof that a file holds, None where it is no proof and so a ledger."""
    from gradwarden.runtime.evidence.proof_file import MAX_PROOF, InclusionProof, parse_proof

    with path.open("rb") as file:
        start = file.read(4)
    if start not in (b"old ", b"c2sp"):
        return None
    content = read_bytes(path, MAX_PROOF, "a proof")
    with told_of(path, help=PROOF_HELP):
        proof = parse_proof(content)
    if isinstance(proof, InclusionProof):
        raise click.UsageError(f"`{path}` is about one entry; a witness takes a consistency proof")
    return proof


def _consider_ledger(witness: Witness, ledger: Path, note: Path | None) -> Cosigned | Refusal:
    from gradwarden.runtime.evidence.proof_file import ConsistencyProof
    from gradwarden.runtime.evidence.prover import prove_growth

    check_begun(ledger)
    head = head_under(note, ledger)
    seen = witness.seen(head.checkpoint.origin)
    size = 0 if seen is None else seen.size
    if size > head.checkpoint.size:
        request = ConsistencyProof(size, (), head.note)  # refused, whatever the ledger holds
    else:
        request = prove_growth(ledger, size, head)
    return witness.consider(request, int(time.time()), at_hand=True)


def _refuse(refusal: Refusal, ledger: Path, output_format: str) -> int:
    head = refusal.checkpoint
    if output_format == "json":
        emit_json(
            {
                "ok": False,
                "refusal": refusal.code,
                "message": refusal.message,
                "origin": head.origin,
                "size": head.size,
                "seen": None if refusal.seen is None else refusal.seen.decode(),
            }
        )
    name = click.style(f"error[{refusal.code}]", fg="red", bold=True)
    click.echo(f"{name}: {printable(f'`{ledger}` is not cosigned: {refusal.message}')}", err=True)
    if refusal.code in HELP:
        click.echo(f"  {click.style('= help:', fg='cyan')} {HELP[refusal.code]}", err=True)
    return 1


def _show(cosigned: Cosigned, name: str, output: Path | None, output_format: str) -> None:
    head, before = cosigned.checkpoint, cosigned.before
    if output_format == "json":
        emit_json(
            {
                "ok": True,
                "output": None if output is None else str(output),
                "witness": name,
                "origin": head.origin,
                "size": head.size,
                "root": head.root.hex(),
                "before": None if before is None else before.size,
                "note": cosigned.note.decode(),
            }
        )
    elif output is None:
        click.echo(cosigned.note, nl=False)
    else:
        since = "the first of this ledger" if before is None else f"continues the head over {before.size:,}"
        click.echo(f"wrote {output}: the head over {head.size:,} entries ({since}), cosigned by {name}")
