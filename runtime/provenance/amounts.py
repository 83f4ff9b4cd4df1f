"""Reads amounts, such as norms and epsilons, as ledgers tell them."""

from __future__ import annotations

from math import inf


def amount(text: str) -> float | None:
    """Return a number from 0 on that has an end; None where a ledger tells something else in its place."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < inf else None
