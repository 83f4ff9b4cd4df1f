"""Model signatures are those of the OpenSSF: its published bundles are read, and ours have their form."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import load_der_x509_certificate

from gradwarden.runtime.errors import EvidenceError, KeyFileError
from gradwarden.runtime.evidence.model_signature import (
    Manifest,
    compare_model,
    load_model_key,
    load_model_public_key,
    open_bundle,
    read_statement,
    sign_model,
)

KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with weights, a file deeper down, and what belongs to git."""
    folder = tmp_path / "model"
    (folder / "shards").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "shards" / "a.safetensors").write_bytes(b"weights")
    (folder / "Shards.txt").write_text("two")
    (folder / ".git" / "HEAD").write_text("main")
    return folder


def published(vectors: Path, name: str) -> tuple[bytes, dict[str, Any]]:
    data = (vectors / "model-signing" / f"{name}.bundle.json").read_bytes()
    return data, json.loads(data)


def test_a_published_bundle_opens_with_the_key_of_its_certificate(vectors: Path) -> None:
    data, bundle = published(vectors, "certificate")
    [first, *_] = bundle["verificationMaterial"]["x509CertificateChain"]["certificates"]
    key = load_der_x509_certificate(b64decode(first["rawBytes"])).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    manifest = open_bundle(data, key)
    assert list(manifest.digests) == ["signme-1", "signme-2"]
    with pytest.raises(EvidenceError, match="not by the key given"):
        open_bundle(data, KEY.public_key())


@pytest.mark.parametrize("name", ["key", "certificate", "sigstore"])
def test_published_statements_are_written_again_as_they_are(vectors: Path, name: str) -> None:
    _, bundle = published(vectors, name)
    payload = b64decode(bundle["dsseEnvelope"]["payload"])
    assert json.loads(read_statement(payload).statement()) == json.loads(payload)


def test_what_was_signed_is_found_again(model: Path) -> None:
    data = sign_model(Manifest.of(model, [model / "model.sig"]), KEY)
    (model / "model.sig").write_bytes(data)
    manifest = open_bundle(data, KEY.public_key())
    assert list(manifest.digests) == ["Shards.txt", "config.json", "shards/a.safetensors"]
    assert compare_model(manifest, model) == []


def test_every_difference_is_named(model: Path) -> None:
    manifest = Manifest.of(model)
    (model / "config.json").write_text("{ }")
    (model / "Shards.txt").unlink()
    (model / "shards" / "b.safetensors").write_bytes(b"")
    assert [(f.code, f.message.split("`")[1]) for f in compare_model(manifest, model)] == [
        ("wrong_file", "config.json"),
        ("missing_file", "Shards.txt"),
        ("added_file", "shards/b.safetensors"),
    ]


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda c: c.name)
def test_no_changed_bundle_is_believed(model: Path, curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    bundle = json.loads(sign_model(Manifest.of(model), key))
    assert open_bundle(json.dumps(bundle).encode(), key.public_key()) == Manifest.of(model)
    envelope = bundle["dsseEnvelope"]
    payload = bytearray(b64decode(envelope["payload"]))
    for place in range(0, len(payload), 37):
        changed = payload.copy()
        changed[place] ^= 1
        forged = {**bundle, "dsseEnvelope": {**envelope, "payload": b64encode(changed).decode()}}
        with pytest.raises(EvidenceError):
            open_bundle(json.dumps(forged).encode(), key.public_key())


def signed(statement: dict[str, Any]) -> bytes:
    class Written(Manifest):
        def statement(self) -> bytes:
            return json.dumps(statement).encode()

    return sign_model(Written("", {}, ()), KEY)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"predicateType": "https://example.com/wrong-predicate/v1.0"}, "no model signature"),
        ({"_type": "https://in-toto.io/Statement/v0.1"}, "no in-toto statement of version 1"),
        ({"_type": None}, "no in-toto statement of version 1"),
        ({"subject": [{"name": 3, "digest": {"sha256": "00" * 32}}]}, "does not list the files"),
        ({"subject": [{"name": "m", "digest": {"sha256": "00" * 32}}]}, "contradicts itself"),
        ({"subject": []}, "does not list the files"),
        ({"predicate": {"resources": [], "serialization": {"method": "shards"}}}, "not read here"),
        ({"predicate": {"resources": 1, "serialization": {}}}, "does not list the files"),
    ],
)
def test_a_statement_of_another_form_is_refused(model: Path, change: dict[str, Any], told: str) -> None:
    statement = json.loads(Manifest.of(model).statement())
    with pytest.raises(EvidenceError, match=told):
        open_bundle(signed({**statement, **change}), KEY.public_key())


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"mediaType": 1}', b"\xff"])
def test_what_is_no_bundle_is_refused(data: bytes) -> None:
    with pytest.raises(EvidenceError):
        open_bundle(data, KEY.public_key())


def test_an_envelope_with_any_numbers_is_refused_cleanly(model: Path) -> None:
    bundle = json.loads(sign_model(Manifest.of(model), KEY))
    bundle["dsseEnvelope"]["signatures"] = [{"sig": 10**30}]
    with pytest.raises(EvidenceError, match="no DSSE envelope"):
        open_bundle(json.dumps(bundle).encode(), KEY.public_key())


def test_links_and_empty_folders_are_not_signed(model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvidenceError, match="no files"):
        Manifest.of(tmp_path / "empty")
    (model / "link").symlink_to("/etc/hostname")
    with pytest.raises(EvidenceError, match="is a link"):
        Manifest.of(model)


def test_other_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text("nothing")
    for load in (load_model_key, load_model_public_key):
        with pytest.raises(KeyFileError):
            load(path)
