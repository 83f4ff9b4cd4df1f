"""Makes proofs from a ledger, in one pass and in memory that its length does not change.

What is proved is what a signed head covers, such as the last one in the ledger. Before a proof is given, the
tree over the entries that the head covers is compared with the head, so no proof leaves here that does not
lead to its root. Signatures are not checked: whoever is shown the proof does that.
"""

from __future__ import annotations

import os
from collections.abc import Container, Generator, Sequence
from contextlib import closing
from typing import Any

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.errors import HeadMismatch, LedgerDamaged, ProofError
from gradwarden.runtime.evidence.proof_file import ConsistencyProof, InclusionProof
from gradwarden.runtime.ledger.entries import HEAD, MalformedLineError, decode
from gradwarden.runtime.ledger.merkle import (
    Range,
    consistency_ranges,
    inclusion_ranges,
    leaf_hash,
    range_roots,
)
from gradwarden.runtime.ledger.note import Checkpoint, parse_checkpoint, parse_note
from gradwarden.runtime.ledger.reader import open_ledger, pieces

_AFTER_KIND = len(b'","prev":"') + 64 + len(b'"}')
"""What follows the kind in an entry's line, whose keys are sorted."""


@frozen
class SignedHead:
    """A head, and the note in which it was signed. Its signatures have not been checked."""

    checkpoint: Checkpoint
    note: bytes


def read_head(note: bytes) -> SignedHead:
    """Read a signed head. Raises NoteError (`malformed`)."""
    return SignedHead(parse_checkpoint(parse_note(note).text), note)


def last_head(path: str | os.PathLike[str]) -> SignedHead:
    """Return the last head in a ledger. Raises ProofError where it has none, LedgerDamaged at a bad one."""
    note = None
    for _, _, body in entries_of(path, {HEAD}):
        note = body["note"]
    if note is None:
        raise ProofError(
            f"no entry of `{os.fspath(path)}` is signed yet", help="a head follows the first second of a run"
        )
    return read_head(note.encode())


def entries_of(
    path: str | os.PathLike[str], kinds: Container[str]
) -> Generator[tuple[int, str, dict[str, Any]], None, None]:
    """Yield (index, kind, body) of the entries of some kinds, without a look at the others.

    Raises LedgerDamaged at one of them that is malformed; order and links are not checked.
    """
    with closing(stored_lines(path)) as lines:
        for index, line in enumerate(lines):
            end = len(line) - _AFTER_KIND
            if line[line.rfind(b'"', 0, end) + 1 : end].decode("ascii", "replace") not in kinds:
                continue
            try:
                _, kind, _, body = decode(line)
            except MalformedLineError as error:
                raise LedgerDamaged(
                    f"entry {index}: {error}", index=index, offset=0, problem=error.problem
                ) from None
            yield index, kind, body


def prove_inclusion(
    path: str | os.PathLike[str], index: int, head: SignedHead, *, withhold: bool = False
) -> InclusionProof:
    """Prove that an entry is covered by a head of the ledger.

    withhold: leave the entry's line out of the proof. Raises ProofError where the head does not cover the
    entry, HeadMismatch where the head is not of this ledger.
    """
    size = head.checkpoint.size
    if index >= size:
        raise ProofError(
            f"the head covers {size:,} entries; entry {index:,} is not among them",
            help="entries are counted from 0; an entry is covered by the head that follows it",
        )
    roots, line = _roots(path, head, inclusion_ranges(index, size), index)
    return InclusionProof(index, tuple(roots), head.note, None if withhold else line)


def prove_consistency(path: str | os.PathLike[str], old: Checkpoint, head: SignedHead) -> ConsistencyProof:
    """Prove that what a head covers begins with all that an older one covers.

    Raises ProofError where the older one is the larger, HeadMismatch where either is not of this ledger: of
    an old head that does not fit, there is no proof.
    """
    if old.origin != head.checkpoint.origin:
        raise HeadMismatch(f"the old head is of `{old.origin}`, the new one of `{head.checkpoint.origin}`")
    proof, root = _growth(path, old.size, head)
    if root != old.root:
        raise HeadMismatch(
            f"the first {old.size:,} entries of `{os.fspath(path)}` are not those that the old head covers",
            help="the ledger was rewritten after that head was signed: keep the head, it is the evidence",
        )
    return proof


def prove_growth(path: str | os.PathLike[str], old_size: int, head: SignedHead) -> ConsistencyProof:
    """Prove that what a head covers begins with the first `old_size` entries of the ledger, as they are now.

    Whether they were so when an older head was signed is for its keeper to see. Raises as
    `prove_consistency`.
    """
    return _growth(path, old_size, head)[0]


def _growth(path: str | os.PathLike[str], old_size: int, head: SignedHead) -> tuple[ConsistencyProof, bytes]:
    """Return the proof, and the root over the first `old_size` entries."""
    size = head.checkpoint.size
    if old_size > size:
        raise ProofError(f"the old head covers {old_size:,} entries, the new one {size:,}")
    ranges = consistency_ranges(old_size, size) if old_size else []
    (*roots, root), _ = _roots(path, head, [*ranges, (0, old_size)])
    return ConsistencyProof(old_size, tuple(roots), head.note), root


def _roots(
    path: str | os.PathLike[str], head: SignedHead, ranges: Sequence[Range], wanted: int | None = None
) -> tuple[list[bytes], bytes]:
    """Return the root over each range, and one line. Raises HeadMismatch unless the head fits the ledger."""
    checkpoint = head.checkpoint
    kept, count = b"", 0

    def leaves() -> Generator[bytes, None, None]:
        nonlocal kept, count
        with closing(stored_lines(path)) as lines:
            for line in lines:
                if count == checkpoint.size:
                    return
                if count == wanted:
                    kept = line
                count += 1
                yield leaf_hash(line)

    *roots, root = range_roots(leaves(), [*ranges, (0, checkpoint.size)])
    if count < checkpoint.size:
        raise HeadMismatch(
            f"the head covers {checkpoint.size:,} entries; `{os.fspath(path)}` has {count:,}",
            help="the ledger was cut, or the head is of another one",
        )
    if root != checkpoint.root:
        raise HeadMismatch(
            f"the first {checkpoint.size:,} entries of `{os.fspath(path)}` are not those that the head "
            "covers",
            help="the ledger was rewritten, or the head is of another one",
        )
    return roots, kept


def stored_lines(path: str | os.PathLike[str]) -> Generator[bytes, None, None]:
    """Yield the whole lines of a ledger; a torn tail is left out."""
    with open_ledger(path) as file:
        for piece in pieces(file):
            yield from piece.lines
