"""The writer thread of a ledger: chains, hashes, writes and syncs entries in groups, and signs heads.

A head's place in the ledger is reserved when it falls due (`put`), so that indexes are known at once; it is
signed when the writer reaches it, after everything before it has been synced.
"""

# INVARIANT: no signature covers an entry that a crash could still take away, and no sidecar speaks of a head
# entry that is not durable.

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal, TypeAlias

from gradwarden.runtime.errors import LedgerError
from gradwarden.runtime.ledger.entries import HEAD, SEALED, compose, encode_body
from gradwarden.runtime.ledger.keys import Signer
from gradwarden.runtime.ledger.links import Links
from gradwarden.runtime.ledger.note import Checkpoint, sign_note
from gradwarden.runtime.ledger.sidecar import write_sidecar
from gradwarden.runtime.ledger.storage import LedgerFile

Durability = Literal["every", "group", "os"]

GROUP_ENTRIES = 512
GROUP_SECONDS = 0.020
HEAD_ENTRIES = 1_024
HEAD_SECONDS = 1.0

MAX_QUEUE = 16_384
"""Entries that may wait for the writer before `put` blocks."""


@dataclass(frozen=True, slots=True)
class Signed:
    """The note of an entry that is signed when its place is known; then `successor` signs the heads.

    note: gives it for what stands before the entry.
    """

    note: Callable[[Checkpoint], str]
    successor: Signer


_Slot: TypeAlias = tuple[str, bytes | Signed | None]
"""The kind of an entry and its encoded body; None: of a head, which is yet to be signed."""


@dataclass(slots=True)
class _Queue:
    """What the callers and the writer share; guarded by the lock."""

    slots: list[_Slot]
    size: int
    """Entries in the ledger once the queue is written; the index of the next."""
    unsigned: int = 0
    """Entries, heads not counted, since the last head."""
    head_due: float = 0.0
    urgent: bool = False
    closing: bool = False
    written: int = 0
    """Entries that are as durable as the setting promises."""
    failure: BaseException | None = None


