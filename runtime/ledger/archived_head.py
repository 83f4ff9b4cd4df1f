"""Compares a ledger with a signed head of it that was kept elsewhere.

Whoever holds a ledger's key can rewrite it from the start, and no check of the file alone shows that. A head
that was archived, mailed, published or cosigned before does: the first entries of the ledger must still have
its root.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from gradwarden.runtime.errors import NoteError
from gradwarden.runtime.ledger.archive import missing_error
from gradwarden.runtime.ledger.chain import Finding
from gradwarden.runtime.ledger.keys import PublicKey
from gradwarden.runtime.ledger.merkle import Tree, leaf_hash
from gradwarden.runtime.ledger.note import Checkpoint, open_note, parse_checkpoint, parse_note
from gradwarden.runtime.ledger.reader import absent, open_ledger, pieces, readable_from


def compare_head(
    path: str | os.PathLike[str], note: bytes, keys: Sequence[PublicKey], origin: str | None
) -> tuple[Checkpoint, Finding | None]:
    """Return the archived head, and what contradicts it in the ledger.

    note: the signed head. origin: the ledger's own, None where it has none. Findings: `checkpoint_untrusted`
    (no given key signed the head), `checkpoint_mismatch` (it is of another ledger), `rolled_back` (the ledger
    has fewer entries than it covers), `forked` (it has others in their place). Raises NoteError for a note
    that is no head, and LedgerError where the ledger cannot be read.
    """
    head = parse_checkpoint(parse_note(note).text)
    try:
        open_note(note, keys)
    except NoteError as error:
        return head, Finding("checkpoint_untrusted", 0, f"the checkpoint proves nothing: {error.message}")
    if head.origin != origin:
        return head, Finding(
            "checkpoint_mismatch", 0, f"the checkpoint is of `{head.origin}`, another ledger"
        )
    size, root = prefix(path, head.size)
    last = max(head.size - 1, 0)
    if size < head.size:
        message = f"the checkpoint covers {head.size:,} entries; the ledger has {size:,}"
        return head, Finding("rolled_back", max(size - 1, 0), message)
    if root != head.root:
        message = f"the first {head.size:,} entries are not those that the checkpoint covers"
        return head, Finding("forked", last, message)
    return head, None


def prefix(path: str | os.PathLike[str], size: int) -> tuple[int, bytes]:
    """Return how many of the first `size` lines there are, and the root over them."""
    missing = absent(path)
    if missing is not None and size < missing.end:
        raise missing_error(missing)
    tree, count = (Tree(), 0) if missing is None else (missing.kept.tree(), missing.end)
    with open_ledger(path) as file:
        for piece in pieces(file, readable_from(file)):
            for line in piece.lines[: size - count]:
                tree.append(leaf_hash(line))
                count += 1
            if count == size:
                break
    return count, tree.root()
