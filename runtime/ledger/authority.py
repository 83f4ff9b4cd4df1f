"""Who may sign a ledger, from one entry to the next.

Two things are kept apart. *In force* is what the ledger says of itself: the keys that its opening names,
less those that were handed over or revoked, plus those that took over. *Trusted* is what a verifier was
given, plus every key that a trusted one handed over to. A head counts where a key that is both has signed it.

INVARIANT: no key comes back. One that was handed over or revoked signs nothing afterwards, under any name.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.errors import KeyFileError, NoteError
from gradwarden.runtime.ledger.key_changes import KeyChange, Revocation, Rotation
from gradwarden.runtime.ledger.keys import PublicKey
from gradwarden.runtime.ledger.note import open_note

MAX_CHANGES = 1_000
"""Changes of keys in one ledger: each head is held against all of them."""


class UnauthorisedError(ValueError):
    """A signature by a key that may not sign there, or a change of keys that may not be made.

    code: `undeclared_key`, `retired_key`, `reused_key`, `unproved_key`, `bad_signature`, `too_many_changes`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@frozen
class Change:
    """A change of keys that holds, and the entry that records it."""

    index: int
    change: KeyChange


class Authority:
    """The keys of one ledger at one place in it. trusted: those that a verifier was given."""

    def __init__(self, trusted: Sequence[PublicKey]) -> None:
        self.trusted = list({key.vkey: key for key in trusted}.values())
        self.changes: list[Change] = []
        self._in_force: dict[str, None] = {}
        self._former: dict[str, tuple[PublicKey, int]] = {}

    def open(self, vkeys: Sequence[str]) -> None:
        """Take the keys that a ledger's opening names."""
        self._in_force = dict.fromkeys(vkeys)

    def recall(self, vkeys: Sequence[str], changes: Sequence[Change]) -> None:
        """Take the keys of an opening, and the changes to them that were found to hold."""
        self.open(vkeys)
        for change in changes:
            self.apply(change.change, change.index)

    def in_force(self, key: PublicKey) -> bool:
        return key.vkey in self._in_force

    def head_signers(self, note: bytes) -> tuple[PublicKey, ...]:
        """Return the trusted keys that have signed a head, of which one is in force.

        Raises NoteError (`unknown_key` where no trusted key has signed it), UnauthorisedError.
        """
        former = [key for key, _ in self._former.values() if key not in self.trusted]
        signed_by = open_note(note, [*self.trusted, *former]).keys
        trusted = tuple(key for key in signed_by if key in self.trusted)
        if any(map(self.in_force, trusted)):
            return trusted
        for key in signed_by:
            self._refuse_former(key, "the head is signed by")
        names = ", ".join(f"`{key.name}`" for key in signed_by)
        raise UnauthorisedError(
            "undeclared_key", f"the head is signed by {names}, which the opening does not name"
        )

    def signs(self, note: bytes) -> bool:
        """Return whether a key in force has signed a note, trusted or not."""
        named = []
        for vkey in self._in_force:
            with suppress(KeyFileError):
                named.append(PublicKey.from_vkey(vkey))
        try:
            return bool(open_note(note, named).keys)
        except NoteError:
            return False

    def signers_of(self, size: int) -> list[PublicKey]:
        """Return the keys, trusted or once in force, that may have signed a head over so many entries."""
        former = [key for key, until in self._former.values() if size <= until]
        return [key for key in self.trusted if key.vkey not in self._former] + former

    def check(self, change: KeyChange) -> None:
        """Raise UnauthorisedError where the keys in force do not allow a change."""
        if len(self.changes) >= MAX_CHANGES:
            raise UnauthorisedError("too_many_changes", f"the keys change more than {MAX_CHANGES:,} times")
        match change:
            case Rotation(old=old, new=new):
                self._require(old)
                named = [*self._in_force, *self._former]
                if any(_material(vkey) == _material(new.vkey) for vkey in named):
                    raise UnauthorisedError(
                        "reused_key", f"the new key `{new.name}` has been a key of this ledger before"
                    )
            case Revocation(revoked=revoked, by=by):
                self._require(by)
                if revoked.vkey not in self._former:
                    self._require(revoked)
                if by == revoked:
                    raise UnauthorisedError("reused_key", f"the key `{by.name}` revokes itself")

    def accept(self, change: KeyChange, note: bytes, index: int) -> tuple[PublicKey, ...]:
        """Put a change into force that stands at an index; return the trusted keys that have signed it.

        Raises UnauthorisedError, and changes nothing, where it may not be made or is not signed by all who
        must sign it.
        """
        self.check(change)
        needed = [change.old, change.new] if isinstance(change, Rotation) else [change.by]
        try:
            signed_by = open_note(note, needed).keys
        except NoteError as error:
            code = "unproved_key" if error.fault == "unknown_key" else "bad_signature"
            raise UnauthorisedError(code, f"the change of keys is not signed: {error.message}") from None
        for key in needed:
            if key not in signed_by:
                raise UnauthorisedError("unproved_key", f"the change of keys is not signed by `{key.name}`")
        self.apply(change, index)
        return tuple(key for key in needed if key in self.trusted)

    def apply(self, change: KeyChange, index: int) -> None:
        """Put a change into force whose signatures are known to hold."""
        if isinstance(change, Rotation):
            gone = change.old
            self._in_force[change.new.vkey] = None
            if gone in self.trusted and change.new not in self.trusted:
                self.trusted.append(change.new)
        else:
            gone = change.revoked
        self._in_force.pop(gone.vkey, None)
        self._former.setdefault(gone.vkey, (gone, index))
        self.changes.append(Change(index, change))

    def _require(self, key: PublicKey) -> None:
        if not self.in_force(key):
            self._refuse_former(key, "the change of keys is about")
            raise UnauthorisedError(
                "undeclared_key", f"the change is about `{key.name}`, which is no key of this ledger"
            )

    def _refuse_former(self, key: PublicKey, what: str) -> None:
        if key.vkey in self._former:
            _, until = self._former[key.vkey]
            raise UnauthorisedError(
                "retired_key", f"{what} `{key.name}`, which signs nothing after entry {until}"
            )


def _material(vkey: str) -> str:
    """Return the key in a vkey, whatever it is called."""
    return vkey.split("+", 2)[-1]
