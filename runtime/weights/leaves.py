"""The file of leaves beside a checkpoint, by which a difference is located: 32 bytes for each MiB of weights.

`NAME.leaves` beside `NAME.safetensors` is a safetensors file too: under the name of each tensor the hashes of
its chunks, of type U8 and shape [chunks, 32]. It needs no signature: the hashes of a tensor are believed
where their root is the one that the ledger records.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gradwarden.runtime.errors import WeightsError
from gradwarden.runtime.ledger.merkle import HASH_SIZE
from gradwarden.runtime.weights.stored import StoredWeights
from gradwarden.runtime.weights.tree import CHUNK, data_root

LEAVES_SUFFIX = ".leaves"


def leaves_beside(weights: Path) -> list[Path]:
    """Return the files of leaves that lie beside a file of weights, or in a folder of them."""
    if weights.is_dir():
        return sorted(weights.glob(f"*{LEAVES_SUFFIX}"))
    beside = weights.with_suffix(LEAVES_SUFFIX)
    return [beside] if beside.is_file() else []


def recorded_leaves(paths: list[Path], name: str, root: bytes) -> bytes | None:
    """Return the joined hashes of a tensor's chunks whose root was recorded; None where no file has them."""
    for path in paths:
        try:
            with StoredWeights([path]) as stored:
                found = stored.tensors.get(name)
                if found is None or found.dtype != "U8" or found.shape[1:] != (HASH_SIZE,):
                    continue
                leaves = bytes(stored.data(found, 0, found.size))
        except (OSError, WeightsError):
            continue
        if data_root(leaves) == root:
            return leaves
    return None


def first_difference(recorded: bytes, found: bytes) -> int | None:
    """Return the first chunk in which a tensor differs; None where one has more chunks than the other."""
    if len(recorded) != len(found):
        return None
    pairs = range(0, len(found), HASH_SIZE)
    places = (at for at in pairs if recorded[at : at + HASH_SIZE] != found[at : at + HASH_SIZE])
    return next(places, len(found)) // HASH_SIZE


def chunk_bytes(chunk: int, size: int) -> tuple[int, int]:
    """Return where a chunk of data of a size begins, and the byte after it."""
    return CHUNK * chunk, min(CHUNK * (chunk + 1), size)


def leaf_tensors(leaves: Mapping[str, bytes]) -> dict[str, tuple[int, int, bytes]]:
    """Return what a file of leaves holds: by name the two lengths of the shape, and the data."""
    return {name: (len(hashes) // HASH_SIZE, HASH_SIZE, hashes) for name, hashes in leaves.items()}
