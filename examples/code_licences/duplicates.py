"""Which files are near copies of another: MinHash with locality-sensitive hashing, confirmed exactly.

A file is the set of its lines, stripped and without blanks. Two files are near duplicates where the Jaccard
similarity of these sets is at least `THRESHOLD` (Broder 1997; Leskovec, Rajaraman, Ullman: "Mining of Massive
Datasets", chapter 3). MinHash only proposes pairs, so a collision never makes a duplicate; it proposes from a
lower similarity on, so that it overlooks next to none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from zlib import crc32

from datasketch import MinHash, MinHashLSH

THRESHOLD = 0.8
_PROPOSED_FROM = 0.6
_PERMUTATIONS = 64


def near_duplicates(
    files: Iterable[tuple[str, bytes]], advance: Callable[[], None] = lambda: None
) -> dict[str, str]:
    """Return, for each file that nearly repeats an earlier one, the id of that earlier file.

    `files` are (id, content) in order of precedence; only files that repeat nothing count as originals.
    """
    index = MinHashLSH(threshold=_PROPOSED_FROM, num_perm=_PERMUTATIONS)
    originals: dict[str, frozenset[bytes]] = {}
    repeats: dict[str, str] = {}
    empty = MinHash(num_perm=_PERMUTATIONS, hashfunc=crc32)
    for name, content in files:
        lines = line_set(content)
        sketch = empty.copy()
        sketch.update_batch(sorted(lines))
        similar = [near for near in index.query(sketch) if jaccard(lines, originals[near]) >= THRESHOLD]
        if similar:
            repeats[name] = min(similar)
        elif lines:
            originals[name] = lines
            index.insert(name, sketch)
        advance()
    return repeats


def line_set(content: bytes) -> frozenset[bytes]:
    """Return the distinct lines of a file, stripped, without blank ones."""
    return frozenset(line.strip() for line in content.splitlines()) - {b""}


def jaccard(first: frozenset[bytes], second: frozenset[bytes]) -> float:
    """Return the share of lines that two files have in common; 1.0 for two empty files."""
    union = len(first | second)
    return len(first & second) / union if union else 1.0
