"""`gradwarden attest`: attest how a model was governed, as an in-toto statement about its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradwarden.cli.app import verb
from gradwarden.cli.diagnostics import plural, printable
from gradwarden.cli.failures import InputError, give_up
from gradwarden.cli.files import write_text
from gradwarden.cli.inputs import load_head, load_program
from gradwarden.cli.options import FILE, load_witnesses, witness_options
from gradwarden.cli.output import emit_json, format_option
from gradwarden.cli.signing import KeyAccess, signing_options

if TYPE_CHECKING:
    from gradwarden.runtime.evidence.proof_check import Fault
    from gradwarden.runtime.verification.verify import VerifyReport


@verb("attest")
@click.argument("ledger", type=FILE)
@click.option(
    "--checkpoint-weights", "weights", type=FILE, required=True, metavar="FILE",
    help="The weights that the ledger names last.",
)  # fmt: skip
@click.option(
    "--sign", "private", type=FILE, required=True, metavar="KEY", help="The attester's private key."
)
@click.option(
    "--key", "key_files", type=FILE, multiple=True, metavar="PUB",
    help="A public key that signs the ledger; repeatable. [default: the attester's]",
)  # fmt: skip
@click.option("--policy", "policies", type=FILE, multiple=True, help="What must have governed the run.")
@click.option("--head", type=FILE, metavar="NOTE", help="The head to attest under. [default: the last one]")
@witness_options
@click.option("-o", "--output", type=FILE, required=True, metavar="FILE", help="Where to write it.")
@signing_options
@format_option("text", "json")
def command(
    ledger: Path,
    weights: Path,
    private: Path,
    key_files: tuple[Path, ...],
    policies: tuple[Path, ...],
    head: Path | None,
    witness_files: tuple[Path, ...],
    quorum: int | None,
    output: Path,
    access: KeyAccess,
    output_format: str,
) -> int:
    """Attest how a model was governed: an in-toto statement about its weights, in a signed DSSE envelope.

    The ledger is verified first, decisions and all, and the weights must be those that it names last; where
    anything is wrong, nothing is written. The statement says which policies governed the run, what it spent
    of each privacy budget, and under which head of the ledger that stands; it carries the proof of the
    ledger's entry about the weights. --head takes a cosigned head; with --witness it must be one.

    Whoever has the weights checks it with `gradwarden verify-attestation`. Its form is that of other supply
    chain attestations (SLSA, SBOMs), so it can be stored and matched with them.

    \b
    Examples:
      gradwarden attest run.ledger --checkpoint-weights model.safetensors --sign run.key -o model.intoto.json
      gradwarden attest run.ledger --checkpoint-weights model.safetensors --sign lab.key --key run.pub \\
        --head cosigned.note --witness witness.pub -o model.intoto.json

    \b
    Exit status: 0 attested, 1 the ledger or the weights do not hold, 2 misuse or unreadable input.
    """
    from gradwarden.runtime.errors import HeadMismatch
    from gradwarden.runtime.evidence.dsse import sign_envelope
    from gradwarden.runtime.evidence.proof_check import trust_head
    from gradwarden.runtime.evidence.prover import last_head
    from gradwarden.runtime.evidence.statement import PAYLOAD_TYPE, make_statement
    from gradwarden.runtime.evidence.trust import Trust
    from gradwarden.runtime.ledger.keys import PublicKey
    from gradwarden.runtime.verification.verify import verify_ledger

    signer = access.signer(private)
    keys = [PublicKey.load(path) for path in key_files] or [signer.public]
    trust = Trust(keys, load_witnesses(witness_files, quorum, keys))
    programs = [load_program(policy, None) for policy in policies]
    under = load_head(head) if head is not None else None
    if not weights.is_file():
        raise InputError(f"`{weights}` is no file")
    report = verify_ledger(ledger, keys, program=programs or None, weights=weights)
    if report.ok and not all(given["same_file"] for given in report.facts["weights"]):
        raise InputError(
            f"`{weights}` holds the tensors that the ledger names, in another file",
            help="give the file as it was saved: its digest is what the attestation is about",
        )
    if not report.ok:
        return _refuse_ledger(ledger, report, output_format)
    under = under or last_head(ledger)
    trusted = trust_head(under.note, trust.after(report.facts["keys_used"]))
    if trusted.faults:
        return _refuse(ledger, trusted.faults, output_format)
    assurance = "witnessed" if trusted.cosignatures else "self-attested"
    try:
        statement = make_statement(ledger, weights, under, report.facts, assurance)
    except HeadMismatch as error:
        return give_up(error, output_format)
    write_text(output, sign_envelope(statement, PAYLOAD_TYPE, [signer]).decode())
    if output_format == "json":
        emit_json(
            {
                "ok": True,
                "output": str(output),
                "weights": str(weights),
                "origin": under.checkpoint.origin,
                "size": under.checkpoint.size,
                "signed_by": signer.public.vkey,
                "assurance": assurance,
            }
        )
        return 0
    entries = plural(under.checkpoint.size, "entry", "entries")
    click.echo(f"wrote {output}: {weights.name} under a head over {entries}, {assurance}, by {signer.name}")
    return 0


def _refuse_ledger(ledger: Path, report: VerifyReport, output_format: str) -> int:
    from gradwarden.runtime.evidence.proof_check import Fault

    errors = [found for found in report.findings if found.severity == "error"]
    faults = [Fault(found.code, f"entry {found.index}: {found.message}") for found in errors]
    return _refuse(ledger, [Fault(report.status, f"`{ledger}` does not verify"), *faults], output_format)


def _refuse(ledger: Path, faults: list[Fault] | tuple[Fault, ...], output_format: str) -> int:
    if output_format == "json":
        emit_json({"ok": False, "faults": [{"code": f.code, "message": f.message} for f in faults]})
    click.echo(f"{click.style('NOT ATTESTED', fg='red', bold=True)} {ledger}", err=True)
    for fault in faults:
        name = click.style(f"error[{fault.code}]", fg="red", bold=True)
        click.echo(f"{name}: {printable(fault.message)}", err=True)
    click.echo("  = help: `gradwarden verify` says what was checked", err=True)
    return 1
