"""A signer whose key stays in a device that speaks PKCS#11: a smart card, a security module, SoftHSM.

The key is named by a URI (RFC 7512), so that a command line or a configuration file holds it in one word:

    pkcs11:token=ward;object=run?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/secrets/pin

`object` is the label of the key pair; in its place, or beside it, `id` gives CKA_ID. Mechanism and key type
are CKM_EDDSA and CKK_EC_EDWARDS of PKCS#11 3.0; the device signs the message itself, in one part.

The library that loads a device's module (`python-pkcs11`, the `pkcs11` extra) has no time limit: a device
that never answers holds up a step for good, where a command (`CommandSigner`) is given up.
"""

from __future__ import annotations

import os
import re
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote, unquote_to_bytes

from gradwarden.runtime.errors import SigningError
from gradwarden.runtime.ledger.keys import MAX_KEY_FILE, PublicKey, check_name
from gradwarden.runtime.ledger.outside_signer import OutsideSigner

if TYPE_CHECKING:
    from collections.abc import Iterator

_PATH = ("token", "object", "id", "serial")
_QUERY = ("module-path", "pin-source")
_EDWARDS25519 = bytes.fromhex("130c656477617264733235353139")
"""EC_PARAMS of the curve: the PrintableString `edwards25519` (PKCS#11 3.0, section 2.3.5)."""

_FORM = "pkcs11:token=LABEL;object=LABEL?module-path=/path/of/the/module.so"


@dataclass(frozen=True, slots=True)
class TokenUri:
    """What a URI says of a key pair. module: the device's library. Empty where the URI says nothing."""

    module: str
    token: str
    object: str
    id: bytes
    serial: bytes
    pin_source: str

    @classmethod
    def parse(cls, text: str) -> TokenUri:
        """Read a URI. Raises SigningError, also for attributes that are not known: they might matter."""
        scheme, _, rest = text.partition(":")
        if scheme.lower() != "pkcs11":
            raise SigningError(f"`{text}` is no PKCS#11 URI", help=f"it reads `{_FORM}`")
        path, _, query = rest.partition("?")
        found = _attributes(path, ";", _PATH) | _attributes(query, "&", _QUERY)
        for needed, what in (("module-path", "the device's module"), ("token", "the token")):
            if not found.get(needed):
                raise SigningError(f"the PKCS#11 URI does not name {what}: `{needed}`", help=_FORM)
        if not (found.get("object") or found.get("id")):
            raise SigningError("the PKCS#11 URI does not name the key: `object` or `id`", help=_FORM)
        return cls(
            module=unquote(found["module-path"]),
            token=unquote(found["token"]),
            object=unquote(found.get("object", "")),
            id=unquote_to_bytes(found.get("id", "")),
            serial=unquote_to_bytes(found.get("serial", "")),
            pin_source=unquote(found.get("pin-source", "")),
        )

    def pin(self, given: bytes | None) -> str | None:
        """Return the PIN: the one given, else the first line of `pin-source`; None for a key without one."""
        if given is not None:
            return given.decode()
        if not self.pin_source:
            return None
        path = Path(self.pin_source.removeprefix("file:"))
        try:
            with path.open("rb") as file:
                line = file.read(MAX_KEY_FILE).split(b"\n", 1)[0].rstrip(b"\r")
        except OSError as error:
            raise SigningError(f"the PIN cannot be read from `{path}`: {error.strerror}") from error
        return line.decode()


class TokenSigner(OutsideSigner):
    """Signs with a key in a device. A session is opened at the first signature, and anew after a failure.

    public: the key's public half, by which each signature is verified; `token_key` reads it from the device.
    uri: `TokenUri` or its text. pin: None for the one that the URI's `pin-source` gives.
    """

    def __init__(self, public: PublicKey, uri: TokenUri | str, pin: str | bytes | None = None) -> None:
        super().__init__(public)
        self._uri = TokenUri.parse(uri) if isinstance(uri, str) else uri
        self._pin = pin.encode() if isinstance(pin, str) else pin
        self._lock = threading.Lock()
        self._session: Any = None

    def ask(self, message: bytes) -> bytes:
        """See `OutsideSigner`."""
        with self._lock, _explained(self._uri):
            if self._session is not None:
                # Another session of this process may have logged out; a device may be plugged in anew.
                with suppress(RuntimeError):
                    return self._signed(message)
                self._close()
            self._session = _open(self._uri, self._pin)
            try:
                return self._signed(message)
            except BaseException:
                self._close()
                raise

    def _signed(self, message: bytes) -> bytes:
        return bytes(_key(self._session, self._uri, private=True).sign(message, mechanism=_eddsa()))

    def close(self) -> None:
        """Log out. The next signature logs in again."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            with suppress(RuntimeError):
                session.close()


def token_key(uri: TokenUri, name: str, pin: bytes | None = None) -> PublicKey:
    """Return the public key of a pair in a device, under the name that its signatures shall have.

    Raises SigningError where the device has no such key or cannot be reached, KeyFileError for a bad name.
    """
    with _explained(uri), _open(uri, pin) as session:
        return _public(session, uri, name)


def has_token_key(uri: TokenUri, pin: bytes | None = None) -> bool:
    """Return whether a device has something under the key's label or id. Raises SigningError."""
    with _explained(uri), _open(uri, pin) as session:
        return any(True for _ in session.get_objects(_wanted(uri)))


