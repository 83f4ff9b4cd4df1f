"""Ed25519 keys (RFC 8032) and their files.

A private key is a PKCS#8 PEM file of mode 0600, with an optional passphrase. A public key is one line of
text, a *vkey* (https://c2sp.org/signed-note): `name+hex(key id)+base64(01 ‖ 32 key bytes)`, where the key id
is the first four bytes of SHA-256(name ‖ 0A ‖ 01 ‖ key bytes). The name is part of the identity; a private
key is named by its file (`run.key` is `run`).

A witness signs heads of logs that are not its own, and nothing else. Its public key (`WitnessKey`) has the
type byte 04 in the place of 01 (https://c2sp.org/tlog-cosignature, section "Format"), and so another key id:
neither kind of signature is ever taken for the other.

Points of small order and non-canonical encodings are refused: under such a key one signature can hold for
many messages.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from base64 import b64decode, b64encode
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from gradwarden.runtime.errors import KeyFileError

MAX_KEY_FILE = 16_384

_FIELD = 2**255 - 19
_SMALL_ORDER_Y = frozenset(
    int.from_bytes(bytes.fromhex(y), "little")
    for y in (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    )
)
"""The y coordinates of the eight points whose order divides 8 (RFC 7748 section 7, Ed25519 form)."""


@dataclass(frozen=True)
class PublicKey:
    """A named Ed25519 public key. Raises KeyFileError for a bad name, length or point."""

    name: str
    raw: bytes

    algorithm: ClassVar[bytes] = b"\x01"
    """The signed-note type byte of Ed25519."""

    def __post_init__(self) -> None:
        check_name(self.name)
        if len(self.raw) != 32:
            raise KeyFileError(f"an Ed25519 public key has 32 bytes, not {len(self.raw)}")
        y = int.from_bytes(self.raw, "little") & (2**255 - 1)
        if y >= _FIELD or y in _SMALL_ORDER_Y:
            raise KeyFileError(f"the public key `{self.name}` is not a safe point of the curve")

    @cached_property
    def key_id(self) -> bytes:
        """The four bytes that name this key in a signature line."""
        return hashlib.sha256(self.name.encode() + b"\n" + self.algorithm + self.raw).digest()[:4]

    @cached_property
    def vkey(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{b64encode(self.algorithm + self.raw).decode()}"

    @cached_property
    def _key(self) -> Ed25519PublicKey:
        return Ed25519PublicKey.from_public_bytes(self.raw)

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Return whether the signature holds for the message."""
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True

    @classmethod
    def from_vkey(cls, text: str) -> Self:
        """Parse a vkey. Raises KeyFileError unless printing the key again gives the same text."""
        parts = text.split("+", 2)
        if len(parts) != 3:
            raise KeyFileError("a public key reads `name+key id+base64`", help=_VKEY_HELP)
        try:
            material = b64decode(parts[2], validate=True)
        except ValueError:
            raise KeyFileError("the public key holds invalid base64", help=_VKEY_HELP) from None
        if material[:1] != cls.algorithm:
            raise KeyFileError(_wrong_kind(material[:1]), help=_VKEY_HELP)
        key = cls(parts[0], material[1:])
        if key.vkey != text:
            raise KeyFileError(f"the public key `{parts[0]}` does not match its key id", help=_VKEY_HELP)
        return key

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a `.pub` file: one vkey on one line, which may end as lines do on Windows."""
        content, shown = _read(path), os.fspath(path)
        if content.startswith((_PEM, _ENCRYPTED)):
            raise KeyFileError(
                f"`{shown}` is a private key, where a public one is asked for",
                help="give the file `NAME.pub` beside it, and the private key to nobody",
            )
        try:
            return cls.from_vkey(content.decode().removesuffix("\n").removesuffix("\r"))
        except UnicodeDecodeError:
            raise KeyFileError(f"`{shown}` is not a public key file", help=_VKEY_HELP) from None
        except KeyFileError as error:
            message = f"`{shown}` is not a usable public key file: {error.message}"
            raise KeyFileError(message, help=error.help or _VKEY_HELP) from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a `.pub` file. An existing file is refused."""
        _write(path, f"{self.vkey}\n".encode(), 0o644)


