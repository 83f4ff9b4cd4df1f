"""Which ranks say something else than most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping


def odd_ranks(said: Mapping[int, str]) -> list[int]:
    """Return those that say something else than most do; all, where no more than half agree.

    said: by rank. None are odd where all say the same, or nobody says anything.
    """
    if len(set(said.values())) < 2:
        return []
    common, times = Counter(said.values()).most_common(1)[0]
    return [rank for rank, one in said.items() if one != common] if 2 * times > len(said) else list(said)