def make_token_key(uri: TokenUri, name: str, pin: bytes | None = None) -> PublicKey:
    """Make a key pair in a device, whose private half cannot be read out, and return its public key.

    Raises like `token_key`. A second pair of the same label makes the URI ambiguous: see `has_token_key`.
    """
    check_name(name)
    with _explained(uri), _open(uri, pin, write=True) as session:
        from pkcs11 import Attribute, KeyType, Mechanism

        curve = session.create_domain_parameters(
            KeyType.EC_EDWARDS, {Attribute.EC_PARAMS: _EDWARDS25519}, local=True
        )
        curve.generate_keypair(
            mechanism=Mechanism.EC_EDWARDS_KEY_PAIR_GEN,
            store=True,
            label=uri.object or name,
            id=uri.id or os.urandom(8),
        )
        return _public(session, uri, name)


def _attributes(text: str, separator: str, known: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in text.split(separator) if text else ():
        name, equals, value = part.partition("=")
        if name == "pin-value":
            raise SigningError(
                "a PIN in a URI can be read by other users of the machine",
                help="keep it in a file, and say `pin-source=file:/path`, or give it as a passphrase",
            )
        if not equals or name not in known or name in found:
            raise SigningError(
                f"`{part}` cannot be read in the PKCS#11 URI", help=f"known here are {', '.join(known)}"
            )
        found[name] = value
    return found


def _wanted(uri: TokenUri) -> dict[Any, Any]:
    from pkcs11 import Attribute

    named = {Attribute.LABEL: uri.object, Attribute.ID: uri.id}
    return {attribute: value for attribute, value in named.items() if value}


def _open(uri: TokenUri, given: bytes | None, *, write: bool = False) -> Any:
    import pkcs11

    chosen = {"token_label": uri.token, **({"token_serial": uri.serial} if uri.serial else {})}
    token = pkcs11.lib(uri.module).get_token(**chosen)
    try:
        return token.open(rw=write, user_pin=uri.pin(given))
    except pkcs11.UserAlreadyLoggedIn:
        # A login is the whole process's (PKCS#11 3.0, section 5.6.8): another session has made it.
        return token.open(rw=write)


def _key(session: Any, uri: TokenUri, *, private: bool) -> Any:
    from pkcs11 import KeyType, ObjectClass

    kind = ObjectClass.PRIVATE_KEY if private else ObjectClass.PUBLIC_KEY
    label, number = uri.object or None, uri.id or None
    return session.get_key(object_class=kind, key_type=KeyType.EC_EDWARDS, label=label, id=number)


def _public(session: Any, uri: TokenUri, name: str) -> PublicKey:
    from pkcs11 import Attribute

    point = bytes(_key(session, uri, private=False)[Attribute.EC_POINT])
    # An OCTET STRING around the 32 bytes (PKCS#11 3.0, section 2.3.5); some devices give the bytes alone.
    return PublicKey(name, point.removeprefix(b"\x04\x20") if len(point) == 34 else point)


def _eddsa() -> Any:
    from pkcs11 import Mechanism

    return Mechanism.EDDSA


_REASONS = {
    "NoSuchKey": "it has no such key, or shows it only with a PIN",
    "NoSuchToken": "there is no such token",
    "MultipleObjectsReturned": "it has several keys that fit: say `id` as well",
    "MultipleTokensReturned": "several tokens have that label: say `serial` as well",
    "PinIncorrect": "the PIN is wrong",
    "PinLocked": "the PIN is locked, after too many wrong ones",
    "UserNotLoggedIn": "it asks for a PIN",
}
"""What the library's exceptions mean, by the names of their classes."""


@contextmanager
def _explained(uri: TokenUri) -> Iterator[None]:
    """Turn what the library raises into a SigningError: it tells the cause by the name of a class."""
    try:
        from pkcs11.exceptions import PKCS11Error
    except ImportError as error:
        raise SigningError(
            "a key in a device needs a library that is not installed",
            help="pip install 'gradwarden[pkcs11]'",
        ) from error
    try:
        yield
    except SigningError:
        raise
    except (PKCS11Error, RuntimeError, OSError) as error:
        _fail(uri, error)


def _fail(uri: TokenUri, error: Exception) -> NoReturn:
    kind = type(error).__name__
    reason = _REASONS.get(kind) or str(error) or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind).lower()
    raise SigningError(
        f"the key in the token `{uri.token}` cannot be used: {reason}",
        help=f"the module is `{uri.module}`; `pkcs11-tool --module {uri.module} -L` lists its tokens",
    ) from error
