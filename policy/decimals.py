"""Exact decimal arithmetic, whatever decimal context the calling program has set.

The language's numbers have at most 40 digits and exponents within ±30, so 200 digits hold every result.
"""

from __future__ import annotations

from decimal import Context, Decimal, Inexact

_EXACT = Context(prec=200, traps=[Inexact])


def scaled(value: Decimal, places: int) -> int | None:
    """Return value * 10**places where that is whole, else None."""
    shifted = _EXACT.scaleb(value, places)
    whole = int(shifted)
    return whole if shifted == whole else None


def unscaled(value: int, places: int) -> Decimal:
    """Return value / 10**places."""
    return _EXACT.scaleb(Decimal(value), -places)


def places_of(value: Decimal) -> int:
    """Return how many decimal places a number needs."""
    exponent = _EXACT.normalize(value).as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def times(value: Decimal, factor: int) -> Decimal:
    return _EXACT.multiply(value, Decimal(factor))


def decimal_text(value: Decimal) -> str:
    """Return a decimal in its canonical form: no exponent, no trailing zeros."""
    return f"{_EXACT.normalize(value):f}"
