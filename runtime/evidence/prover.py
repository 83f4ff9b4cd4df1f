"""Makes proofs from a ledger, in one pass and in memory that its length does not change.

What is proved is what a signed head covers, such as the last one in the ledger. A proof is checked before it
is given, so that none leaves here that does not lead to the head's root: that also shows that all the entries
are those that the head covers, since every one of them goes into the proof's hashes. Signatures are not
checked: whoever is shown the proof does that.
"""

from __future__ import annotations

import os
from collections.abc import Container, Generator, Iterator, Sequence
from contextlib import closing
from itertools import chain
from typing import Any

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.errors import HeadMismatch, LedgerDamaged, ProofError
from gradwarden.runtime.evidence.proof_file import ConsistencyProof, InclusionProof
from gradwarden.runtime.ledger.archive import Archives, missing_error
from gradwarden.runtime.ledger.entries import HEAD, MalformedLineError, decode
from gradwarden.runtime.ledger.merkle import (
    EMPTY_ROOT,
    HASH_SIZE,
    Range,
    Tree,
    consistency_ranges,
    inclusion_ranges,
    leaf_hash,
    leaf_hashes,
    peak_ranges,
    range_roots,
    verify_consistency,
    verify_inclusion,
)
from gradwarden.runtime.ledger.note import Checkpoint, parse_checkpoint, parse_note
from gradwarden.runtime.ledger.reader import absent, open_ledger, pieces, readable_from, size_of

NEAR_END = 4 << 20
"""Bytes at the end of a ledger in which its last head is looked for first."""

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
    note = _near_end(path)
    if note is None:
        for _, _, body in entries_of(path, {HEAD}):
            note = body["note"]
    if note is None:
        raise ProofError(
            f"no entry of `{os.fspath(path)}` is signed yet", help="a head follows the first second of a run"
        )
    return read_head(note.encode())


def head_over(path: str | os.PathLike[str], size: int) -> SignedHead:
    """Return the head in a ledger over its first `size` entries. Raises ProofError where there is none."""
    last = last_head(path)
    if last.checkpoint.size == size:
        return last
    for index, _, body in entries_of(path, {HEAD}):
        if index == size:
            return read_head(body["note"].encode())
    raise ProofError(f"no entry of `{os.fspath(path)}` is a head over its first {size:,} entries")


def _near_end(path: str | os.PathLike[str]) -> str | None:
    """Return the note of the last head if it is well formed and where it usually is."""
    with open_ledger(path) as file:
        first = readable_from(file)
        start = max(size_of(file) - NEAR_END, first)
        lines = [line for piece in pieces(file, start) for line in piece.lines][start > first :]
    for line in reversed(lines):
        if kind_of(line) == HEAD:
            try:
                note: str = decode(line)[3]["note"]
            except MalformedLineError:
                return None
            return note
    return None


def entries_of(
    path: str | os.PathLike[str], kinds: Container[str]
) -> Generator[tuple[int, str, dict[str, Any]], None, None]:
    """Yield (index, kind, body) of the entries of some kinds, without a look at the others.

    Raises LedgerDamaged at one of them that is malformed; order and links are not checked.
    """
    with closing(stored_lines(path)) as parts:
        for index, line in enumerate(chain.from_iterable(parts)):
            if kind_of(line) not in kinds:
                continue
            try:
                _, kind, _, body = decode(line)
            except MalformedLineError as error:
                raise LedgerDamaged(
                    f"entry {index}: {error}", index=index, offset=0, problem=error.problem
                ) from None
            yield index, kind, body


