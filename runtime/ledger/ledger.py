"""An append-only, hash-chained, signed ledger that one run writes.

    ledger = Ledger.open("run.ledger", signer=Signer.load("run.key"))
    index = ledger.append("step", body)
    ledger.wait(index)            # durable from here on
    ledger.close(seal_body)

`append` checks and encodes on the caller's thread and returns at once; the writer thread chains, hashes,
writes and syncs in groups (`writer`). Whatever goes wrong there poisons the ledger: every later call raises
LedgerError, so that a step which cannot be recorded cannot be taken either.
"""

from __future__ import annotations

import atexit
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, Self

from gradwarden.runtime.errors import EntryInvalid, LedgerError
from gradwarden.runtime.ledger.authority import UnauthorisedError
from gradwarden.runtime.ledger.entries import (
    HEAD,
    OPENING,
    OPENINGS,
    RESUMED,
    REVOKED,
    ROTATED,
    SEALED,
    encode_body,
)
from gradwarden.runtime.ledger.key_changes import (
    KeyChange,
    Revocation,
    Rotation,
    check_reason,
    sign_change,
)
from gradwarden.runtime.ledger.keys import PublicKey, Signer
from gradwarden.runtime.ledger.links import Stage
from gradwarden.runtime.ledger.note import Checkpoint
from gradwarden.runtime.ledger.recovery import Recovered, recover
from gradwarden.runtime.ledger.storage import LedgerFile
from gradwarden.runtime.ledger.writer import Durability, Signed, Writer

_RESERVED = frozenset({HEAD, SEALED, RESUMED, ROTATED, REVOKED})

_NOWHERE = Checkpoint("", 0, bytes(32))
"""The place of a change that is not written yet."""


