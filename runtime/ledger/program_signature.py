"""Signatures of compiled programs.

The signature of `PROGRAM.json` stands beside it in `PROGRAM.json.note`, a C2SP signed note over three lines:

    gradwarden program
    clinical_finetune version 3
    sha256 6f3c…

so that it covers the name and version that a person reads as well as the digest of the bytes that run.
Several people can sign one note, each with a key of their own: a policy that k of n must approve.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gradwarden.runtime.errors import NoteError
from gradwarden.runtime.ledger.keys import PublicKey, Signer
from gradwarden.runtime.ledger.note import NoteSignature, open_note, parse_note, sign_note

if TYPE_CHECKING:
    from gradwarden.policy.program import Program

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


def add_signature(program: Program, signer: Signer, note: bytes | None = None) -> bytes:
    """Return a program's note with one more signature, in the place of an earlier one by the same key.

    note: as it is so far; signatures by others are kept, unchecked. Raises NoteError where that is the note
    of another program.
    """
    if note is None:
        return sign_program(program, [signer]).encode()
    parsed = parse_note(_bounded(note))
    _check_text(parsed.text, program)
    own = NoteSignature(signer.name, signer.public.key_id, signer.sign(parsed.text.encode()))
    return parsed.signed(own).encode()


def check_signature(program: Program, note: bytes, keys: Sequence[PublicKey]) -> tuple[PublicKey, ...]:
    """Return the keys whose signature of the program holds; at least one.

    Raises NoteError where the note is malformed, none of the keys signed it, a signature is bad, or it is the
    signature of another program.
    """
    verified = open_note(_bounded(note), keys)
    _check_text(verified.text, program)
    return verified.keys


@dataclass(frozen=True, slots=True)
class Approvers:
    """Who must have signed a program: `needed` of `keys`. Keys with the same bytes count as one signer.

    Raises NoteError where there are not so many of them.
    """

    keys: tuple[PublicKey, ...] = ()
    needed: int = 1

    def __post_init__(self) -> None:
        distinct = len({key.raw for key in self.keys})
        if self.keys and not 1 <= self.needed <= distinct:
            raise NoteError(
                f"{self.needed} of {distinct} keys cannot sign a program",
                help="ask for at least 1 signer, and for at most as many as there are keys",
            )

    def enough(self, signed: Iterable[PublicKey]) -> bool:
        """Return whether so many have signed."""
        return not self.keys or len({key.raw for key in signed}) >= self.needed

    def demand(self, program: Program, note: bytes | None) -> None:
        """Raise NoteError unless enough of the keys, where there are any, signed the program.

        note: None where it has none.
        """
        if not self.keys:
            return
        help = "sign it with `gradwarden build POLICY -o PROGRAM.json --sign KEY`, and give its `.note`"
        described = f"the program `{program.name}` version {program.version}"
        if note is None:
            names = ", ".join(f"`{key.name}`" for key in self.keys)
            raise NoteError(f"{described} is not signed; trusted are {names}", help=help)
        signed = check_signature(program, note, self.keys)
        if not self.enough(signed):
            names = ", ".join(f"`{key.name}`" for key in signed)
            raise NoteError(f"{described} is signed by {names}, and {self.needed} must sign it", help=help)


NOBODY = Approvers()
"""Asks for no signature."""


def _bounded(note: bytes) -> bytes:
    if len(note) > MAX_NOTE_BYTES:
        raise NoteError(f"a program's signature has at most {MAX_NOTE_BYTES:,} bytes")
    return note


def _check_text(text: str, program: Program) -> None:
    if text != note_text(program):
        raise NoteError(f"the signature is not of this program, `{program.name}` version {program.version}")
