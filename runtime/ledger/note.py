"""Signed notes and checkpoints.

A signed note (https://c2sp.org/signed-note) is UTF-8 text that ends in a newline, a blank line, and one or
more signature lines:

    This is the text.

    — name base64(key id ‖ signature)

The last blank line divides text from signatures, so text may hold blank lines of its own. An Ed25519
signature covers the text with its final newline. Lines by unknown keys are kept but prove nothing; a bad
signature by a known key rejects the note.

A checkpoint (https://c2sp.org/tlog-checkpoint) is a note text of three lines: the log's origin, the number of
entries, and the base64 of the RFC 6962 root over them. Extension lines are refused.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gradwarden.runtime.errors import NoteError
from gradwarden.runtime.ledger.keys import PublicKey, Signer

MAX_NOTE = 1_000_000
MAX_SIGNATURES = 100

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
_SIZE = re.compile(r"0|[1-9][0-9]{0,15}")


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature line: who claims to have signed, and the bytes after the key id."""

    name: str
    key_id: bytes
    signature: bytes

    def line(self) -> str:
        """Return the line as it stands in a note, with its newline."""
        return f"— {self.name} {b64encode(self.key_id + self.signature).decode()}\n"


@dataclass(frozen=True, slots=True)
class UnverifiedNote:
    """A note that is well formed. Nothing about its signatures has been checked."""

    text: str
    signatures: tuple[NoteSignature, ...]

    def signed(self, own: NoteSignature) -> UnverifiedNote:
        """Return the note with one more signature, in the place of earlier ones by the same key."""
        key = own.name, own.key_id
        others = [line for line in self.signatures if (line.name, line.key_id) != key]
        return UnverifiedNote(self.text, (*others, own))

    def encode(self) -> bytes:
        return (self.text + "\n" + "".join(line.line() for line in self.signatures)).encode()


@dataclass(frozen=True, slots=True)
class VerifiedNote:
    """A note signed by at least one known key; `keys` are those whose signatures hold."""

    text: str
    keys: tuple[PublicKey, ...]
    unverified: tuple[NoteSignature, ...]


def sign_note(text: str, signers: Iterable[Signer]) -> str:
    """Return the text as a signed note. Raises NoteError for a text that no note may hold."""
    if not text.endswith("\n") or _CONTROL.search(text):
        raise NoteError("a note's text ends in a newline and holds no control characters")
    message = text.encode()
    lines = [NoteSignature(s.name, s.public.key_id, s.sign(message)).line() for s in signers]
    return text + "\n" + "".join(lines)


def parse_note(data: bytes) -> UnverifiedNote:
    """Split a note into text and signature lines. Raises NoteError (`malformed`) for anything else."""
    if len(data) > MAX_NOTE:
        raise NoteError("the note is too large")
    try:
        note = data.decode()
    except UnicodeDecodeError:
        raise NoteError("the note is not UTF-8") from None
    if _CONTROL.search(note):
        raise NoteError("the note holds a control character")
    at = note.rfind("\n\n")
    if at < 0 or not note.endswith("\n"):
        raise NoteError("the note has no signature block")
    lines = note[at + 2 : -1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise NoteError(f"the note has more than {MAX_SIGNATURES} signatures")
    return UnverifiedNote(note[: at + 1], tuple(_parse_signature(line) for line in lines))


def _parse_signature(line: str) -> NoteSignature:
    parts = line.removeprefix("— ").split(" ")
    named = len(parts) == 2 and parts[0] and not any(c == "+" or c.isspace() for c in parts[0])
    if not line.startswith("— ") or not named:
        raise NoteError("the note has a malformed signature line")
    try:
        blob = b64decode(parts[1], validate=True)
    except ValueError:
        blob = b""
    if len(blob) < 5 or b64encode(blob).decode() != parts[1]:
        raise NoteError("the note has a malformed signature line")
    return NoteSignature(parts[0], blob[:4], blob[4:])


def open_note(data: bytes, keys: Sequence[PublicKey]) -> VerifiedNote:
    """Verify a note. Raises NoteError: `malformed`, `bad_signature`, `ambiguous_key` or `unknown_key`.

    Repeated signatures by one key count once.
    """
    note = parse_note(data)
    message = note.text.encode()
    holding: dict[PublicKey, None] = {}
    unverified = []
    seen: set[tuple[str, bytes]] = set()
    for line in note.signatures:
        known = [key for key in keys if key.name == line.name and key.key_id == line.key_id]
        if len(known) > 1:
            raise NoteError(f"two keys are called `{line.name}`", fault="ambiguous_key")
        if not known:
            unverified.append(line)
            continue
        if (line.name, line.key_id) in seen:
            continue
        seen.add((line.name, line.key_id))
        if not known[0].verify(line.signature, message):
            raise NoteError(f"the signature by `{line.name}` does not hold", fault="bad_signature")
        holding[known[0]] = None
    if not holding:
        names = ", ".join(f"`{line.name}`" for line in unverified[:5])
        raise NoteError(f"the note is signed by no known key, only by {names}", fault="unknown_key")
    return VerifiedNote(note.text, tuple(holding), tuple(unverified))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The head of a log: its identity, the number of entries, and the root hash over them (32 bytes)."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        return f"{self.origin}\n{self.size}\n{b64encode(self.root).decode()}\n"


def parse_checkpoint(text: str) -> Checkpoint:
    """Parse a checkpoint. Raises NoteError unless printing it again gives the same text."""
    lines = text.split("\n")
    if len(lines) != 4 or not lines[0] or not _SIZE.fullmatch(lines[1]):
        raise NoteError("the text is not a checkpoint: origin, size and root, one line each")
    try:
        root = b64decode(lines[2], validate=True)
    except ValueError:
        raise NoteError("the checkpoint's root is not base64") from None
    checkpoint = Checkpoint(lines[0], int(lines[1]), root)
    if len(root) != 32 or checkpoint.text() != text:
        raise NoteError("the checkpoint is not in canonical form")
    return checkpoint
