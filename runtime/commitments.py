"""Salted commitments to example ids: what the ledger records in place of the ids.

    salt(id)       = HMAC-SHA256(secret, "gradwarden/id/1" || 00 || id)
    commitment(id) = SHA256(00 || salt(id) || id)

The secret (32 random bytes, one per run) stays with the trainer; the ledger holds its SHA-256. An id has the
same commitment throughout a run, so that a verifier can count exposures without knowing any id, and another
one in every other run, so that runs cannot be linked. Revealing one salt opens one example's commitments and
no others; destroying the secret makes all of them meaningless without breaking the chain.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import secrets
from base64 import b64decode
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import rfc8785

from gradwarden.runtime.errors import KeyFileError

SIZE = 32
"""Bytes of a secret, a salt and a commitment."""

_LONGEST = 1024
"""Bytes that are read of a file with a secret, which has 65."""

_SECRET_HELP = "give or restore the file `LEDGER.secret` that was written when the run began"

_ID_LABEL = b"gradwarden/id/1\x00"
_METADATA_LABEL = b"gradwarden/metadata/1\x00"


class Committer:
    """Commits to ids under one secret."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != SIZE:
            raise KeyFileError(f"a ledger secret has {SIZE} bytes, not {len(secret)}", help=_SECRET_HELP)
        self._secret = secret
        self.secret_commitment = hashlib.sha256(secret).hexdigest()

    @classmethod
    def load(cls, path: Path) -> Committer:
        """Read the secret at `path`. Raises KeyFileError where it is missing, unreadable or no secret."""
        try:
            with path.open("rb") as file:
                secret = bytes.fromhex(file.read(_LONGEST).decode("ascii").strip())
        except OSError as error:
            raise KeyFileError(
                f"cannot read the ledger's secret `{path}`: {error.strerror}", help=_SECRET_HELP
            ) from error
        except ValueError:
            secret = b""
        if len(secret) != SIZE:
            raise KeyFileError(
                f"`{path}` is no ledger's secret, which is one line of {2 * SIZE} hexadecimal digits",
                help=_SECRET_HELP,
            )
        return cls(secret)

    @classmethod
    def load_or_create(cls, path: Path) -> Committer:
        """Read the secret at `path`, or create it there with mode 0600. Raises like `load`."""
        if path.exists():
            return cls.load(path)
        secret = secrets.token_bytes(SIZE)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(secret.hex() + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise KeyFileError(f"cannot write the ledger's secret `{path}`: {error}") from error
        return cls(secret)

    def salt(self, example: str) -> bytes:
        """Return the salt that opens the commitment of one id."""
        return hmac.digest(self._secret, _ID_LABEL + _text(example), "sha256")

    def commit(self, example: str) -> bytes:
        """Return the 32-byte commitment of one id."""
        return open_commitment(self.salt(example), example)

    def metadata_leaf(self, example: str, metadata: Mapping[str, Any]) -> bytes:
        """Return a salted digest that binds an id to its metadata (canonical JSON, RFC 8785)."""
        salt = hmac.digest(self._secret, _METADATA_LABEL + _text(example), "sha256")
        return hashlib.sha256(salt + rfc8785.dumps(_plain(metadata))).digest()


def open_commitment(salt: bytes, example: str) -> bytes:
    """Return the commitment that a revealed salt and id give; a verifier compares it with the ledger's."""
    return hashlib.sha256(b"\x00" + salt + _text(example)).digest()


def unpacked(texts: Iterable[str]) -> list[bytes]:
    """Return the commitments that the entries of a step pack in base64, one after the other."""
    joined = b"".join(map(b64decode, texts))
    return [joined[at : at + SIZE] for at in range(0, len(joined), SIZE)]


def _text(example: str) -> bytes:
    """Return an id's UTF-8 bytes; a lone surrogate, which has none, is passed through."""
    return example.encode("utf-8", "surrogatepass")


def _plain(value: Any) -> Any:
    """Return metadata as JSON data. What JSON cannot hold becomes [type, printed form]."""
    match value:
        case Mapping():
            return {ascii(key): _plain(item) for key, item in value.items()}
        case set() | frozenset():
            return sorted((_plain(item) for item in value), key=ascii)
        case list() | tuple():
            return [_plain(item) for item in value]
        case None | bool():
            return value
        case str() if value.isascii():
            return value
        case int() if abs(value) < 2**53:
            return value
        case float() if math.isfinite(value):
            return float(value)
        case date():
            return value.isoformat()
        case _ if hasattr(value, "tolist"):
            return _plain(value.tolist())
        case _:
            return [type(value).__name__, ascii(value)]