class Writer:
    """Owns a ledger's file and its chain state. `put`, `wait`, `flush`, `finish` are for other threads."""

    def __init__(
        self, file: LedgerFile, signer: Signer, origin: str, durability: Durability, links: Links
    ) -> None:
        if durability not in ("every", "group", "os"):
            raise LedgerError(f"`{durability}` is not a durability", help="use `every`, `group` or `os`")
        self.latest_head: Checkpoint | None = None
        self._file = file
        self._signer = signer
        self._origin = origin
        self._durability = durability
        self._tree = links.tree
        self._prev = links.prev
        self._unsynced = False
        self._queue = _Queue([], links.size, written=links.size)
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._done = threading.Condition(self._lock)
        self._thread = threading.Thread(target=self._run, name="gradwarden-ledger", daemon=True)
        self._thread.start()

    @property
    def size(self) -> int:
        return self._queue.size

    def put(self, kind: str, body: bytes | Signed) -> int:
        """Queue an entry; return its index. Blocks while the queue is full. Raises LedgerError.

        body: encoded; or what is to be signed, which a head follows.
        """
        queue = self._queue
        with self._lock:
            while len(queue.slots) >= MAX_QUEUE and queue.failure is None:
                self._done.wait()
            self._check()
            if queue.closing:
                raise LedgerError("the ledger is closed")
            index = queue.size
            idle = not queue.slots
            if queue.unsigned == 0:
                queue.head_due = time.monotonic() + HEAD_SECONDS
            queue.slots.append((kind, body))
            queue.size += 1
            queue.unsigned += 1
            queue.closing = kind == SEALED
            if queue.unsigned >= HEAD_ENTRIES or queue.closing or isinstance(body, Signed):
                self._reserve_head()
            if idle or len(queue.slots) >= GROUP_ENTRIES:
                self._work.notify()
            return index

    def sign(self) -> None:
        """Queue a head over what was queued so far, if there is anything new. Raises LedgerError."""
        with self._work:
            self._check()
            if self._queue.unsigned and not self._queue.closing:
                self._reserve_head()
                self._queue.urgent = True
                self._work.notify()

    def wait(self, index: int) -> None:
        """Block until the entry is written under the durability. Raises LedgerError."""
        queue = self._queue
        with self._done:
            if not 0 <= index < queue.size:
                raise LedgerError(f"the ledger has no entry {index}")
            while queue.written <= index:
                self._check()
                if not queue.urgent:
                    queue.urgent = True
                    self._work.notify()
                self._done.wait()
            self._check()

    def flush(self) -> None:
        """Wait for the last entry. Raises LedgerError."""
        if self._queue.size:
            self.wait(self._queue.size - 1)
        with self._done:
            self._check()

    def finish(self, *, sign: bool = False) -> None:
        """Write out the queue, sign what is new (`sign`: always), release the file. Raises LedgerError."""
        queue = self._queue
        with self._work:
            if queue.failure is None and (queue.unsigned or sign):
                self._reserve_head()
            queue.closing = True
            self._work.notify()
        self._thread.join()
        try:
            self._file.close()
        except OSError as error:
            with self._work:
                self._check()
            raise LedgerError(
                f"the ledger could not be closed: {error.strerror}",
                help="verify it before you rely on it: all was written, and the system says that it failed",
            ) from error
        with self._work:
            self._check()

    def _reserve_head(self) -> None:
        self._queue.slots.append((HEAD, None))
        self._queue.size += 1
        self._queue.unsigned = 0

    def _check(self) -> None:
        failure = self._queue.failure
        if failure is not None:
            reason = failure.strerror if isinstance(failure, OSError) else str(failure)
            raise LedgerError(
                f"the ledger can no longer be written: {reason}",
                help="nothing after the last durable entry counts; mend the cause and open the ledger again",
            ) from failure

    # The rest runs on the writer's own thread.

    def _run(self) -> None:
        try:
            while batch := self._next_batch():
                self._write(batch)
        except BaseException as failure:  # whatever it is, nothing may be appended after it
            with self._done:
                self._queue.failure = failure
                self._queue.slots.clear()
                self._done.notify_all()

    def _next_batch(self) -> list[_Slot]:
        """Wait for entries, let a group gather, and take them all. Empty: the ledger is closing."""
        queue = self._queue
        with self._work:
            while not queue.slots:
                if queue.closing:
                    return []
                left = queue.head_due - time.monotonic() if queue.unsigned else None
                if left is not None and left <= 0:
                    self._reserve_head()
                    break
                self._work.wait(left)
            if self._durability == "group":
                self._gather()
            if queue.unsigned and time.monotonic() >= queue.head_due:
                self._reserve_head()
            batch, queue.slots = queue.slots, []
            queue.urgent = False
            self._done.notify_all()
            return batch

    def _gather(self) -> None:
        queue = self._queue
        until = time.monotonic() + GROUP_SECONDS
        while len(queue.slots) < GROUP_ENTRIES and not queue.urgent and not queue.closing:
            left = until - time.monotonic()
            if left <= 0:
                return
            self._work.wait(left)

    def _write(self, batch: list[_Slot]) -> None:
        lines: list[bytes] = []
        leaves: list[bytes] = []
        note: str | None = None
        index, prev = self._tree.size, self._prev
        for kind, body in batch:
            if not isinstance(body, bytes):
                self._put_out(lines, leaves)
                self._sync()
                signed, body = self._sign(kind, body)
                note = signed if kind == HEAD else note
            line = compose(kind, index, prev, body)
            leaf = sha256(b"\x00" + line).digest()
            index, prev = index + 1, leaf.hex()
            lines.append(line)
            leaves.append(leaf)
        self._prev = prev
        self._put_out(lines, leaves)
        if self._durability != "os" or note is not None:
            self._sync()
        with self._done:
            self._queue.written = self._tree.size
            self._done.notify_all()
        if note is not None:
            write_sidecar(self._file.path, note)

    def _put_out(self, lines: list[bytes], leaves: list[bytes]) -> None:
        """Write lines, take their leaf hashes into the tree, and leave neither."""
        if lines:
            lines.append(b"")
            self._file.write(b"\n".join(lines))
            self._tree.extend(b"".join(leaves))
            lines.clear()
            leaves.clear()
            self._unsynced = True

    def _sync(self) -> None:
        if self._unsynced:
            self._file.sync()
            self._unsynced = False

    def _sign(self, kind: str, change: Signed | None) -> tuple[str, bytes]:
        """Return a note over everything written so far, and the encoded body of its entry.

        change: what is signed, where it is not a head.
        """
        place = Checkpoint(self._origin, self._tree.size, self._tree.root())
        if change is None:
            note = sign_note(place.text(), [self._signer])
            self.latest_head = place
        else:
            note = change.note(place)
            self._signer = change.successor
        return note, encode_body(kind, {"note": note})
