"""Envelopes are those of DSSE: the published encoding and signature, and envelopes of other tools."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode, urlsafe_b64encode
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePublicKey,
    EllipticCurvePublicNumbers,
)
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, HashAlgorithm
from cryptography.x509 import load_der_x509_certificate
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.runtime.errors import EvidenceError
from gradwarden.runtime.evidence.dsse import envelope_signers, pae, parse_envelope, sign_envelope
from gradwarden.runtime.ledger.keys import Signer


def test_the_published_encoding_and_its_signature(vectors: Path) -> None:
    vector = json.loads((vectors / "dsse" / "pae.json").read_text())
    message = pae(vector["payloadType"], vector["payload"].encode())
    assert message == vector["pae"].encode()
    envelope = parse_envelope(json.dumps(vector["envelope"]).encode())
    assert (envelope.payload_type, envelope.payload) == (vector["payloadType"], vector["payload"].encode())
    [signature] = envelope.signatures
    r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
    key = EllipticCurvePublicNumbers(int(vector["x"]), int(vector["y"]), SECP256R1()).public_key()
    key.verify(encode_dss_signature(r, s), message, ECDSA(SHA256()))


def test_lengths_are_in_bytes() -> None:
    assert pae("é", "ü€".encode()) == "DSSEv1 2 é 5 ü€".encode()
    assert pae("", b"") == b"DSSEv1 0  0 "


@pytest.mark.parametrize(
    ("name", "digest"), [("certificate", SHA384()), ("sigstore", SHA256()), ("key", None)]
)
def test_what_other_tools_signed_is_read_and_holds(
    vectors: Path, name: str, digest: HashAlgorithm | None
) -> None:
    """Signed models of the OpenSSF, with the signer's certificate; of `key` no public key is published."""
    bundle = json.loads((vectors / "model-signing" / f"{name}.bundle.json").read_text())
    envelope = parse_envelope(json.dumps(bundle["dsseEnvelope"]).encode())
    assert envelope.payload_type == "application/vnd.in-toto+json"
    assert json.loads(envelope.payload)["_type"] == "https://in-toto.io/Statement/v1"
    if digest is None:
        return
    material = bundle["verificationMaterial"]
    chain = material.get("x509CertificateChain", {}).get("certificates") or [material["certificate"]]
    key = load_der_x509_certificate(b64decode(chain[0]["rawBytes"])).public_key()
    assert isinstance(key, EllipticCurvePublicKey)
    key.verify(envelope.signatures[0], pae(envelope.payload_type, envelope.payload), ECDSA(digest))


@given(st.binary(max_size=200), st.text(max_size=20), st.sets(st.sampled_from(["run", "other"])))
def test_an_envelope_opens_for_those_who_signed_it(
    signer: Signer, other: Signer, payload: bytes, kind: str, by: set[str]
) -> None:
    signers = [one for one in (signer, other) if one.name in by]
    data = sign_envelope(payload, kind, signers)
    if not signers:
        with pytest.raises(EvidenceError):
            parse_envelope(data)
        return
    envelope = parse_envelope(data)
    assert (envelope.payload, envelope.payload_type) == (payload, kind)
    found = envelope_signers(envelope, [signer.public, other.public])
    assert {key.name for key in found} == by


@given(st.data())
def test_no_changed_envelope_is_believed(signer: Signer, data: st.DataObject) -> None:
    envelope = sign_envelope(b'{"a":1}', "application/json", [signer])
    changed = bytearray(envelope)
    changed[data.draw(st.integers(0, len(envelope) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = parse_envelope(bytes(changed))
    except EvidenceError:
        return
    before = parse_envelope(envelope)
    same = (found.payload, found.payload_type) == (before.payload, before.payload_type)
    assert same or not envelope_signers(found, [signer.public])


def test_both_alphabets_of_base64_are_read_and_hints_are_not_believed(signer: Signer, other: Signer) -> None:
    payload = b"\xfb\xff\xbe" * 5
    document: dict[str, Any] = json.loads(sign_envelope(payload, "t", [signer]))
    document["payload"] = urlsafe_b64encode(payload).decode()
    document["signatures"][0]["sig"] = urlsafe_b64encode(b64decode(document["signatures"][0]["sig"])).decode()
    document["signatures"][0]["keyid"] = f"other+{other.public.key_id.hex()}"
    document["signatures"].insert(0, {"sig": b64encode(bytes(64)).decode()})
    document["more"] = {"a": 1}
    envelope = parse_envelope(json.dumps(document).encode())
    assert envelope_signers(envelope, [signer.public, other.public]) == (signer.public,)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b'{"payload":"","payloadType":"t","signatures":[]}',
        b'{"payload":"","payloadType":3,"signatures":[{"sig":""}]}',
        b'{"payload":"?","payloadType":"t","signatures":[{"sig":""}]}',
        b'{"payload":"","payloadType":"t","signatures":{"sig":""}}',
        b'{"payload":"","payloadType":"t","signatures":["sig"]}',
        b'{"payload":"","payloadType":"t","signatures":"sig"}',
        b'{"payload":"","payload":"","payloadType":"t","signatures":[{"sig":""}]}',
        b'{"payload":"","payloadType":"t","signatures":[' + b'{"sig":""},' * 100 + b'{"sig":""}]}',
        b"[" * 100_000,
        b"\xff",
        rb'{"payload": "", "payloadType": "\ud800", "signatures": [{"sig": "AA=="}]}',
    ],
)
def test_what_is_no_envelope_is_refused(data: bytes) -> None:
    with pytest.raises(EvidenceError):
        parse_envelope(data)
