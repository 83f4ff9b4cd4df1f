"""The ledger's file on disk: one writer, appended and synced as a whole."""

from __future__ import annotations

import fcntl
import os

from gradwarden.runtime.errors import LedgerBusy, LedgerError
from gradwarden.runtime.ledger.durable import sync_directory


class LedgerFile:
    """An exclusively locked file that is only ever appended to, or cut at its torn tail.

    `write`, `sync` and `cut` raise OSError; the file is then of unknown content past the last sync.
    """

    def __init__(self, path: str) -> None:
        """Open or create. Raises LedgerBusy where another writer holds it, else LedgerError."""
        self.path = path
        self.base = 0
        """Bytes of archived entries: offsets are those of the whole ledger."""
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise LedgerError(f"cannot open the ledger `{path}`: {error.strerror}") from error
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(self._handle), os.stat(path)):
                raise BlockingIOError  # it was archived in between, and another file took its place
            sync_directory(path)
        except BlockingIOError:
            os.close(self._handle)
            raise LedgerBusy(
                f"another writer holds the ledger `{path}`", help="one run writes one ledger"
            ) from None
        except OSError as error:
            os.close(self._handle)
            raise LedgerError(f"cannot lock the ledger `{path}`: {error.strerror}") from error

    def write(self, data: bytes) -> None:
        """Append all of the bytes."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._handle, view) :]

    def sync(self) -> None:
        """Wait until everything written is durable."""
        os.fdatasync(self._handle)

    def cut(self, size: int) -> None:
        """Drop everything past `size` bytes, durably."""
        os.ftruncate(self._handle, size - self.base)
        os.fsync(self._handle)

    def read(self, start: int) -> bytes:
        """Return the bytes from `start` to the end."""
        start -= self.base
        size = os.fstat(self._handle).st_size
        parts = []
        while start < size and (part := os.pread(self._handle, size - start, start)):
            parts.append(part)
            start += len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Release the file and its lock."""
        os.close(self._handle)
