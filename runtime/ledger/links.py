"""The state of a ledger's verified prefix, advanced line by line; it stops at the first fault.

Used by the verifier and by recovery, so that both mean the same by a valid ledger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum, auto
from hashlib import sha256
from typing import Any

import orjson

from gradwarden.runtime.errors import NoteError
from gradwarden.runtime.ledger.archive import Kept
from gradwarden.runtime.ledger.authority import Authority, Change, UnauthorisedError
from gradwarden.runtime.ledger.blocks import Block
from gradwarden.runtime.ledger.entries import (
    CANONICAL,
    HEAD,
    LANDMARKS,
    OPENINGS,
    RESUMED,
    REVOKED,
    ROTATED,
    SEALED,
    ZERO_HASH,
    MalformedLineError,
    compose,
    decode,
)
from gradwarden.runtime.ledger.key_changes import Revocation, parse_change, read_change
from gradwarden.runtime.ledger.keys import PublicKey
from gradwarden.runtime.ledger.merkle import EMPTY_ROOT, HASH_SIZE, Tree, leaf_hash, verify_inclusion
from gradwarden.runtime.ledger.note import Checkpoint, open_note, parse_checkpoint, parse_note


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a line cannot stand where it does. `offset` is the byte at which the entry's line starts."""

    code: str
    index: int
    offset: int
    message: str


class Stage(Enum):
    """How far a ledger has come: accepting entries, sealed and waiting for its last head, or complete."""

    OPEN = auto()
    SEALING = auto()
    CLOSED = auto()


