"""`gradwarden verify-attestation`: check an attestation offline, against weights and a ledger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradwarden.cli.app import verb
from gradwarden.cli.diagnostics import printable
from gradwarden.cli.inputs import read_bytes, told_of
from gradwarden.cli.options import FILE, trust_options
from gradwarden.cli.output import emit_json, format_option, moment

if TYPE_CHECKING:
    from gradwarden.runtime.evidence.attestation_check import AttestationReport
    from gradwarden.runtime.evidence.proof_check import Fault
    from gradwarden.runtime.evidence.trust import Trust

HELP = {
    "untrusted": "give the public key of the attester with --attester",
    "unknown_key": "give the public key that signs the ledger with --key",
    "wrong_subject": "are these the weights that were attested? the statement's subjects list their digests",
    "unwitnessed": "the attester gives a cosigned head with `gradwarden attest --head`",
}


@verb("verify-attestation")
@click.argument("attestation", type=FILE)
@click.option(
    "--attester", "attester_files", type=FILE, multiple=True, metavar="PUB",
    help="A public key that you trust to attest; repeatable. [default: those of the ledger]",
)  # fmt: skip
@click.option(
    "--checkpoint-weights", "weights", type=FILE, multiple=True, metavar="FILE",
    help="Weights that it must be about; repeatable.",
)  # fmt: skip
@click.option("--ledger", type=FILE, metavar="LEDGER", help="Verify this ledger, and that it says the same.")
@click.option("--origin", metavar="TEXT", help="The ledger that it must be of. [default: any by the keys]")
@trust_options
@format_option("text", "json")
def command(
    attestation: Path,
    attester_files: tuple[Path, ...],
    weights: tuple[Path, ...],
    ledger: Path | None,
    origin: str | None,
    output_format: str,
    trust: Trust,
) -> int:
    """Check an attestation that `gradwarden attest` made, offline.

    Its signature is checked, the signed head of the ledger in it, and the proof that the ledger names the
    weights' digest under that head. With --checkpoint-weights the file in hand must be the one attested, or
    hold the same tensors. Policies and privacy spending stand on the attester's word; with --ledger the
    ledger is verified, and must say the same of them.

    \b
    Examples:
      gradwarden verify-attestation model.intoto.json --key run.pub --checkpoint-weights model.safetensors
      gradwarden verify-attestation model.intoto.json --key run.pub --attester lab.pub --witness witness.pub
      gradwarden verify-attestation model.intoto.json --key run.pub --ledger run.ledger --format json

    \b
    Exit status: 0 it holds, 1 it does not hold, 2 misuse or unreadable input.
    """
    from gradwarden.runtime.evidence.attestation_check import check_attestation
    from gradwarden.runtime.evidence.dsse import MAX_ENVELOPE
    from gradwarden.runtime.ledger.keys import PublicKey

    trust = replace(trust, origin=origin)
    attesters = [PublicKey.load(path) for path in attester_files]
    data = read_bytes(attestation, MAX_ENVELOPE, "an attestation")
    with told_of(attestation, help="give what `gradwarden attest -o` wrote, byte for byte"):
        report = check_attestation(data, trust, weights, attesters)
    faults = list(report.faults)
    if ledger is not None:
        faults += _compare(report, ledger, trust)
    if output_format == "json":
        emit_json(_document(attestation, report, faults, ledger))
    else:
        _show(attestation, report, faults, ledger)
    return int(bool(faults))


def _compare(report: AttestationReport, ledger: Path, trust: Trust) -> Iterator[Fault]:
    """Verify a ledger and yield where it says something else than the attestation."""
    from gradwarden.runtime.evidence.attestation_check import compare_ledger
    from gradwarden.runtime.evidence.proof_check import Fault
    from gradwarden.runtime.verification.verify import verify_ledger

    verified = verify_ledger(ledger, trust.keys)
    if verified.ok:
        yield from compare_ledger(report, ledger, verified.facts)
        return
    yield Fault(verified.status, f"`{ledger}` does not verify")
    for finding in verified.findings:
        yield Fault(finding.code, f"entry {finding.index}: {finding.message}")


def _document(
    path: Path, report: AttestationReport, faults: list[Fault], ledger: Path | None
) -> dict[str, Any]:
    seen = report.proof.head.cosignatures if report.proof is not None else ()
    return {
        "ok": not faults,
        "attestation": str(path),
        "signed_by": [key.vkey for key in report.signers],
        "witnessed_by": [{"vkey": one.witness.vkey, "time": one.seconds} for one in seen],
        "weights": dict(report.matched),
        "ledger": None if ledger is None else str(ledger),
        "faults": [{"code": f.code, "message": f.message, "help": HELP.get(f.code)} for f in faults],
        "statement": report.statement,
    }


def _show(path: Path, report: AttestationReport, faults: list[Fault], ledger: Path | None) -> None:
    status, colour = ("FAILED", "red") if faults else ("OK", "green")
    claim = "the attestation does not hold" if faults else "the attestation holds"
    click.echo(f"{click.style(status, fg=colour, bold=True)} {path}: {claim}")
    if report.signers:
        click.echo(printable(f"  attested by {', '.join(key.name for key in report.signers)}"))
    if report.statement is not None:
        for line in _told(report.predicate):
            click.echo(printable(f"  {line}"))
    if report.proof is not None and report.proof.head.signers:
        names = ", ".join(key.name for key in report.proof.head.signers)
        click.echo(printable(f"  head signed by {names}"))
    for one in report.proof.head.cosignatures if report.proof is not None else ():
        click.echo(printable(f"  head witnessed by {one.witness.name} ({moment(one.seconds)})"))
    for name, how in report.matched.items():
        what = "is the file attested" if how == "file" else "holds the tensors attested, in another file"
        click.echo(printable(f"  {name} {what}"))
    if report.statement is not None and not faults:
        basis = "the attester's word (--ledger)" if ledger is None else f"{ledger}, which was verified"
        click.echo(printable(f"  policies, steps and privacy: on {basis}"))
    for fault in faults:
        name = click.style(f"error[{fault.code}]", fg="red", bold=True)
        click.echo(f"{name}: {printable(fault.message)}", err=True)
        if fault.code in HELP:
            click.echo(f"  {click.style('= help:', fg='cyan')} {HELP[fault.code]}", err=True)


def _told(predicate: Mapping[str, Any]) -> Iterator[str]:
    """Yield what an attestation says."""
    from gradwarden.runtime.records.branches import told

    ledger, saved, steps = predicate["ledger"], predicate["checkpoint"], predicate["steps"]
    yield f"weights {saved['file']} after step {saved['step']:,}, sha256 {saved['digest']['sha256']}"
    yield f"ledger {ledger['origin']}, head over {ledger['size']:,} entries"
    for policy in predicate["policies"]:
        since = f"from step {policy['fromStep']:,}"
        digest = f"sha256 {policy['digest']['sha256']}"
        yield f"policy {policy['name']} version {policy['version']} {since}, {digest}"
    yield f"steps: {steps['committed']:,} committed, {steps['refused']:,} refused"
    if "effectiveSteps" in predicate:
        spans = tuple((one["first"], one["last"] + 1) for one in predicate["effectiveSteps"])
        yield f"steps that led to the weights: {told(spans)}"
    else:
        yield "steps that led to the weights: not said"
    for spent in predicate["privacy"]:
        allowed = f"of {spent['epsilonAllowed']} at delta {spent['delta']}"
        yield f"privacy {spent['rule']} ({spent['unit']}): epsilon {spent['epsilonSpent']} {allowed}"
