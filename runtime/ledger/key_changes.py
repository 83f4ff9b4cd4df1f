"""Changes of a ledger's keys: the notes that `rotated` and `revoked` entries hold.

Each is a C2SP signed note (https://c2sp.org/signed-note) about one place in one ledger. A rotation names the
key that signed so far and the one that signs from then on, and both sign it: the old one hands over, the new
one proves that somebody has it.

    gradwarden/rotation/1
    gradwarden/3f2a…                    the ledger's origin
    1024                                the entries before this one
    base64 of the root over them
    run+36e5bcc8+AXk0…                  the old key
    run-2+81c5a6f2+ATq3…                the new key

A revocation names a key that signs no more, another that says so and signs it, and why.

    gradwarden/revocation/1
    gradwarden/3f2a…
    2048
    base64 of the root
    run+36e5bcc8+AXk0…                  the revoked key
    recovery+5b2f0a11+AdZ9…             the key that revokes it
    the laptop was stolen

Origin, size and root bind a note to its place: it says nothing in another ledger, or elsewhere in this one.
No head reads like either: a head has three lines.
"""

from __future__ import annotations

from typing import TypeAlias

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.errors import EntryInvalid, KeyFileError, NoteError
from gradwarden.runtime.ledger.keys import PublicKey, Signer
from gradwarden.runtime.ledger.note import Checkpoint, parse_checkpoint, parse_note, sign_note

ROTATION = "gradwarden/rotation/1"
REVOCATION = "gradwarden/revocation/1"

MAX_REASON = 500
"""Characters of the reason for a revocation."""


@frozen
class Rotation:
    """From here on `new` signs in the place of `old`. place: what stands before."""

    place: Checkpoint
    old: PublicKey
    new: PublicKey

    def text(self) -> str:
        return f"{ROTATION}\n{self.place.text()}{self.old.vkey}\n{self.new.vkey}\n"


@frozen
class Revocation:
    """From here on `revoked` signs no more, says `by`. place: what stands before."""

    place: Checkpoint
    revoked: PublicKey
    by: PublicKey
    reason: str

    def text(self) -> str:
        return f"{REVOCATION}\n{self.place.text()}{self.revoked.vkey}\n{self.by.vkey}\n{self.reason}\n"


KeyChange: TypeAlias = Rotation | Revocation


def check_reason(reason: str) -> None:
    """Raise EntryInvalid unless a revocation can carry the reason: one line of printable text."""
    if not reason or not reason.isprintable() or len(reason) > MAX_REASON:
        raise EntryInvalid(
            "a reason is one line of printable text", help=f"use at most {MAX_REASON} characters"
        )


def sign_change(change: KeyChange, signers: tuple[Signer, ...]) -> str:
    """Return the note of a change, signed by those who must sign it."""
    return sign_note(change.text(), signers)


def parse_change(note: bytes) -> KeyChange:
    """Return what a note says. Raises NoteError (`malformed`) unless printing it again gives the same text.

    Nothing about its signatures is checked here.
    """
    return read_change(parse_note(note).text)


def read_change(text: str) -> KeyChange:
    """Return what the text of a note says. Raises NoteError as `parse_change` does."""
    lines = text.split("\n")
    if len(lines) not in (7, 8) or lines[0] != (ROTATION if len(lines) == 7 else REVOCATION):
        raise NoteError("the note is neither a rotation nor a revocation of a key")
    place = parse_checkpoint("".join(f"{line}\n" for line in lines[1:4]))
    try:
        first, second = map(PublicKey.from_vkey, lines[4:6])
    except KeyFileError as error:
        raise NoteError(f"the note names no key: {error.message}") from None
    if len(lines) == 7:
        return Rotation(place, first, second)
    try:
        check_reason(lines[6])
    except EntryInvalid as error:
        raise NoteError(error.message) from None
    return Revocation(place, first, second, lines[6])
