"""Sums over the ranks' shares of a batch, by which one share that is recorded wrongly is located.

Rank r, which proposes c examples, adds to the sum that ends a step not only c but also (r + 1) c and
(r + 1)^2 c, modulo a prime. All ranks record the three sums. They are syndromes of a Reed-Solomon code: if
rank r alone records e examples more than it told, the records exceed the sums by e, (r + 1) e and
(r + 1)^2 e, whose quotient is its place. Two ranks that lie in one step are never taken for one: with errors
e and f at places a and b, the first times the third less the square of the second is e f (a - b)^2, not 0.
"""

from __future__ import annotations

from collections.abc import Sequence

from gradwarden.policy.frozen import frozen

PRIME = 2**31 - 1
"""More than the ranks of any job; sums of residues over all of them fit in 64 bits."""


@frozen
class WholeBatch:
    """What the ranks have told each other of a batch.

    count: its examples. sums: of the shares times the ranks' places, and times their squares, modulo PRIME.
    """

    count: int
    sums: tuple[int, int]


def weighted(rank: int, count: int) -> tuple[int, int]:
    """Return what a rank adds to both sums for a share of so many examples."""
    place = rank + 1
    return place * count % PRIME, place * place * count % PRIME


def whole_batch(shares: Sequence[int]) -> WholeBatch:
    """Return the sums over shares, by rank."""
    parts = [weighted(rank, count) for rank, count in enumerate(shares)]
    first, second = (sum(column) % PRIME for column in zip(*parts, strict=True))
    return WholeBatch(sum(shares), (first, second))


def located(excess: Sequence[int], ranks: int) -> int | None:
    """Return the one rank whose share explains by how much records exceed the three sums, or None.

    excess: of the count, and of both sums, which are taken modulo PRIME.
    """
    count, first, second = (number % PRIME for number in excess)
    if not count or (first * first - count * second) % PRIME:
        return None
    rank = first * pow(count, -1, PRIME) % PRIME - 1
    return rank if 0 <= rank < ranks else None
