"""OpenSSF model signatures: a manifest of a model's files, signed, as other tools for models read it.

The format is OMS 1.0 (https://github.com/ossf/model-signing-spec): a Sigstore bundle with a DSSE envelope, in
which an in-toto Statement lists every file of a folder by name and SHA-256 (`files` serialization), sorted by
name. The statement's subject is the folder, with the SHA-256 of all these digests, one after the other. That
subject does not cover the names: what counts is the whole statement, which is what is signed.

Keys are those of the format, on P-256, P-384 or P-521, signing by ECDSA with the hash of their size; a bundle
names its key by the SHA-256 of the public key's PEM. So it takes a key beside the ledger's, which is Ed25519.

What ties such a signature to a ledger is the digest of a file: the one in the manifest is the one that the
ledger's `checkpoint` entry names.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gradwarden.runtime.digests import file_digest
from gradwarden.runtime.errors import EvidenceError, KeyFileError
from gradwarden.runtime.evidence.dsse import Envelope, load_json, pae, parse_envelope
from gradwarden.runtime.evidence.statement import PAYLOAD_TYPE, STATEMENT_TYPE
from gradwarden.runtime.ledger.chain import Finding

PREDICATE_TYPE = "https://model_signing/signature/v1.0"
BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"

IGNORED = (".git", ".gitattributes", ".github", ".gitignore")
"""What the format's own tools leave out of a manifest, by default."""

MAX_FILES = 100_000

_HASHES: dict[str, Callable[[], hashes.HashAlgorithm]] = {
    "secp256r1": hashes.SHA256,
    "secp384r1": hashes.SHA384,
    "secp521r1": hashes.SHA512,
}


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of a model. digests: SHA-256 in hex by name, in order. ignored: paths that were left out."""

    name: str
    digests: dict[str, str]
    ignored: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path, ignored: Sequence[Path] = ()) -> Manifest:
        """Hash the files of a folder.

        ignored: what else is left out beside `IGNORED`, such as the signature. Raises EvidenceError for
        links, which could lead out of the folder, and where there is no file.
        """
        left_out = tuple(sorted({*IGNORED, *(_within(path, folder) for path in ignored)}))
        found: dict[str, str] = {}
        for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
            name = path.relative_to(folder).as_posix()
            if any(name == one or name.startswith(f"{one}/") for one in left_out):
                continue
            if path.is_symlink():
                raise EvidenceError(f"`{path}` is a link", help="put the file itself in its place")
            if path.is_file():
                found[name] = file_digest(path)
            if len(found) > MAX_FILES:
                raise EvidenceError(f"`{folder}` has more than {MAX_FILES:,} files")
        if not found:
            raise EvidenceError(f"`{folder}` has no files to sign")
        return cls(folder.resolve().name, found, left_out)

    def statement(self) -> bytes:
        """Return the JSON of the Statement."""
        document = {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": self.name, "digest": {"sha256": _root(self.digests.values())}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "resources": [
                    {"algorithm": "sha256", "digest": digest, "name": name}
                    for name, digest in self.digests.items()
                ],
                "serialization": {
                    "allow_symlinks": False,
                    "hash_type": "sha256",
                    "ignore_paths": list(self.ignored),
                    "method": "files",
                },
            },
        }
        return orjson.dumps(document)


def sign_model(manifest: Manifest, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the bundle with a manifest's signature, as JSON."""
    payload, public = manifest.statement(), key.public_key()
    signature = key.sign(pae(PAYLOAD_TYPE, payload), ec.ECDSA(_HASHES[public.curve.name]()))
    bundle = {
        "mediaType": BUNDLE_TYPE,
        "verificationMaterial": {"publicKey": {"hint": _hint(public)}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": b64encode(signature).decode(), "keyid": ""}],
        },
    }
    return orjson.dumps(bundle, option=orjson.OPT_APPEND_NEWLINE)


def open_bundle(data: bytes, key: ec.EllipticCurvePublicKey) -> Manifest:
    """Return the manifest that a key has signed.

    Raises EvidenceError for what is no such bundle, for a signature by another key, and for one that fails.
    """
    envelope = _envelope(load_json(data, "the model signature"))
    message = pae(envelope.payload_type, envelope.payload)
    if not any(_holds(key, signature, message) for signature in envelope.signatures):
        raise EvidenceError("the model signature is not by the key given, or does not hold")
    if envelope.payload_type != PAYLOAD_TYPE:
        raise EvidenceError(
            f"the model signature is about `{envelope.payload_type}`, not an in-toto statement"
        )
    return read_statement(envelope.payload)


