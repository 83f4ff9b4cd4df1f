"""The Merkle tree of RFC 6962 section 2.1: roots, inclusion proofs, consistency proofs.

leaf = SHA-256(00 ‖ data), node = SHA-256(01 ‖ left ‖ right), empty root = SHA-256(""). A tree of n leaves
splits at the greatest power of two below n. Proofs run from the leaf towards the root. The verifiers follow
RFC 9162 sections 2.1.3.2 and 2.1.4.2, which restate those of RFC 6962 as algorithms.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from operator import itemgetter
from struct import Struct
from typing import TypeAlias

from gradwarden.runtime.errors import ProofError

Range: TypeAlias = tuple[int, int]
"""Leaves of a tree, by index: the first, and the one after the last."""

HASH_SIZE = 32
EMPTY_ROOT = sha256(b"").digest()

_LEAF, _NODE = b"\x00", b"\x01"
_PAIR = Struct(f"{2 * HASH_SIZE}s")
_FIRST = itemgetter(0)


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of one entry."""
    return sha256(b"\x00" + data).digest()


def leaf_hashes(entries: Iterable[bytes]) -> bytes:
    """Return the hashes of entries, joined."""
    return _hashes(_LEAF, entries)


def _hashes(prefix: bytes, texts: Iterable[bytes]) -> bytes:
    """Return the hashes of texts behind a prefix, joined."""
    # To copy a hash that has begun takes less time than to begin one and to put what is hashed together.
    copy, hashes = sha256(prefix).copy, []
    for text in texts:
        one = copy()
        one.update(text)
        hashes.append(one.digest())
    return b"".join(hashes)


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of two subtrees."""
    return sha256(b"\x01" + left + right).digest()


class Tree:
    """A growing tree that keeps only the roots of its complete subtrees: at most 64 hashes."""

    __slots__ = ("_peaks", "size")

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[bytes] = []

    @classmethod
    def of(cls, size: int, peaks: Iterable[bytes]) -> Tree:
        """Return a tree of so many leaves, of which the roots of complete subtrees are known (`peaks`)."""
        tree = cls()
        tree.size, tree._peaks = size, list(peaks)
        return tree

    @property
    def peaks(self) -> tuple[bytes, ...]:
        """The roots of the complete subtrees, the greatest first."""
        return tuple(self._peaks)

    def append(self, leaf: bytes) -> None:
        """Add a leaf hash."""
        peaks = self._peaks
        size = self.size
        while size & 1:
            leaf = sha256(b"\x01" + peaks.pop() + leaf).digest()
            size >>= 1
        peaks.append(leaf)
        self.size += 1

    def extend(self, leaves: bytes) -> None:
        """Add leaf hashes that are joined, level by level."""
        nodes, above, peaks = leaves, self.size, []
        while nodes:
            if above & 1:
                nodes = self._peaks.pop() + nodes
            paired = len(nodes) - len(nodes) % (2 * HASH_SIZE)
            if paired < len(nodes):
                peaks.append(nodes[paired:])
            nodes = _hashes(_NODE, map(_FIRST, _PAIR.iter_unpack(nodes[:paired])))
            above >>= 1
        self._peaks += reversed(peaks)
        self.size += len(leaves) // HASH_SIZE

    def root(self) -> bytes:
        """Return the root hash over all leaves so far."""
        if not self._peaks:
            return EMPTY_ROOT
        root = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            root = node_hash(peak, root)
        return root


def tree_root(leaves: Iterable[bytes]) -> bytes:
    """Return the root over leaf hashes."""
    tree = Tree()
    for leaf in leaves:
        tree.append(leaf)
    return tree.root()


def split_point(size: int) -> int:
    """Return the greatest power of two below `size` (at least 2)."""
    return 1 << ((size - 1).bit_length() - 1)


def peak_ranges(size: int) -> list[Range]:
    """Return the leaves of each complete subtree of a tree (`Tree.peaks`), the greatest first."""
    found, start = [], 0
    for level in reversed(range(size.bit_length())):
        if size >> level & 1:
            found.append((start, start + (1 << level)))
            start += 1 << level
    return found


def inclusion_ranges(index: int, size: int) -> list[Range]:
    """Return whose roots make up PATH(index, D[0:size]): from the leaf towards the root.

    Raises ProofError for an index outside the tree.
    """
    if not 0 <= index < size:
        raise ProofError(f"there is no entry {index} in a tree of {size}")
    start, stop = 0, size
    ranges = []
    while stop - start > 1:
        middle = start + split_point(stop - start)
        if index < middle:
            ranges.append((middle, stop))
            stop = middle
        else:
            ranges.append((start, middle))
            start = middle
    return ranges[::-1]


def consistency_ranges(old_size: int, size: int) -> list[Range]:
    """Return whose roots make up PROOF(old_size, D[0:size]).

    Raises ProofError unless 0 < old_size <= size.
    """
    if not 0 < old_size <= size:
        raise ProofError(f"a tree of {size} entries has no consistency proof from {old_size}")
    start, stop, whole = 0, size, True
    ranges = []
    while old_size != stop:
        middle = start + split_point(stop - start)
        if old_size <= middle:
            ranges.append((middle, stop))
            stop = middle
        else:
            ranges.append((start, middle))
            start, whole = middle, False
    if not whole:
        ranges.append((start, stop))
    return ranges[::-1]


def range_roots(leaves: Iterable[bytes], ranges: Sequence[Range]) -> list[bytes]:
    """Return the root over each range of leaf hashes, in one pass; a range may run past the last leaf.

    leaves: hashes in runs, each run joined.
    """
    trees = [Tree() for _ in ranges]
    first = 0
    for run in leaves:
        last = first + len(run) // HASH_SIZE
        for (start, stop), tree in zip(ranges, trees, strict=True):
            if start < last and first < stop:
                tree.extend(run[max(start - first, 0) * HASH_SIZE : (stop - first) * HASH_SIZE])
        first = last
    return [tree.root() for tree in trees]


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Return PATH(index, leaves). Raises ProofError for an index outside the tree."""
    return range_roots([b"".join(leaves)], inclusion_ranges(index, len(leaves)))


def consistency_proof(leaves: Sequence[bytes], old_size: int) -> list[bytes]:
    """Return PROOF(old_size, leaves). Raises ProofError unless 0 < old_size <= len(leaves)."""
    return range_roots([b"".join(leaves)], consistency_ranges(old_size, len(leaves)))


def verify_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes) -> bool:
    """Return whether the proof shows the leaf hash at `index` of the tree of `size` with this root."""
    if not 0 <= index < size or not _are_hashes(leaf, root, *proof):
        return False
    at, last, node = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if at & 1 or at == last:
            node = node_hash(sibling, node)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        at, last = at >> 1, last >> 1
    return last == 0 and node == root


def verify_consistency(
    old_size: int, new_size: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]
) -> bool:
    """Return whether the proof shows that the old tree is a prefix of the new one.

    Nothing can be shown of an empty old tree: `old_size` 0 is false.
    """
    if not 0 < old_size <= new_size or not _are_hashes(*proof):
        return False
    if old_size == new_size:
        return not proof and old_root == new_root
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)
    if not path:
        return False
    at, last = old_size - 1, new_size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        at, last = at >> 1, last >> 1
    return last == 0 and old == old_root and new == new_root


def _are_hashes(*values: bytes) -> bool:
    return all(len(value) == HASH_SIZE for value in values)
