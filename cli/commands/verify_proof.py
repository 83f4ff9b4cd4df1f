"""`gradwarden verify-proof`: check a proof offline, without the ledger."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradwarden.cli.app import verb
from gradwarden.cli.diagnostics import printable
from gradwarden.cli.inputs import PROOF_HELP, read_bytes, read_head_note, told_of
from gradwarden.cli.options import FILE, trust_options
from gradwarden.cli.output import emit_json, format_option, moment

if TYPE_CHECKING:
    from gradwarden.runtime.evidence.proof_check import ProofReport
    from gradwarden.runtime.evidence.trust import Trust

HELP = {
    "unknown_key": "give the public key of whoever keeps the ledger with --key",
    "unwitnessed": "have the head cosigned (`gradwarden witness`) and prove under that head (--head)",
    "wrong_path": "the entry or the proof was changed, or the proof is of another entry",
    "rollback": "the ledger was cut after the old head was signed: keep both heads, they are the evidence",
    "fork": "the ledger has two histories: keep both heads, they are the evidence",
    "inconsistent": "ask for another proof from the old head; where none is given, the ledger was rewritten",
}


@verb("verify-proof")
@click.argument("proof", type=FILE)
@trust_options
@click.option("--entry", type=FILE, metavar="FILE", help="The entry, where the proof withholds it.")
@click.option("--old", type=FILE, metavar="NOTE", help="The head that you kept, for a consistency proof.")
@click.option("--origin", metavar="TEXT", help="The ledger that it must be of. [default: any by the keys]")
@format_option("text", "json")
def command(
    proof: Path,
    entry: Path | None,
    old: Path | None,
    origin: str | None,
    output_format: str,
    trust: Trust,
) -> int:
    """Check a proof that `gradwarden proof` made, offline and without the ledger.

    An inclusion proof shows that an entry is covered by a head that one of the keys signed. A consistency
    proof shows that a head covers all that an older one covers, unchanged; the older one is what you kept
    (--old). With --witness the head must be cosigned, too: then a holder of the ledger's key cannot show
    another history to others without those witnesses. Neither proof shows that the rest of the ledger is
    sound: that is what `gradwarden verify` does.

    \b
    Examples:
      gradwarden verify-proof 1024.tlog-proof --key run.pub
      gradwarden verify-proof grown.proof --old kept.note --key run.pub
      gradwarden verify-proof 1024.tlog-proof --key run.pub --witness a.pub --witness b.pub --witnesses 1
      gradwarden verify-proof withheld.tlog-proof --entry line.json --key run.pub --format json

    \b
    Exit status: 0 it holds, 1 it does not hold, 2 misuse or unreadable input.
    """
    from gradwarden.runtime.evidence.proof_check import check_consistency, check_inclusion
    from gradwarden.runtime.evidence.proof_file import MAX_PROOF, InclusionProof, parse_proof
    from gradwarden.runtime.ledger.entries import MAX_LINE

    trust = replace(trust, origin=origin)
    content = read_bytes(proof, MAX_PROOF, "a proof")
    with told_of(proof, help=PROOF_HELP):
        found = parse_proof(content)
    if isinstance(found, InclusionProof):
        if old is not None:
            raise click.UsageError(f"`{proof}` is about one entry; --old belongs to a consistency proof")
        line = None if entry is None else read_bytes(entry, MAX_LINE + 1, "an entry").removesuffix(b"\n")
        report = check_inclusion(found, trust, line=line)
    else:
        if old is None or entry is not None:
            raise click.UsageError(
                f"`{proof}` is a consistency proof: give the head that you kept with --old"
            )
        report = check_consistency(found, read_head_note(old), trust)
    if output_format == "json":
        emit_json(_document(proof, report))
    else:
        _show(proof, report)
    return int(not report.ok)


def _document(path: Path, report: ProofReport) -> dict[str, Any]:
    head = report.head.checkpoint
    shown: dict[str, Any] = {
        "ok": report.ok,
        "proof": str(path),
        "kind": report.kind,
        "origin": head.origin,
        "size": head.size,
        "root": head.root.hex(),
        "signed_by": [key.vkey for key in report.head.signers],
        "witnessed_by": [{"vkey": one.witness.vkey, "time": one.seconds} for one in report.head.cosignatures],
        "faults": [
            {"code": fault.code, "message": fault.message, "help": HELP.get(fault.code)}
            for fault in report.faults
        ],
    }
    if report.entry is not None:
        index, kind, body = report.entry
        shown["entry"] = {"index": index, "kind": kind, "body": body}
    if report.leaf is not None:
        shown["leaf"] = report.leaf.hex()
    if report.old is not None:
        shown["old"] = {"size": report.old.size, "root": report.old.root.hex()}
    return shown


def _show(path: Path, report: ProofReport) -> None:
    head = report.head.checkpoint
    status, colour = ("OK", "green") if report.ok else ("FAILED", "red")
    click.echo(f"{click.style(status, fg=colour, bold=True)} {path}: {_claim(report)}")
    click.echo(printable(f"  ledger {head.origin}"))
    signers = ", ".join(key.name for key in report.head.signers) or "none of the given keys"
    click.echo(printable(f"  head over {head.size:,} entries, signed by {signers}"))
    if report.head.cosignatures:
        names = ", ".join(f"{one.witness.name} ({moment(one.seconds)})" for one in report.head.cosignatures)
        click.echo(printable(f"  witnessed by {names}"))
    click.echo(f"  root {head.root.hex()}")
    for fault in report.faults:
        name = click.style(f"error[{fault.code}]", fg="red", bold=True)
        click.echo(f"{name}: {printable(fault.message)}", err=True)
        if fault.code in HELP:
            click.echo(f"  {click.style('= help:', fg='cyan')} {HELP[fault.code]}", err=True)


def _claim(report: ProofReport) -> str:
    if not report.ok:
        return f"the {report.kind} proof does not hold"
    if report.entry is not None:
        index, kind, body = report.entry
        step = f" of step {body['step']:,}" if isinstance(body.get("step"), int) else ""
        return f"entry {index:,}, `{kind}`{step}, is in the ledger"
    assert report.old is not None, "a consistency proof is from an older head"
    return f"the first {report.old.size:,} entries are unchanged"
