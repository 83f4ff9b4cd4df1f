"""The ledger of a process that writes none: where several train together, rank 0 writes for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Unwritten:
    """Takes the entries of a run and keeps nothing. Always durable, since nothing is to be kept."""

    path = origin = vkey = ""
    vkeys: Sequence[str] = ()
    entries_on_open = 0

    def append(self, kind: str, body: Mapping[str, Any]) -> int:
        """Drop an entry; its index means nothing."""
        return 0

    def wait(self, index: int) -> None:
        """Return at once."""

    def flush(self) -> None:
        """Return at once."""

    def close(self, seal_body: Mapping[str, Any] | None = None) -> None:
        """Do nothing. Safe to repeat."""
