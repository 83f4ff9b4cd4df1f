"""`gradwarden verify-model`: check an OpenSSF model signature, and that a ledger names the weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradwarden.cli.app import verb
from gradwarden.cli.diagnostics import plural, printable
from gradwarden.cli.failures import InputError, complain
from gradwarden.cli.inputs import read_bytes
from gradwarden.cli.options import FILE
from gradwarden.cli.output import emit_json, format_option

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gradwarden.runtime.evidence.model_signature import Manifest
    from gradwarden.runtime.ledger.chain import Finding


@verb("verify-model")
@click.argument("folder", type=FILE, metavar="DIR")
@click.option(
    "--signature", type=FILE, required=True, metavar="SIG", help="The signature, a Sigstore bundle."
)
@click.option("--key", type=FILE, required=True, metavar="PEM", help="The public key it must be by.")
@click.option("--ledger", type=FILE, help="Verify this ledger, and that it names one of the files last.")
@click.option(
    "--ledger-key", "ledger_keys", type=FILE, multiple=True, metavar="PUB",
    help="A public key that you trust to sign that ledger; repeatable.",
)  # fmt: skip
@format_option("text", "json")
def command(
    folder: Path,
    signature: Path,
    key: Path,
    ledger: Path | None,
    ledger_keys: tuple[Path, ...],
    output_format: str,
) -> int:
    """Check that a model's files are those that were signed, and that a ledger is about them.

    Reads signatures of OMS 1.0 that list a model by files and were made with a key, by `gradwarden
    sign-model` or any other tool. No file may be changed, missing or added. With --ledger that ledger must
    verify, and the checkpoint that it names last must be one of the files signed.

    \b
    Examples:
      openssl pkey -in model.pem -pubout -out model.pub.pem
      gradwarden verify-model weights/ --signature weights/model.sig --key model.pub.pem
      gradwarden verify-model weights/ --signature weights/model.sig --key model.pub.pem \\
        --ledger run.ledger --ledger-key run.pub

    \b
    Exit status: 0 it holds, 1 it does not hold, 2 misuse or unreadable input.
    """
    from gradwarden.runtime.errors import EvidenceError
    from gradwarden.runtime.evidence.dsse import MAX_ENVELOPE
    from gradwarden.runtime.evidence.model_signature import (
        compare_model,
        load_model_public_key,
        open_bundle,
    )
    from gradwarden.runtime.ledger.chain import Finding

    if not folder.is_dir():
        raise InputError(f"`{folder}` is no folder")
    if bool(ledger) != bool(ledger_keys):
        raise click.UsageError("--ledger and --ledger-key go together")
    public = load_model_public_key(key)
    data = read_bytes(signature, MAX_ENVELOPE, "a model signature")
    findings: list[Finding] = []
    files = 0
    try:
        manifest = open_bundle(data, public)
        files = len(manifest.digests)
        findings += compare_model(manifest, folder)
        if ledger is not None:
            findings += _unnamed(manifest, ledger, ledger_keys)
    except EvidenceError as error:
        findings.append(Finding("bad_signature", 0, error.message))
    if output_format == "json":
        faults = [{"code": f.code, "message": f.message} for f in findings]
        emit_json({"ok": not findings, "files": files, "faults": faults})
        return int(bool(findings))
    status, colour = ("FAILED", "red") if findings else ("OK", "green")
    told = "the model is not the one that was signed" if findings else f"{plural(files, 'file')} as signed"
    click.echo(f"{click.style(status, fg=colour, bold=True)} {folder}: {told}")
    if ledger is not None and not findings:
        click.echo(printable(f"  {ledger}, which was verified, names one of them last"))
    for finding in findings:
        complain(finding.code, finding.message, None)
    return int(bool(findings))


def _unnamed(manifest: Manifest, ledger: Path, key_files: Sequence[Path]) -> Iterator[Finding]:
    """Verify a ledger, and yield what keeps it from being about one of the files."""
    from gradwarden.runtime.evidence.prover import entries_of
    from gradwarden.runtime.ledger.chain import Finding
    from gradwarden.runtime.ledger.keys import PublicKey
    from gradwarden.runtime.verification.verify import verify_ledger

    report = verify_ledger(ledger, [PublicKey.load(path) for path in key_files])
    if not report.ok:
        yield Finding(report.status, 0, f"`{ledger}` does not verify: `gradwarden verify` says why")
        return
    named = [body["digest"] for _, _, body in entries_of(ledger, ("checkpoint",))]
    if not named or named[-1] not in manifest.digests.values():
        yield Finding("unnamed_weights", 0, f"none of the files is the checkpoint that `{ledger}` names last")
