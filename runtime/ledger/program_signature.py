"""Signatures of compiled programs.

The signature of `PROGRAM.json` stands beside it in `PROGRAM.json.note`, a C2SP signed note over three lines:

    gradwarden program
    clinical_finetune version 3
    sha256 6f3c…

so that it covers the name and version that a person reads as well as the digest of the bytes that run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from gradwarden.policy.program import Program
from gradwarden.runtime.errors import NoteError
from gradwarden.runtime.ledger.keys import PublicKey, Signer
from gradwarden.runtime.ledger.note import open_note, sign_note

MAX_NOTE_BYTES = 1 << 16


def note_path(program: Path) -> Path:
    """Return where the signature of a program file is kept."""
    return program.with_name(f"{program.name}.note")


def note_text(program: Program) -> str:
    """Return the text that a program's signature covers."""
    return f"gradwarden program\n{program.name} version {program.version}\nsha256 {program.digest}\n"


def sign_program(program: Program, signers: Iterable[Signer]) -> str:
    """Return the signed note of a program."""
    return sign_note(note_text(program), signers)


def check_signature(program: Program, note: bytes, keys: Sequence[PublicKey]) -> tuple[PublicKey, ...]:
    """Return the keys whose signature of the program holds; at least one.

    Raises NoteError where the note is malformed, none of the keys signed it, a signature is bad, or it is the
    signature of another program.
    """
    if len(note) > MAX_NOTE_BYTES:
        raise NoteError(f"a program's signature has at most {MAX_NOTE_BYTES:,} bytes")
    verified = open_note(note, keys)
    if verified.text != note_text(program):
        raise NoteError(f"the signature is not of this program, `{program.name}` version {program.version}")
    return verified.keys


def demand_signature(program: Program, note: bytes | None, keys: Sequence[PublicKey]) -> None:
    """Raise NoteError unless one of the keys signed the program. note: its signature, None: it has none."""
    if note is None:
        names = ", ".join(f"`{key.name}`" for key in keys)
        raise NoteError(
            f"the program `{program.name}` version {program.version} is not signed; trusted are {names}",
            help="sign it with `gradwarden build POLICY -o PROGRAM.json --sign KEY`, and give its `.note`",
        )
    check_signature(program, note, keys)
