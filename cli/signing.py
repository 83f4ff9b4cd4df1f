"""How verbs get at what signs, and at what is signed: keys, ledgers, certificates of authorities."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradwarden.cli.failures import InputError
from gradwarden.cli.inputs import read_bytes
from gradwarden.cli.options import FILE, passphrase_options
from gradwarden.policy.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography.x509 import Certificate

    from gradwarden.runtime.ledger.keys import PublicKey, Signer

MAX_PEM = 1_048_576
"""The longest file of certificates, in bytes."""


@frozen
class KeyAccess:
    """How to get at a private key: a passphrase for its file, or what signs in the place of a file.

    command: a command line. token: the PKCS#11 URI of a key in a device, whose PIN the passphrase is.
    """

    passphrase: bytes | None
    command: str | None
    seconds: float
    token: str | None

    def signer(self, path: Path, *, witness: bool = False) -> Signer:
        """Return the signer that a file names: a private key, or with a command or token the public key.

        witness: whether the public key is a witness's. Raises KeyFileError, SigningError, UsageError.
        """
        from gradwarden.runtime.ledger.keys import PublicKey, Signer, WitnessKey

        if self.command is None and self.token is None:
            return Signer.load(path, self.passphrase)
        loaded = WitnessKey.load(path) if witness else PublicKey.load(path)
        return self._outside(PublicKey(loaded.name, loaded.raw))

    def _outside(self, public: PublicKey) -> Signer:
        from gradwarden.runtime.ledger.outside_signer import CommandSigner
        from gradwarden.runtime.ledger.token_signer import TokenSigner

        if self.token is not None:
            if self.command is not None:
                raise click.UsageError("a key is in a device or behind a command: give one of the two")
            return TokenSigner(public, self.token, self.passphrase)
        if self.passphrase is not None:
            raise click.UsageError("a passphrase opens a key file; with --signer-command there is none")
        try:
            words = shlex.split(self.command or "")
        except ValueError as error:
            raise click.UsageError(f"--signer-command cannot be read: {error}".lower()) from None
        if not words:
            raise click.UsageError("--signer-command names no command")
        return CommandSigner(public, words, self.seconds)


other_keys_option = click.option(
    "--key", "key_files", type=FILE, multiple=True, metavar="PUB",
    help="Another public key that has signed the ledger; repeatable.",
)  # fmt: skip
"""Names keys of a ledger beside the one that signs."""


def signing_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the ways of getting at a private key; the function gets `access: KeyAccess`."""

    @functools.wraps(function)
    def wrapper(
        *args: Any,
        passphrase: bytes | None,
        signer_command: str | None,
        signer_timeout: float,
        pkcs11: str | None,
        **kwargs: Any,
    ) -> Any:
        access = KeyAccess(passphrase, signer_command, signer_timeout, pkcs11)
        return function(*args, access=access, **kwargs)

    decorated: Callable[..., Any] = passphrase_options(confirm=False)(wrapper)
    for option in (
        click.option(
            "--pkcs11",
            metavar="URI",
            help="Sign with a key in a device; the key given is the public one, a passphrase its PIN.",
        ),
        click.option(
            "--signer-timeout",
            type=click.FloatRange(min=0, min_open=True),
            default=30.0,
            show_default=True,
            metavar="SECONDS",
            help="How long that command may take.",
        ),
        click.option(
            "--signer-command",
            metavar="CMD",
            help="Sign by a command (message in, 64 bytes out); the key given is then the public one.",
        ),
    ):
        decorated = option(decorated)
    return decorated


def check_ledger(path: Path) -> None:
    """Raise InputError where there is no ledger: opening one for writing would make it."""
    if not path.is_file() or not path.stat().st_size:
        raise InputError(f"`{path}` is no ledger", help="name one that a run has begun")


def load_authorities(files: Sequence[Path]) -> list[Certificate]:
    """Return the certificates of authorities, or of their issuers. Raises InputError, OSError."""
    if not files:
        return []
    from gradwarden.runtime.errors import EvidenceError
    from gradwarden.runtime.evidence import timestamp

    found: list[Certificate] = []
    for path in files:
        try:
            found += timestamp.load_authorities(read_bytes(path, MAX_PEM, "a file of certificates"))
        except EvidenceError as error:
            raise InputError(f"`{path}`: {error.message}", help=error.help) from None
    return found