def read_statement(payload: bytes) -> Manifest:
    """Read a statement. Raises EvidenceError where its form is another, or its subject does not fit."""
    document = load_json(payload, "the statement")
    try:
        kind, [subject], predicate = document["predicateType"], document["subject"], document["predicate"]
        settings, resources = predicate["serialization"], predicate["resources"]
        name, root, form = _text(subject["name"]), subject["digest"]["sha256"], document["_type"]
        digests = {_text(one["name"]): _digest(one) for one in resources}
        method, links = settings["method"], settings.get("allow_symlinks", False)
        ignored = tuple(_text(path) for path in settings.get("ignore_paths", ()))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise EvidenceError("the statement does not list the files of a model") from None
    if form != STATEMENT_TYPE:
        raise EvidenceError(f"the statement is no in-toto statement of version 1: its type is `{form}`")
    if kind != PREDICATE_TYPE:
        raise EvidenceError(f"the statement is no model signature: its predicate is `{kind}`")
    if method != "files" or links is not False:
        raise EvidenceError(
            "the signature lists a model in a way that is not read here: by shards, or through links",
            help="sign the model by files, without links",
        )
    if len(digests) != len(resources) or root != _root(digests.values()):
        raise EvidenceError("the statement contradicts itself: its subject is not that of its files")
    return Manifest(name, digests, ignored)


def compare_model(signed: Manifest, folder: Path) -> list[Finding]:
    """Return how a folder differs from what was signed."""
    found = Manifest.of(folder, [folder / path for path in signed.ignored]).digests
    changed = [
        Finding("wrong_file", 0, f"`{name}` is another file than the one that was signed")
        for name, digest in signed.digests.items()
        if name in found and found[name] != digest
    ]
    missing = [
        Finding("missing_file", 0, f"`{name}` was signed, and is missing")
        for name in signed.digests
        if name not in found
    ]
    added = [
        Finding("added_file", 0, f"`{name}` is there, and was not signed")
        for name in found
        if name not in signed.digests
    ]
    return changed + missing + added


def load_model_key(path: Path, passphrase: bytes | None = None) -> ec.EllipticCurvePrivateKey:
    """Read a private key for model signatures. Raises KeyFileError."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), passphrase)
    except (TypeError, ValueError, UnsupportedAlgorithm):
        raise KeyFileError(
            f"`{path}` cannot be read as a private key, with what passphrase was given"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _HASHES:
        raise KeyFileError(f"`{path}` is of another kind than model signatures take", help=_KEY_HELP)
    return key


def load_model_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Read a public key in PEM. Raises KeyFileError."""
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (ValueError, UnsupportedAlgorithm):
        raise KeyFileError(f"`{path}` cannot be read as a public key in PEM", help=_KEY_HELP) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _HASHES:
        raise KeyFileError(f"`{path}` is of another kind than model signatures take", help=_KEY_HELP)
    return key


_KEY_HELP = "`openssl ecparam -name prime256v1 -genkey -noout -out model.pem` makes one on P-256"


def _envelope(bundle: Any) -> Envelope:
    try:
        kind, material, envelope = (
            bundle[field] for field in ("mediaType", "verificationMaterial", "dsseEnvelope")
        )
    except (KeyError, TypeError):
        raise EvidenceError(
            "the file is no model signature: a Sigstore bundle with a DSSE envelope"
        ) from None
    if kind != BUNDLE_TYPE or not isinstance(material, dict):
        raise EvidenceError(f"the file is no Sigstore bundle of the type `{BUNDLE_TYPE}`")
    return parse_envelope(json.dumps(envelope).encode())


def _holds(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message, ec.ECDSA(_HASHES[key.curve.name]()))
    except InvalidSignature:
        return False
    return True


def _hint(key: ec.EllipticCurvePublicKey) -> str:
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def _root(digests: Any) -> str:
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


def _within(path: Path, folder: Path) -> str:
    try:
        return path.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        return IGNORED[0]


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError
    return value


def _digest(resource: Any) -> str:
    if resource["algorithm"] != "sha256" or len(bytes.fromhex(resource["digest"])) != 32:
        raise ValueError
    return _text(resource["digest"])