class Links:
    """Checks lines one after another and keeps what the next one must fit.

    keys: the keys that are trusted to sign; so are those that they hand over to. watch: a size at which the
    root is to be remembered (`watched`).
    """

    def __init__(self, keys: Sequence[PublicKey], watch: int | None = None) -> None:
        self.authority = Authority(keys)
        self.tree = Tree()
        self.prev = ZERO_HASH
        self.offset = 0
        self.stage = Stage.OPEN
        self.fault: Fault | None = None
        self.opened: dict[str, Any] | None = None
        self.signed_size = 0
        self.last_head: int | None = None
        self.last_root = EMPTY_ROOT
        """The root over the entries before that head."""
        self.keys_used: dict[str, None] = {}
        self.unknown_head: Fault | None = None
        """The first head since the last verified one that no known key has signed."""
        self.watch = watch
        self.watched: bytes | None = None
        self.begun = 0
        """Entries that were not read: they are archived, and only what is kept of them is known."""
        self._line_before = 0
        self._doubtful: tuple[str, dict[str, Any]] | None = None

    def remember(self) -> dict[str, Any]:
        """Return what `recalled` needs, as JSON holds it."""
        unknown = self.unknown_head
        return {
            "size": self.size,
            "peaks": [peak.hex() for peak in self.tree.peaks],
            "prev": self.prev,
            "offset": self.offset,
            "line_before": self._line_before,
            "stage": self.stage.name,
            "opened": self.opened,
            "signed_size": self.signed_size,
            "last_head": self.last_head,
            "last_root": self.last_root.hex(),
            "keys_used": list(self.keys_used),
            "unknown_head": None if unknown is None else asdict(unknown),
            "changes": [[change.index, change.change.text()] for change in self.authority.changes],
        }

    @classmethod
    def recalled(
        cls, remembered: Mapping[str, Any], keys: Sequence[PublicKey], watch: int | None = None
    ) -> Links:
        """Return the state that was remembered of a ledger whose prefix had no fault.

        keys: those that were given then. watch: see `Links`; before the end of the prefix, only the root at
        its last head is known.
        """
        links = cls(keys, watch)
        peaks = map(bytes.fromhex, remembered["peaks"])
        links.tree = Tree.of(remembered["size"], peaks)
        links.prev, links.offset = remembered["prev"], remembered["offset"]
        links._line_before = remembered["line_before"]
        links.stage = Stage[remembered["stage"]]
        links.opened = remembered["opened"]
        links.signed_size, links.last_head = remembered["signed_size"], remembered["last_head"]
        links.last_root = bytes.fromhex(remembered["last_root"])
        links.keys_used = dict.fromkeys(remembered["keys_used"])
        if remembered["unknown_head"] is not None:
            links.unknown_head = Fault(**remembered["unknown_head"])
        if remembered["opened"] is not None:
            changes = [Change(index, read_change(text)) for index, text in remembered["changes"]]
            links.authority.recall(remembered["opened"]["keys"], changes)
        if watch is not None and watch == links.last_head:
            links.watched = links.last_root
        return links

    @property
    def size(self) -> int:
        return self.tree.size

    @property
    def origin(self) -> str | None:
        return None if self.opened is None else self.opened["origin"]

    def go_on(self, kept: Kept, offset: int) -> bool:
        """Begin after entries of which only this is known; return whether it fits together.

        offset: the byte at which the next line begins. That these are the entries which were signed is seen
        at the next head, whose root is over them, too.
        """
        self.tree, self.prev, self.offset, self.begun = kept.tree(), kept.prev, offset, kept.size
        root = self.tree.root()
        for one in kept.lines:
            try:
                index, kind, _, body = decode(one.line)
            except MalformedLineError:
                index, kind, body = -1, "", {}
            proved = verify_inclusion(one.index, kept.size, leaf_hash(one.line), one.path, root)
            known = kind in (OPENINGS if one.index == 0 else (ROTATED, REVOKED))
            if index != one.index or not proved or not known:
                return self._refuse("archive_mismatch", f"what is kept of entry {one.index} does not hold")
            if one.index == 0:
                self.opened = body
                self.authority.open(body["keys"])
                continue
            note = body["note"].encode()
            try:
                self.authority.accept(parse_change(note), note, index)
            except (NoteError, UnauthorisedError) as error:
                return self._refuse("archive_mismatch", f"the change of keys in entry {index}: {error}")
        return True

    def accept(self, line: bytes) -> tuple[str, dict[str, Any]] | None:
        """Advance by one line. Return its kind and body, None where it is at fault (`fault`, `settle`)."""
        index = self.tree.size
        try:
            found, kind, prev, body = decode(line)
        except MalformedLineError as error:
            self._stop(error.problem, str(error))
            return None
        if found != index:
            message = f"an entry with the index {found} stands in the place of {index}"
            if index == 0 and kind == HEAD:
                message += "; if those before it were archived, the list of archives beside it is missing"
            self._stop("wrong_index", message)
            return None
        if prev != self.prev:
            self._doubtful = (kind, body)
            self._stop("wrong_link", "the entry does not link to the one before")
            return None
        if index == self.watch:
            self.watched = self.tree.root()
        if (index == 0 or kind in LANDMARKS or self.stage is not Stage.OPEN) and not self._landmark(
            index, kind, body
        ):
            return None
        leaf = sha256(b"\x00" + line)
        self.tree.append(leaf.digest())
        self.prev = leaf.hexdigest()
        self._line_before = len(line) + 1
        self.offset += self._line_before
        return kind, body

    def absorb(self, block: Block) -> bool:
        """Advance by lines whose form and links among each other hold; return whether they fit."""
        first, start, leaves = self.tree.size, self.offset, block.leaves
        if not leaves:
            return True
        if (block.first, block.prev) != (first, self.prev):
            return False
        end = first + len(leaves) // HASH_SIZE
        for index in (*sorted(block.landmarks), end):
            if not self._pass(leaves[(self.tree.size - first) * HASH_SIZE : (index - first) * HASH_SIZE]):
                return False
            if index == end:
                break
            if index == self.watch:
                self.watched = self.tree.root()
            offset, line = block.landmarks[index]
            self.offset = start + offset
            _, kind, _, body = decode(line)
            if not self._landmark(index, kind, body):
                return False
            self.tree.append(leaves[(index - first) * HASH_SIZE : (index - first + 1) * HASH_SIZE])
        self.prev = leaves[-HASH_SIZE:].hex()
        self.offset = start + block.size
        self._line_before = block.last
        return True

    def _pass(self, leaves: bytes) -> bool:
        """Advance by lines that are no landmarks; return whether such lines may stand here."""
        if not leaves:
            return True
        if self.tree.size == 0 or self.stage is not Stage.OPEN:
            return False
        if self.watch is not None and 0 <= self.watch - self.tree.size < len(leaves) // HASH_SIZE:
            before = (self.watch - self.tree.size) * HASH_SIZE
            self.tree.extend(leaves[:before])
            self.watched = self.tree.root()
            leaves = leaves[before:]
        self.tree.extend(leaves)
        return True

    def settle(self, successor: bytes | None) -> None:
        """After a fault, blame the right entry of a broken link by looking at the line that follows.

        The link of the entry in hand was changed where the successor links to the entry as it would be with
        the right link, or where it is a signed head over the entries before it. Otherwise the entry before is
        named: it was altered, or both were.
        """
        if self._doubtful is None or self.size == 0 or self.fault is None:
            return
        kind, body = self._doubtful
        mended = compose(kind, self.size, self.prev, orjson.dumps(body, option=CANONICAL))
        if not (_links_to(successor, mended) or (kind == HEAD and self._head_fits(body))):
            self.fault = Fault(
                "altered",
                self.size - 1,
                self.offset - self._line_before,
                "the entry after it links to another entry in this place",
            )

    def _stop(self, code: str, message: str) -> None:
        self.fault = Fault(code, self.size, self.offset, message)

    def _landmark(self, index: int, kind: str, body: dict[str, Any]) -> bool:
        """Check the entries that give a ledger its frame; return whether this one fits."""
        if index == 0:
            if kind not in OPENINGS:
                return self._refuse("no_opening", f"the ledger begins with `{kind}`, not with `opened`")
            self.opened = body
            self.authority.open(body["keys"])
        elif kind in OPENINGS:
            return self._refuse("second_opening", "the ledger is opened a second time")
        elif self.stage is Stage.CLOSED or (self.stage is Stage.SEALING and kind != HEAD):
            return self._refuse("after_seal", f"a `{kind}` entry follows the end of a sealed ledger")
        elif kind == SEALED:
            self.stage = Stage.SEALING
        elif kind == RESUMED:
            if body["from_size"] != index:
                return self._refuse(
                    "wrong_size", f"a run resumed from {body['from_size']} entries, not {index}"
                )
            if body["root"] != self.tree.root().hex():
                return self._refuse("wrong_root", "a run resumed from other entries than the ones before it")
        elif kind in (ROTATED, REVOKED):
            return self._change_keys(index, kind, body)
        elif kind == HEAD:
            if not self._head(index, body):
                return False
            if self.stage is Stage.SEALING:
                self.stage = Stage.CLOSED
        return True

    def _refuse(self, code: str, message: str) -> bool:
        self._stop(code, message)
        return False

    def _head(self, index: int, body: dict[str, Any]) -> bool:
        """Check a signed head: its form, what it says of the entries before it, and who signed it."""
        note = body["note"].encode()
        try:
            checkpoint = parse_checkpoint(parse_note(note).text)
        except NoteError as error:
            return self._refuse("malformed_note", error.message)
        mismatch = self._mismatch(index, checkpoint)
        if mismatch is not None:
            return self._refuse(*mismatch)
        self.last_head, self.last_root = index, checkpoint.root
        try:
            signed_by = self.authority.head_signers(note)
        except NoteError as error:
            if error.fault != "unknown_key":
                return self._refuse(error.fault, error.message)
            self._untold(index, note, error.message)
            return True
        except UnauthorisedError as error:
            return self._refuse(error.code, error.message)
        self._vouch(checkpoint.size, signed_by)
        return True

    def _untold(self, index: int, note: bytes, message: str) -> None:
        """Keep a head that no known key has signed: the first, or the first that no key of the ledger has.

        Which keys are the ledger's own is known once a trusted one has signed the opening that names them.
        """
        code = "unknown_key"
        if self.signed_size and self.authority.signs(note):
            code, message = "untrusted_key", "the head is signed by a key of this ledger that was not given"
        if self.unknown_head is None or (self.unknown_head.code, code) == ("untrusted_key", "unknown_key"):
            self.unknown_head = Fault(code, index, self.offset, message)

    def _change_keys(self, index: int, kind: str, body: dict[str, Any]) -> bool:
        """Check a change of keys. By the root in it, it vouches for what stands before as a head does."""
        note = body["note"].encode()
        try:
            change = parse_change(note)
        except NoteError as error:
            return self._refuse("malformed_note", error.message)
        if isinstance(change, Revocation) != (kind == REVOKED):
            return self._refuse("malformed_note", f"the note of a `{kind}` entry is about something else")
        mismatch = self._mismatch(index, change.place)
        if mismatch is not None:
            return self._refuse(*mismatch)
        try:
            signed_by = self.authority.accept(change, note, index)
        except UnauthorisedError as error:
            return self._refuse(error.code, error.message)
        if signed_by:
            self._vouch(index, signed_by)
        return True

    def _vouch(self, size: int, keys: Sequence[PublicKey]) -> None:
        """Note that keys in force have signed so many entries."""
        self.signed_size = size
        self.unknown_head = None
        self.keys_used.update((key.vkey, None) for key in keys)

    def _mismatch(self, index: int, checkpoint: Checkpoint) -> tuple[str, str] | None:
        if checkpoint.size != index:
            return "wrong_size", f"the note speaks of {checkpoint.size} entries where {index} precede it"
        if checkpoint.origin != self.origin:
            return "wrong_origin", f"the note belongs to another ledger, `{checkpoint.origin}`"
        if checkpoint.root != self.tree.root():
            return "wrong_root", "the note was signed over other entries than the ones before it"
        return None

    def _head_fits(self, body: dict[str, Any]) -> bool:
        try:
            note = open_note(body["note"].encode(), self.authority.trusted)
            return self._mismatch(self.size, parse_checkpoint(note.text)) is None
        except NoteError:
            return False


def _links_to(successor: bytes | None, line: bytes) -> bool:
    if successor is None:
        return False
    try:
        return decode(successor)[2] == sha256(b"\x00" + line).hexdigest()
    except MalformedLineError:
        return False
