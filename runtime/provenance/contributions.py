"""Makes rows of what a step records of contributions: what its examples added, how far its bands moved.

What is recorded is taken as it is. Where it belongs to no example of the step, or is no norm, there is no row
of it; `verify` tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gradwarden.policy.array_types import Numbers
from gradwarden.runtime.provenance.amounts import amount


def added_rows(
    recorded: Sequence[Mapping[str, Any]], examples: Numbers, shaped: Mapping[str, Sequence[bool]]
) -> Iterator[tuple[int, str, float | None]]:
    """Yield the number of an example, a band and the norm of what it added there; None: it is private.

    recorded: the `contributed` entries of a step. examples: the numbers of the step's examples, int64 [E].
    shaped: by band, whether each of them has weight there; others add nothing, and give no row.
    """
    numbers = examples.tolist()
    for body in recorded:
        own = slice(body["first"], None)
        for band, given in shaped.items():
            texts = body["norms"].get(band, ())
            for example, weighty, text in zip(numbers[own], given[own], texts, strict=False):
                norm = None if text is None else amount(text)
                if weighty and (text is None or norm is not None):
                    yield example, band, norm


def moved_rows(recorded: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    """Yield a band and how far it moved. recorded: the `moved` entries of a step."""
    for body in recorded:
        for band, text in body["norms"].items():
            norm = amount(text)
            if norm is not None:
                yield band, norm
