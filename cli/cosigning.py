"""How verbs add a signature to the note beside a file, where several people may sign."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradwarden.cli.failures import InputError
from gradwarden.cli.files import write_text
from gradwarden.cli.inputs import read_note
from gradwarden.cli.output import emit_json

if TYPE_CHECKING:
    from gradwarden.runtime.ledger.keys import Signer


def cosign(
    note: Path,
    signer: Signer,
    sign: Callable[[bytes | None], bytes],
    signed: str,
    facts: Mapping[str, Any],
    output_format: str,
) -> int:
    """Add a signature to a note, or begin it; say so, and return the exit status.

    sign: returns the note with the signature, from the note so far, None where there is none. signed, facts:
    what is signed, in words and for JSON. Raises InputError where the note is about something else.
    """
    from gradwarden.runtime.errors import NoteError

    try:
        content = sign(read_note(note) if note.exists() else None)
    except NoteError as error:
        raise InputError(f"`{note}`: {error.message}", help="move it away, to begin anew") from None
    write_text(note, content.decode())
    if output_format == "json":
        emit_json({**facts, "note": str(note), "signed_by": signer.public.vkey})
        return 0
    click.echo(f"signed {signed}")
    click.echo(f"wrote {note}: it has the signature by `{signer.name}`")
    return 0
