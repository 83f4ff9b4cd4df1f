"""A Merkle tree in memory from which any path is read at once, for those who make many proofs of one tree.

The tree is that of RFC 6962 (`ledger/merkle`), with all hashes of its complete subtrees kept.
"""

from __future__ import annotations

from hashlib import sha256

from gradwarden.runtime.ledger.merkle import (
    EMPTY_ROOT,
    HASH_SIZE,
    inclusion_ranges,
    node_hash,
    split_point,
)


class HashTree:
    """The tree over leaf hashes that are joined."""

    def __init__(self, leaves: bytes) -> None:
        self.size = len(leaves) // HASH_SIZE
        self._levels = [leaves]
        """Of level k, the roots of the complete subtrees with 2**k leaves, in order."""
        nodes = leaves
        while len(nodes) >= 2 * HASH_SIZE:
            pairs = range(0, len(nodes) - 2 * HASH_SIZE + 1, 2 * HASH_SIZE)
            nodes = b"".join([sha256(b"\x01" + nodes[at : at + 2 * HASH_SIZE]).digest() for at in pairs])
            self._levels.append(nodes)

    def root(self) -> bytes:
        """Return the root over all leaves."""
        return self._root(0, self.size) if self.size else EMPTY_ROOT

    def path(self, index: int) -> list[bytes]:
        """Return the inclusion proof of a leaf. Raises ProofError for an index outside the tree."""
        return [self._root(*span) for span in inclusion_ranges(index, self.size)]

    def _root(self, start: int, stop: int) -> bytes:
        count = stop - start
        if count & (count - 1) == 0:
            at = (start // count) * HASH_SIZE
            return self._levels[count.bit_length() - 1][at : at + HASH_SIZE]
        middle = start + split_point(count)
        return node_hash(self._root(start, middle), self._root(middle, stop))
