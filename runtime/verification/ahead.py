"""Checks a ledger's examples in another process, which runs ahead of the one that replays its decisions.

Run as a program, this module does what `segments` does, and checks what steps record of their examples
besides (`example_audit`). What it passes on holds in both respects. It finds nothing by name: whatever looks
odd ends the attempt, and the caller judges the whole ledger in order.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from gradwarden.runtime.ledger.segments import OddSegmentError, Watch, serve
from gradwarden.runtime.verification.example_audit import ExampleAudit


def example_watch() -> Watch:
    """Return what is shown each entry and raises OddSegmentError where a ledger's examples do not hold."""
    audit = ExampleAudit()

    def watch(kind: str, body: Mapping[str, Any]) -> None:
        try:
            audit.accept(kind, body)
        except Exception:  # whatever it is: no shape has been checked so far, and the caller starts over
            raise OddSegmentError from None

    return watch


if __name__ == "__main__":
    sys.exit(serve(sys.argv, example_watch()))
