"""The digest of weights: a Merkle tree over each tensor's data, and one over the tensors (RFC 6962 hashing).

A tensor's data, as safetensors stores them, are cut into chunks of 1 MiB (the last may be shorter); its root
is that of the tree whose entries are the chunks, SHA-256("") of a tensor without data. The weights' root is
that of the tree whose entries are the tensors in the order of their names (of code points), each as the
canonical JSON (RFC 8785) of

    {"chunk":1048576,"dtype":"F32","name":"…","root":"<64 hex digits>","shape":[768,768]}

So type, shape and name are bound in, and neither the file's layout nor its metadata: the same tensors in
another file, or in several, have the same root. Two tensors of one size differ in the chunks whose hashes do.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import TypeAlias

import orjson

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.ledger.entries import CANONICAL
from gradwarden.runtime.ledger.merkle import HASH_SIZE, Tree, leaf_hash
from gradwarden.runtime.weights.stored import StoredTensor, StoredWeights

CHUNK = 1 << 20
"""Bytes of a tensor's data to a chunk."""

MOST_THREADS = 8
"""Threads that hash where nobody says how many; storage is slower than more of them."""

_SPAN = 16
"""Chunks that a thread takes at once."""

_Span: TypeAlias = tuple[StoredTensor, int]
"""A tensor, and the first of its chunks that a thread takes."""


@frozen
class TensorDigest:
    """What identifies a tensor: its name, type, shape, and the root over its data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    root: bytes

    def leaf(self) -> bytes:
        """Return its leaf hash in the tree over the weights."""
        told = {
            "chunk": CHUNK,
            "dtype": self.dtype,
            "name": self.name,
            "root": self.root.hex(),
            "shape": list(self.shape),
        }
        return leaf_hash(orjson.dumps(told, option=CANONICAL))


@frozen
class WeightTree:
    """The digest of weights.

    tensors: in order. root: over them. leaves: by name, the joined hashes of each tensor's chunks. tied: the
    stored name of each tensor that is stored under another.
    """

    tensors: tuple[TensorDigest, ...]
    root: bytes
    leaves: Mapping[str, bytes]
    tied: Mapping[str, str]


def weights_root(tensors: tuple[TensorDigest, ...]) -> bytes:
    """Return the root over tensors that are in order."""
    return data_root(b"".join([tensor.leaf() for tensor in tensors]))


def data_root(leaves: bytes) -> bytes:
    """Return the root over the joined hashes of chunks."""
    tree = Tree()
    tree.extend(leaves)
    return tree.root()


def chunks_of(size: int) -> int:
    """Return how many chunks data of so many bytes have."""
    return -(-size // CHUNK)


def hash_weights(
    weights: StoredWeights,
    threads: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> WeightTree:
    """Return the digest of weights; the same, whatever the number of threads.

    threads: that hash; None: one for each processor, up to MOST_THREADS. advance: told of bytes done, from
    any of them. Raises WeightsError, OSError.
    """
    spans = _Shared(_spans(weights))
    leaves = {name: bytearray(HASH_SIZE * chunks_of(one.size)) for name, one in weights.tensors.items()}

    def work() -> None:
        for tensor, first in spans:
            last = min(first + _SPAN, chunks_of(tensor.size))
            hashes = b"".join([_leaf(weights, tensor, chunk) for chunk in range(first, last)])
            leaves[tensor.name][HASH_SIZE * first : HASH_SIZE * last] = hashes
            advance(min(CHUNK * last, tensor.size) - CHUNK * first)

    count = threads or default_threads()
    if count == 1:
        work()
    else:
        with ThreadPoolExecutor(count) as pool:
            for done in [pool.submit(work) for _ in range(count)]:
                done.result()
    return _tree(weights, {name: bytes(hashes) for name, hashes in leaves.items()})


def default_threads() -> int:
    """Return how many threads hash where nobody says."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MOST_THREADS)


def _leaf(weights: StoredWeights, tensor: StoredTensor, chunk: int) -> bytes:
    """Return the leaf hash of a chunk. `update` lets other threads run while it hashes."""
    found = sha256(b"\x00")
    found.update(weights.data(tensor, CHUNK * chunk, min(CHUNK * (chunk + 1), tensor.size)))
    return found.digest()


def _spans(weights: StoredWeights) -> Iterator[_Span]:
    """Yield the work in the order of the files, so that storage is read in sequence."""
    for tensor in sorted(weights.tensors.values(), key=lambda one: (one.file, one.begin)):
        for first in range(0, chunks_of(tensor.size), _SPAN):
            yield tensor, first


class _Shared:
    """An iterator that several threads take from."""

    def __init__(self, items: Iterator[_Span]) -> None:
        self._items = items
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[_Span]:
        return self

    def __next__(self) -> _Span:
        with self._lock:
            return next(self._items)


def _tree(weights: StoredWeights, leaves: Mapping[str, bytes]) -> WeightTree:
    tensors = tuple(
        TensorDigest(name, one.dtype, one.shape, data_root(leaves[name]))
        for name, one in sorted(weights.tensors.items())
    )
    return WeightTree(tensors, weights_root(tensors), leaves, weights.tied)