class Ledger:
    """A ledger that is open for writing. Safe to use from several threads of the process that opened it."""

    def __init__(
        self,
        path: str,
        signer: Signer,
        keys: Sequence[PublicKey],
        origin: str,
        recovered: Recovered,
        writer: Writer,
    ) -> None:
        self.path = path
        self.origin = origin
        self.vkeys = list(dict.fromkeys(key.vkey for key in (signer.public, *keys)))
        """The keys that the opening of a new ledger names; the first is the signer's."""
        self._signer = signer
        self._authority = recovered.links.authority
        self.entries_on_open = recovered.links.size
        self.cut_on_open = recovered.cut
        self._writer = writer
        self._process = os.getpid()
        self._closed = False
        self._begun = recovered.links.size > 0
        atexit.register(self._close_at_exit)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        signer: Signer,
        durability: Durability = "group",
        origin: str | None = None,
        keys: Sequence[PublicKey] = (),
    ) -> Ledger:
        """Create a ledger, or continue one that is not sealed; a torn tail is set aside and recorded.

        durability: `every` syncs as soon as the writer can, `group` at most 20 ms or 512 entries later (at
        once where somebody waits), `os` only before each signed head. origin: the ledger's identity in signed
        heads; random where it is not given. keys: others that may sign the ledger, such as one that is kept
        in a safe: the opening of a new ledger names them, and in an old one their signatures are believed.

        Raises LedgerBusy (another writer), LedgerDamaged or LedgerRollback (it may not be continued; nothing
        is changed), LedgerError (sealed, another key or origin, unreadable).
        """
        name = os.fspath(path)
        if origin is not None and ("\n" in origin or not origin or not origin.isprintable()):
            raise LedgerError(f"`{origin}` cannot name a ledger", help="use one line of printable text")
        file = LedgerFile(name)
        try:
            recovered = recover(file, signer.public, keys)
            known = recovered.links.origin
            if known is not None and origin not in (None, known):
                raise LedgerError(f"the ledger is `{known}`, not `{origin}`")
            identity = known or origin or f"gradwarden/{secrets.token_hex(16)}"
            writer = Writer(file, signer, identity, durability, recovered.links)
        except BaseException as error:
            with suppress(OSError):
                file.close()
            if isinstance(error, OSError):
                raise LedgerError(
                    f"cannot repair the ledger `{name}`: {error.strerror}",
                    help="mend the cause and open it again; what was durable is still there",
                ) from error
            raise
        ledger = cls(name, signer, keys, identity, recovered, writer)
        ledger._resume(recovered)
        return ledger

    def _resume(self, recovered: Recovered) -> None:
        links = recovered.links
        if links.stage is not Stage.OPEN:
            self._finish(sign=links.stage is Stage.SEALING)
            raise LedgerError("the ledger is sealed", help="begin a new run with a new ledger file")
        if self._begun:
            body = {
                "from_size": links.size,
                "root": links.tree.root().hex(),
                "cut": recovered.cut,
                "broken": recovered.broken,
            }
            self._writer.put(RESUMED, encode_body(RESUMED, body))

    def append(self, kind: str, body: Mapping[str, Any]) -> int:
        """Queue an entry and return its index. The body is encoded before this returns.

        Raises EntryInvalid for a body that has not the shape of its kind, LedgerError once the ledger is
        closed or can no longer be written.
        """
        if kind in _RESERVED:
            raise EntryInvalid(f"the ledger writes its `{kind}` entries itself")
        encoded = encode_body(kind, body)
        self._check_usable()
        if kind in OPENINGS or not self._begun:
            self._begin(kind, body)
        return self._writer.put(kind, encoded)

    def _begin(self, kind: str, body: Mapping[str, Any]) -> None:
        if kind not in OPENINGS:
            raise EntryInvalid(f"a ledger begins with an `{OPENING}` entry, not with `{kind}`")
        if self._begun:
            raise EntryInvalid("the ledger has been opened already")
        if body["origin"] != self.origin or self.vkey not in body["keys"]:
            raise EntryInvalid("the opening must name the ledger's own origin and key")
        self._authority.open(body["keys"])
        self._begun = True

    @property
    def vkey(self) -> str:
        """The key that signs the ledger's heads from here on."""
        return self._signer.public.vkey

    def rotate(self, signer: Signer) -> int:
        """Hand over to another key, which signs the heads from here on; return the index of the entry.

        Both keys sign the entry. Returns once it is durable. Raises EntryInvalid where the key has been one
        of this ledger's before, LedgerError where the ledger can no longer be written.
        """
        before = self._signer

        def note(place: Checkpoint) -> str:
            return sign_change(Rotation(place, before.public, signer.public), (before, signer))

        return self._change(ROTATED, Rotation(_NOWHERE, before.public, signer.public), Signed(note, signer))

    def revoke(self, key: PublicKey, reason: str) -> int:
        """Declare that another key of this ledger signs no more; return the index of the entry.

        reason: one line of text. Returns once it is durable. Raises EntryInvalid where it is no other key of
        this ledger, LedgerError where the ledger can no longer be written.
        """
        by = self._signer
        check_reason(reason)

        def note(place: Checkpoint) -> str:
            return sign_change(Revocation(place, key, by.public, reason), (by,))

        return self._change(REVOKED, Revocation(_NOWHERE, key, by.public, reason), Signed(note, by))

    def _change(self, kind: str, change: KeyChange, signed: Signed) -> int:
        self._check_usable()
        if not self._begun:
            raise EntryInvalid("a ledger without entries has no keys to change")
        try:
            self._authority.check(change)
        except UnauthorisedError as error:
            raise EntryInvalid(error.message) from None
        index = self._writer.put(kind, signed)
        self._authority.apply(change, index)
        self._signer = signed.successor
        self._writer.wait(index)
        return index

    def wait(self, index: int) -> None:
        """Return once the entry is as durable as the ledger's setting promises. Raises LedgerError."""
        self._check_usable()
        self._writer.wait(index)

    def flush(self) -> None:
        """Return once every entry appended so far is durable. Raises LedgerError."""
        self._check_usable()
        self._writer.flush()

    def sign(self) -> None:
        """Queue a signed head over every entry appended so far, and return at once. Raises LedgerError."""
        self._check_usable()
        self._writer.sign()

    def head(self) -> Checkpoint | None:
        """Return the latest head that was signed since the ledger was opened, None before the first."""
        return self._writer.latest_head

    def __len__(self) -> int:
        """The number of entries, those still queued included."""
        return self._writer.size

    def close(self, seal_body: Mapping[str, Any] | None = None) -> None:
        """Write everything out, sign it and release the file; with `seal_body`, end the ledger for good.

        seal_body: {steps, committed, refused, examples}. Repeating the call does nothing. Raises LedgerError
        where the entries could not all be written; the file is released all the same.
        """
        if self._closed:
            return
        self._check_usable()
        if seal_body is not None and not self._begun:
            raise EntryInvalid("a ledger without entries cannot be sealed")
        seal = None if seal_body is None else encode_body(SEALED, seal_body)
        try:
            if seal is not None:
                self._writer.put(SEALED, seal)
        finally:
            self._finish()

    def _finish(self, *, sign: bool = False) -> None:
        self._closed = True
        atexit.unregister(self._close_at_exit)
        self._writer.finish(sign=sign)

    def _close_at_exit(self) -> None:
        if os.getpid() != self._process:
            return
        try:
            self.close()
        except LedgerError as error:
            print(f"gradwarden: {error}", file=sys.stderr)

    def _check_usable(self) -> None:
        if self._closed:
            raise LedgerError("the ledger is closed")
        if os.getpid() != self._process:
            raise LedgerError(
                "the ledger belongs to the process that opened it",
                help="append from the training process, not from a data loader's worker",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self.close()
        return False
