"""Signers whose private key is elsewhere: in another process, on another machine, in a device.

Nothing that comes from outside is believed. A signature counts only once it has been verified with the public
key; where there is none, or a bad one, SigningError is raised. A ledger whose heads cannot be signed refuses
everything from then on (GW600), as where its disk fails: a step that cannot be recorded cannot be taken.

`CommandSigner` runs a command for each signature:

    standard input    the message, as it stands
    standard output   the signature: 64 bytes, and nothing else
    exit status       0

The message is what is signed, not a hash of it (Ed25519, RFC 8032 section 5.1.6). Of a ledger it is the text
of a head, of at most a few hundred bytes, once a second at the most.
"""

from __future__ import annotations

import os
import signal
import subprocess
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress

from gradwarden.runtime.errors import SigningError
from gradwarden.runtime.ledger.keys import PublicKey, Signer

SIGNATURE = 64
"""Bytes of an Ed25519 signature."""

SECONDS = 30.0
"""How long a command may take over one signature."""

_TOLD = 200
"""Characters of a command's last words that are passed on."""


class OutsideSigner(Signer):
    """Signs by asking; `ask` says how. Subclass it for another way of reaching a key."""

    def sign(self, message: bytes) -> bytes:
        """Return the signature, verified. Raises SigningError."""
        signature = self.ask(message)
        if len(signature) != SIGNATURE:
            raise SigningError(
                f"the signer of `{self.name}` gave {len(signature)} bytes, where a signature has {SIGNATURE}",
                help="it must write the bare bytes of an Ed25519 signature: no base64, no newline",
            )
        if not self.public.verify(signature, message):
            raise SigningError(
                f"what the signer of `{self.name}` gave is no signature by that key",
                help=f"the public key is {self.public.vkey}: is it the signer's?",
            )
        return signature

    @abstractmethod
    def ask(self, message: bytes) -> bytes:
        """Return what should be the signature; it is verified afterwards. Raises SigningError."""


class CommandSigner(OutsideSigner):
    """Runs a command for each signature.

    command: a program and its arguments; no shell is involved. seconds: the time limit; the command and what
    it has started are killed then.
    """

    def __init__(self, public: PublicKey, command: Sequence[str], seconds: float = SECONDS) -> None:
        super().__init__(public)
        if not command:
            raise SigningError(f"the command that signs for `{public.name}` is empty")
        self._command = tuple(command)
        self._seconds = seconds

    def ask(self, message: bytes) -> bytes:
        try:
            # A session of its own: whatever the command starts can be ended with it, and nothing can ask
            # the terminal of a training run for a password.
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise self._failed(f"cannot be run: {error.strerror}") from error
        try:
            signature, words = process.communicate(message, self._seconds)
        except subprocess.TimeoutExpired as error:
            raise self._failed(f"took longer than {self._seconds:g} s") from error
        finally:
            _end(process)
        if process.returncode:
            raise self._failed(f"failed with status {process.returncode}{_last_words(words)}")
        return signature

    def _failed(self, how: str) -> SigningError:
        return SigningError(
            f"the command that signs for `{self.name}` {how}", help=f"it is `{' '.join(self._command)}`"
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a command that still runs, with all that it has started."""
    if process.poll() is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    process.wait()


def _last_words(words: bytes) -> str:
    lines = words.decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f": {''.join(c for c in last if c.isprintable())[:_TOLD]}" if last else ""