def kind_of(line: bytes) -> str:
    """Return the kind of an entry, if the line is that of one."""
    end = len(line) - _AFTER_KIND
    return line[line.rfind(b'"', 0, end) + 1 : end].decode("ascii", "replace")


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
    roots, line = _roots(path, size, inclusion_ranges(index, size), index)
    if not verify_inclusion(index, size, leaf_hash(line), roots, head.checkpoint.root):
        raise _mismatch(path, size)
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
    size, root = head.checkpoint.size, head.checkpoint.root
    if old_size > size:
        raise ProofError(f"the old head covers {old_size:,} entries, the new one {size:,}")
    if old_size == 0:
        [found], _ = _roots(path, size, [(0, size)])
        if found != root:
            raise _mismatch(path, size)
        return ConsistencyProof(0, (), head.note), EMPTY_ROOT
    (*roots, old_root), _ = _roots(path, size, [*consistency_ranges(old_size, size), (0, old_size)])
    if not verify_consistency(old_size, size, old_root, root, roots):
        raise _mismatch(path, size)
    return ConsistencyProof(old_size, tuple(roots), head.note), old_root


def root_over(path: str | os.PathLike[str], size: int) -> bytes:
    """Return the root over the first `size` entries. Raises HeadMismatch where there are not so many."""
    [root], _ = _roots(path, size, [(0, size)])
    return root


def _mismatch(path: str | os.PathLike[str], size: int) -> HeadMismatch:
    return HeadMismatch(
        f"the first {size:,} entries of `{os.fspath(path)}` are not those that the head covers",
        help="the ledger was rewritten, or the head is of another one",
    )


def _roots(
    path: str | os.PathLike[str], size: int, ranges: Sequence[Range], wanted: int = -1
) -> tuple[list[bytes], bytes]:
    """Return the root over each range of the first `size` entries, and one line of them.

    Raises HeadMismatch where there are not so many.
    """
    missing = absent(path)
    if missing is not None:
        return _roots_beyond(path, missing, size, ranges, wanted)
    kept, count = b"", 0

    def leaves() -> Iterator[bytes]:
        nonlocal kept, count
        with closing(stored_lines(path)) as parts:
            for lines in parts:
                lines = lines[: size - count]
                if 0 <= wanted - count < len(lines):
                    kept = lines[wanted - count]
                count += len(lines)
                yield leaf_hashes(lines)
                if count == size:
                    return

    roots = range_roots(leaves(), ranges)
    if count < size:
        raise HeadMismatch(
            f"the head covers {size:,} entries; `{os.fspath(path)}` has {count:,}",
            help="the ledger was cut, or the head is of another one",
        )
    return roots, kept


def _roots_beyond(
    path: str | os.PathLike[str], missing: Archives, size: int, ranges: Sequence[Range], wanted: int
) -> tuple[list[bytes], bytes]:
    """Return what `_roots` does where archives are missing, from what is kept of them.

    Raises ArchiveMissing where that does not suffice, as for an archived entry; also HeadMismatch.
    """
    count = missing.end
    trees = [_begun(missing, one) for one in ranges]
    line_found = b""
    with open_ledger(path) as file:
        for piece in pieces(file, readable_from(file)):
            lines = piece.lines[: size - count]
            if 0 <= wanted - count < len(lines):
                line_found = lines[wanted - count]
            hashes = leaf_hashes(lines)
            for (start, stop), tree in zip(ranges, trees, strict=True):
                first = max(start - count, 0) * HASH_SIZE
                tree.extend(hashes[first : max(stop - count, 0) * HASH_SIZE])
            count += len(lines)
    if count < size:
        raise HeadMismatch(f"the head covers {size:,} entries; `{os.fspath(path)}` has {count:,}")
    if 0 <= wanted < missing.end:
        raise missing_error(missing)
    return [tree.root() for tree in trees], line_found


def _begun(missing: Archives, leaves: Range) -> Tree:
    """Return the tree over the archived leaves of a range. Raises ArchiveMissing where it is not known."""
    start, stop = leaves[0], min(leaves[1], missing.end)
    peaks = []
    for (first, end), peak in zip(peak_ranges(missing.end), missing.kept.peaks, strict=True):
        if start <= first and end <= stop:
            peaks.append(peak)
        elif first < stop and start < end:
            raise missing_error(missing)
    return Tree.of(max(stop - start, 0), peaks)


def stored_lines(path: str | os.PathLike[str]) -> Generator[list[bytes], None, None]:
    """Yield the whole lines of a ledger, some at a time; a torn tail is left out."""
    with open_ledger(path) as file:
        for piece in pieces(file):
            yield piece.lines
