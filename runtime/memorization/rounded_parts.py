"""Makes the parts of a gradient add up to what it was rounded to.

Parts are measured exactly, the gradient is not: elements at the end of what float16 can tell are rounded up
to twice what they are, and the norm of the gradient with them. Parts that are recorded as they are would
then seem to be too small for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradwarden.policy.array_types import Floats

MOST = 2.0
"""By how much rounding to the nearest can raise a number."""

USUAL = 1.01
"""How far a gradient may pass its parts without more ado: sums are rounded, too."""


def rounded_parts(parts: Floats, norms: Sequence[float | None]) -> Floats:
    """Return the norms of parts, scaled up by band where together they are less than the gradient's norm.

    parts: float64 [batch, bands]. norms: of each band's gradient; None where it is not a sum of these parts
    alone. What rounding does not explain is left as it is.
    """
    wanted = np.array([0.0 if norm is None else norm for norm in norms])
    whole = parts.sum(axis=0)
    factors = np.divide(wanted, whole, out=np.ones_like(whole), where=whole > 0)
    return parts * np.where((factors > USUAL) & (factors <= MOST), factors, 1.0)
