"""Clusters of texts that are nearly the same: MinHash with locality-sensitive hashing, confirmed exactly.

A text is the set of its features: its lines (`lines`), or its overlapping pieces (`pieces`). Two texts are
near duplicates where the Jaccard similarity of these sets is at least a threshold (Broder 1997; Leskovec,
Rajaraman, Ullman: "Mining of Massive Datasets", chapter 3). MinHash only proposes pairs, so a collision never
makes a duplicate; it proposes from a lower similarity on, so that it overlooks next to none.

A cluster is a text that repeats none before it, and all later ones that nearly repeat it; its name is that
first text's id. So clusters do not grow by chains of small changes, and the order of the texts is one of
precedence. A run counts exposures by cluster where the loop names its examples by it: a limit such as
`at most 4 exposures` then holds for all copies together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any
from zlib import crc32

from gradwarden.runtime.errors import MemorizationError

THRESHOLD = 0.8
"""The least Jaccard similarity of near duplicates."""

_PROPOSED_AT = 0.75
"""The share of the threshold from which MinHash proposes."""

_PERMUTATIONS = 64


def clusters(
    texts: Iterable[tuple[str, frozenset[bytes]]],
    threshold: float = THRESHOLD,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """Return the cluster of every text, by id.

    texts: (id, features) in order of precedence. A text without features is a cluster of its own. advance: is
    called after each text. Raises MemorizationError where datasketch is not installed.
    """
    sketching = _datasketch()
    index = sketching.MinHashLSH(threshold=_PROPOSED_AT * threshold, num_perm=_PERMUTATIONS)
    empty = sketching.MinHash(num_perm=_PERMUTATIONS, hashfunc=crc32)
    firsts: dict[str, frozenset[bytes]] = {}
    found: dict[str, str] = {}
    for name, features in texts:
        sketch = empty.copy()
        sketch.update_batch(sorted(features))
        similar = [near for near in index.query(sketch) if jaccard(features, firsts[near]) >= threshold]
        if features and not similar:
            firsts[name] = features
            index.insert(name, sketch)
        found[name] = min(similar, default=name)
        advance()
    return found


def lines(content: bytes) -> frozenset[bytes]:
    """Return the distinct lines of a text, stripped, without blank ones."""
    return frozenset(line.strip() for line in content.splitlines()) - {b""}


def pieces(content: bytes, size: int = 8) -> frozenset[bytes]:
    """Return the distinct pieces of so many bytes of a text, which overlap; a shorter text is one piece."""
    if not content:
        return frozenset()
    return frozenset(content[at : at + size] for at in range(max(1, len(content) - size + 1)))


def jaccard(first: frozenset[bytes], second: frozenset[bytes]) -> float:
    """Return the share of features that two texts have in common; 1.0 for two empty ones."""
    union = len(first | second)
    return len(first & second) / union if union else 1.0


def _datasketch() -> Any:
    try:
        return import_module("datasketch")
    except ImportError as error:
        raise MemorizationError(
            "near duplicates are found with datasketch, which is not installed",
            help="pip install 'gradwarden[duplicates]'",
        ) from error
