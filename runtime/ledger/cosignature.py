"""Cosignatures: the word of a witness that a signed head continues all it has seen of the log before.

The format is C2SP tlog-cosignature, version 1 with Ed25519 (https://c2sp.org/tlog-cosignature). A cosignature
is one more signature line of the head's note:

    — witness.example base64(key id ‖ timestamp ‖ Ed25519 signature)

key id: the first four bytes of SHA-256(name ‖ 0A ‖ 04 ‖ key bytes). timestamp: 8 bytes, big-endian, seconds
since 1970, at most 2**63 - 1. What is signed is not the note's text alone but (section "Ed25519 signed
message")

    cosignature/v1
    time 1679315147
    the text of the checkpoint, its final newline included

It says that at that time this was the largest consistent head that the witness had seen. The message does not
hold the witness's name, so that a key belongs to one witness only.
"""

from __future__ import annotations

from collections.abc import Sequence

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.ledger.keys import PublicKey, Signer, WitnessKey, cosigned
from gradwarden.runtime.ledger.note import NoteSignature, open_note, parse_note


@frozen
class Cosignature:
    """A cosignature that holds. seconds: since 1970, by the witness's clock."""

    witness: WitnessKey
    seconds: int


def witness_key(signer: Signer) -> WitnessKey:
    """Return the public key by which the cosignatures of a private key are verified."""
    return WitnessKey(signer.name, signer.public.raw)


def cosign(note: bytes, signer: Signer, seconds: int) -> bytes:
    """Return a note with the cosignature of a witness in the place of earlier ones of its own.

    Whether the head deserves it is not asked here. Raises NoteError for what is no note.
    """
    parsed = parse_note(note)
    key = witness_key(signer)
    blob = seconds.to_bytes(8, "big") + signer.sign(cosigned(parsed.text.encode(), seconds))
    return parsed.signed(NoteSignature(key.name, key.key_id, blob)).encode()


def cosignatures(note: bytes, witnesses: Sequence[WitnessKey]) -> tuple[Cosignature, ...]:
    """Return the cosignatures of a note by the given witnesses. Raises NoteError where one of them is bad."""
    lines = parse_note(note).signatures
    known = [key for key in witnesses if any(_is_by(key, line) for line in lines)]
    if not known:
        return ()
    found = []
    for key in open_note(note, known).keys:
        line = next(line for line in lines if _is_by(key, line))
        assert isinstance(key, WitnessKey), "no other keys were given"
        found.append(Cosignature(key, int.from_bytes(line.signature[:8], "big")))
    return tuple(found)


def _is_by(key: PublicKey, line: NoteSignature) -> bool:
    return (key.name, key.key_id) == (line.name, line.key_id)
