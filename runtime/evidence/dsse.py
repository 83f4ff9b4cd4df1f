"""DSSE envelopes (https://github.com/secure-systems-lab/dsse, protocol.md and envelope.md, version 1.0).

An envelope is JSON: the signed bytes and their type, and signatures over both:

    {"payload":"<base64>","payloadType":"<type>","signatures":[{"keyid":"<hint>","sig":"<base64>"}]}

What is signed is the pre-authentication encoding (protocol.md, section "Signature Definition"):

    PAE(type, body) = "DSSEv1" SP len(type) SP type SP len(body) SP body      lengths in bytes, in decimal

Signatures are Ed25519. `keyid` is a hint that nothing rests on: here the name and key id of the signer's
vkey. Both alphabets of base64 are read. An envelope holds if one of the given keys has signed it, whatever
others have (section "Multi-signature Verification", with t = 1); the payload is looked at only then, and it
is the very bytes that were verified.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from typing import Any

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.errors import EvidenceError
from gradwarden.runtime.ledger.keys import PublicKey, Signer

MAX_ENVELOPE = 64 << 20
"""The longest envelope that is read, in bytes."""

MAX_SIGNATURES = 100


@frozen
class Envelope:
    """An envelope that is well formed. Nothing about its signatures has been checked."""

    payload: bytes
    payload_type: str
    signatures: tuple[bytes, ...]


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return the pre-authentication encoding."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign_envelope(payload: bytes, payload_type: str, signers: Iterable[Signer]) -> bytes:
    """Return the JSON of an envelope, and a newline."""
    message = pae(payload_type, payload)
    signatures = [
        {
            "keyid": f"{signer.name}+{signer.public.key_id.hex()}",
            "sig": b64encode(signer.sign(message)).decode(),
        }
        for signer in signers
    ]
    document = {
        "payload": b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": signatures,
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def parse_envelope(data: bytes) -> Envelope:
    """Read an envelope; fields that the format does not know are passed over. Raises EvidenceError."""
    if len(data) > MAX_ENVELOPE:
        raise EvidenceError(f"an envelope has at most {MAX_ENVELOPE:,} bytes")
    document = load_json(data, "the envelope")
    try:
        payload, kind, signatures = document["payload"], document["payloadType"], document["signatures"]
        found = tuple(_decode(signature["sig"]) for signature in signatures[: MAX_SIGNATURES + 1])
        body = _decode(payload)
        kind.encode()
    except (KeyError, TypeError, AttributeError, UnicodeEncodeError):
        raise EvidenceError("the file is no DSSE envelope", help=_FORM) from None
    if type(kind) is not str or not 0 < len(found) <= MAX_SIGNATURES or type(signatures) is not list:
        raise EvidenceError("the file is no DSSE envelope", help=_FORM)
    return Envelope(body, kind, found)


_FORM = "an envelope has a `payload`, a `payloadType` and a list of 1 to 100 `signatures`"


def envelope_signers(envelope: Envelope, keys: Sequence[PublicKey]) -> tuple[PublicKey, ...]:
    """Return the given keys that have signed an envelope; none: it is not to be believed."""
    message = pae(envelope.payload_type, envelope.payload)
    return tuple(key for key in keys if any(key.verify(found, message) for found in envelope.signatures))


def load_json(data: bytes, noun: str) -> Any:
    """Parse JSON in which no key comes twice. Raises EvidenceError for anything else."""
    try:
        return json.loads(data.decode(), object_pairs_hook=_distinct)
    except (ValueError, RecursionError):
        raise EvidenceError(f"{noun} is not JSON in UTF-8, with distinct keys") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key comes twice")
    return found


def _decode(text: Any) -> bytes:
    if type(text) is not str:
        raise EvidenceError("the file is no DSSE envelope", help=_FORM)
    try:
        return b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except ValueError:
        raise EvidenceError("the envelope holds text that is not base64") from None
