"""What is known of the signature beside a compiled program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradwarden.cli.failures import InputError
from gradwarden.cli.inputs import load_program, read_note
from gradwarden.cli.output import emit_json
from gradwarden.cli.verdict import Signature

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradwarden.policy.program import Program
    from gradwarden.runtime.ledger.keys import PublicKey


def signature_beside(policy: Path, program: Program, keys: Sequence[PublicKey]) -> Signature | None:
    """Return what is known of the signature beside a compiled program, None where there is none.

    Raises NoteError where there is one by a given key and it does not hold.
    """
    from gradwarden.runtime.errors import NoteError
    from gradwarden.runtime.ledger.program_signature import check_signature, note_path

    if policy.suffix != ".json" or not note_path(policy).exists():
        return None
    try:
        signers = check_signature(program, read_note(note_path(policy)), keys)
    except NoteError as error:
        if getattr(error, "fault", None) != "unknown_key":
            raise
        return Signature(note_path(policy), ())
    return Signature(note_path(policy), tuple(key.name for key in signers))


def verify_program(path: Path, keys: Sequence[PublicKey], output_format: str) -> int:
    """Check the signature of a compiled program."""
    from gradwarden.runtime.errors import NoteError
    from gradwarden.runtime.ledger.program_signature import check_signature, note_path

    program = load_program(path)
    beside = note_path(path)
    if not beside.exists():
        raise InputError(
            f"`{path}` has no signature: `{beside}` is missing",
            help="`gradwarden build --sign KEY` writes it",
        )
    signers: tuple[str, ...] = ()
    fault = None
    try:
        signers = tuple(key.name for key in check_signature(program, read_note(beside), keys))
    except NoteError as error:
        fault = error.message
    facts: dict[str, Any] = {"name": program.name, "version": program.version, "digest": program.digest}
    if output_format == "json":
        emit_json({"ok": fault is None, "program": facts, "signed_by": list(signers), "fault": fault})
    elif fault is None:
        told = f"{program.name} version {program.version}, sha256 {program.digest}"
        click.echo(
            f"{click.style('OK', fg='green', bold=True)} {path}: {told}, signed by {', '.join(signers)}"
        )
    else:
        click.echo(f"{click.style('UNTRUSTED', fg='red', bold=True)} {path}: {fault}")
    return int(fault is not None)
