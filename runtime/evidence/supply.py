"""What suppliers of data sign: the manifest of the examples, as the file that it is.

The signatures of `MANIFEST` stand beside it in `MANIFEST.note`, a C2SP signed note over three lines:

    gradwarden data
    sha256 6f3c…
    bytes 123456

Several suppliers sign one note, each with a key of their own, where a manifest is put together of what they
supplied. A run records the note before its first step (`supplied`), and with it the id of every key and the
digest. Whose keys they are, and which of them must have signed, is for the verifier to say.

Codes of what is found: `unsupplied_data`: the data set in hand is not one that was recorded as supplied;
`unsigned_data`: a supplier has not signed it, or the signature does not hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.digests import file_digest
from gradwarden.runtime.errors import NoteError
from gradwarden.runtime.evidence.prover import entries_of
from gradwarden.runtime.ledger.chain import Finding
from gradwarden.runtime.ledger.keys import PublicKey, Signer
from gradwarden.runtime.ledger.note import NoteSignature, open_note, parse_note, sign_note

KIND = "supplied"

MAX_NOTE_BYTES = 1 << 15

MOST_SUPPLIES = 100
"""Notes of one run."""

_FORM = re.compile(r"gradwarden data\nsha256 ([0-9a-f]{64})\nbytes (0|[1-9][0-9]{0,18})\n")


@frozen
class Supply:
    """A manifest. digest: its SHA-256 in hex. size: in bytes."""

    digest: str
    size: int

    def text(self) -> str:
        """Return the text that signatures cover."""
        return f"gradwarden data\nsha256 {self.digest}\nbytes {self.size}\n"


def note_path(manifest: Path) -> Path:
    """Return where the signatures of a manifest are kept."""
    return manifest.with_name(f"{manifest.name}.note")


def supply_of(manifest: Path) -> Supply:
    """Describe a manifest. Raises OSError."""
    return Supply(file_digest(manifest), manifest.stat().st_size)


def sign_supply(supply: Supply, signer: Signer, note: bytes | None = None) -> bytes:
    """Return a manifest's note with one more signature, in the place of an earlier one by the same key.

    note: as it is so far; signatures by others are kept, unchecked. Raises NoteError where that is the note
    of another manifest.
    """
    if note is None:
        return sign_note(supply.text(), [signer]).encode()
    if read_supply(note) != supply:
        raise NoteError("the signature is not of this manifest: it was changed since")
    own = NoteSignature(signer.name, signer.public.key_id, signer.sign(supply.text().encode()))
    return parse_note(note).signed(own).encode()


def read_supply(note: bytes) -> Supply:
    """Return what a note is about; its signatures are not checked. Raises NoteError."""
    if len(note) > MAX_NOTE_BYTES:
        raise NoteError(f"the signatures of a manifest have at most {MAX_NOTE_BYTES:,} bytes")
    match = _FORM.fullmatch(parse_note(note).text)
    if match is None:
        raise NoteError("the note is not about a manifest", help="`gradwarden sign-data` writes one")
    return Supply(match[1], int(match[2]))


def describe_supply(note: bytes) -> dict[str, Any]:
    """Return what a recorded note says: the manifest, and the names and key ids of its signatures.

    Nobody has checked these: `check_supply` does, given keys.
    """
    supply = read_supply(note)
    claimed = [f"{one.name}+{one.key_id.hex()}" for one in parse_note(note).signatures]
    return {"digest": supply.digest, "size": supply.size, "claimed_signers": claimed}


def check_supply(ledger: Path, manifest: Path, keys: Sequence[PublicKey]) -> Iterator[Finding]:
    """Yield what is wrong with a data set, given what a verified ledger records as supplied.

    keys: whose signature it must have; none: that it is one of those recorded is enough, where there are any.
    Raises OSError.
    """
    supply = supply_of(manifest)
    with closing(entries_of(ledger, {KIND})) as entries:
        recorded = [(index, body["note"].encode()) for index, _, body in entries]
    fitting = [(index, note) for index, note in recorded if read_supply(note) == supply]
    if not fitting:
        if recorded or keys:
            message = f"`{manifest.name}` is not a data set that the run records as supplied"
            yield Finding("unsupplied_data", recorded[0][0] if recorded else 0, message)
        return
    index, note = fitting[-1]
    for key in keys:
        try:
            open_note(note, [key])
        except NoteError as error:
            yield Finding(
                "unsigned_data", index, f"`{manifest.name}`, supplied by `{key.name}`: {error.message}"
            )