class WitnessKey(PublicKey):
    """A named Ed25519 public key of a witness. What it verifies are cosignatures (`cosignature`)."""

    algorithm: ClassVar[bytes] = b"\x04"

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Return whether a timestamped signature holds for the text of a checkpoint."""
        if len(signature) != TIMESTAMPED:
            return False
        seconds = int.from_bytes(signature[:8], "big")
        return seconds <= MAX_SECONDS and super().verify(signature[8:], cosigned(message, seconds))


TIMESTAMPED = 8 + 64
"""Bytes of a `timestamped_signature` with Ed25519 (tlog-cosignature, section "Format")."""

MAX_SECONDS = 2**63 - 1
"""The latest time that a cosignature may carry, in seconds since 1970."""


def cosigned(text: bytes, seconds: int) -> bytes:
    """Return what a witness signs of a checkpoint (tlog-cosignature, section "Ed25519 signed message").

    text: of the checkpoint, up to its final newline. seconds: since 1970, when it is signed.
    """
    return b"cosignature/v1\ntime %d\n" % seconds + text


def _wrong_kind(algorithm: bytes) -> str:
    """Say what a vkey of another type is."""
    if algorithm == WitnessKey.algorithm:
        return "the public key is a witness's, which signs no ledgers: give it with --witness"
    if algorithm == PublicKey.algorithm:
        return "the public key is no witness's: `gradwarden keygen NAME --witness` makes one"
    return "the public key is not an Ed25519 key"


_VKEY_HELP = "a public key file holds the one line that `gradwarden keygen` wrote to `NAME.pub`"


class Signer(ABC):
    """Whatever signs with one Ed25519 private key: a file (`FileSigner`), or something that keeps the key to
    itself (`outside_signer`).

    public: the key that verifies what is signed; its name is the name under which signatures appear.
    """

    def __init__(self, public: PublicKey) -> None:
        self.public = public

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    @property
    def name(self) -> str:
        return self.public.name

    @abstractmethod
    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature. Raises SigningError where there is none."""

    @staticmethod
    def generate(name: str) -> FileSigner:
        """Make a new key. Raises KeyFileError for a name that a note could not carry."""
        return FileSigner(name, Ed25519PrivateKey.generate())

    @staticmethod
    def load(path: str | os.PathLike[str], passphrase: str | bytes | None = None) -> FileSigner:
        """Read a private key. Raises KeyFileError for anything but an Ed25519 key in PKCS#8 PEM, and where
        the passphrase is missing, wrong, or not asked for.
        """
        return FileSigner(Path(path).stem, _load_private(path, _secret(passphrase)))


class FileSigner(Signer):
    """A private key from a file, held in memory. Never shown by `repr`."""

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        super().__init__(PublicKey(name, raw))
        self._key = key

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)

    def save(self, path: str | os.PathLike[str], passphrase: str | bytes | None = None) -> None:
        """Write the private key with mode 0600. An existing file is refused, never overwritten."""
        secret = _secret(passphrase)
        pem = self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(secret) if secret else serialization.NoEncryption(),
        )
        _write(path, pem, 0o600)


def _load_private(path: str | os.PathLike[str], secret: bytes | None) -> Ed25519PrivateKey:
    shown = os.fspath(path)
    pem = _read(path)
    encrypted = _ENCRYPTED in pem
    if encrypted and secret is None:
        raise KeyFileError(f"the key file `{shown}` is protected by a passphrase", help=_PASSPHRASE_HELP)
    if secret is not None and not encrypted and _PEM in pem:
        raise KeyFileError(
            f"the key file `{shown}` is not protected by a passphrase, and one was given",
            help="leave the passphrase out, or see whether it is the right file",
        )
    try:
        key = serialization.load_pem_private_key(pem, secret)
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        if encrypted:
            raise KeyFileError(
                f"the passphrase does not open the key file `{shown}`",
                help="it is the wrong passphrase, or the file is damaged",
            ) from error
        raise KeyFileError(
            f"`{shown}` is not a readable private key", help="it should begin with a PEM header"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"`{shown}` is not an Ed25519 key", help="make one with `gradwarden keygen`")
    return key


_PEM = b"-----BEGIN PRIVATE KEY-----"
_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
"""How a PKCS#8 file begins (RFC 7468, sections 10 and 11)."""

_PASSPHRASE_HELP = (
    "give it with --passphrase-file, --passphrase-env or --passphrase; in Python, "
    "`Signer.load(path, passphrase)`"
)


def check_name(name: str) -> None:
    """Raise KeyFileError unless a signed note can carry the name: no white space, no `+`, not empty."""
    if not name or "+" in name or any(c.isspace() or not c.isprintable() for c in name) or len(name) > 255:
        raise KeyFileError(
            f"`{name}` cannot name a key", help="use 1 to 255 characters without white space and without `+`"
        )


def _secret(passphrase: str | bytes | None) -> bytes | None:
    secret = passphrase.encode() if isinstance(passphrase, str) else passphrase
    return secret or None


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_KEY_FILE + 1)
    except OSError as error:
        raise KeyFileError(f"cannot read the key file `{os.fspath(path)}`: {error.strerror}") from error
    if len(content) > MAX_KEY_FILE:
        raise KeyFileError(f"`{os.fspath(path)}` is too large for a key file")
    return content


def _write(path: str | os.PathLike[str], content: bytes, mode: int) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, mode)
            file.write(content)
            file.flush()
            os.fsync(handle)
    except FileExistsError as error:
        raise KeyFileError(
            f"`{os.fspath(path)}` exists already", help="choose another name, or move the old file away"
        ) from error
    except OSError as error:
        raise KeyFileError(f"cannot write `{os.fspath(path)}`: {error.strerror}") from error
