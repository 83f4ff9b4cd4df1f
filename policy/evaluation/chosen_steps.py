"""Which steps are chosen where a policy, or a run, asks for one in so many.

They are spread evenly, and out of tune with any period of the data: step n is chosen where the n-th multiple
of e, modulo 1, is below 1/N (Weyl's equidistribution theorem). What one in 2N chooses, one in N does as well.
Of 40 N visits to one place of an epoch of up to 64 steps, 23 to 64 are chosen, whatever N up to 64; with the
golden ratio, whose 61st multiple is near a simple fraction, 11 to 72.
"""

from __future__ import annotations

import numpy as np

from gradwarden.policy.array_types import Numbers

_MULTIPLE = 0xB7E151628AED2A6B
"""The fractional part of e in 64 bits, made odd."""

_WORD = 1 << 64


def is_chosen(step: int, every: int) -> bool:
    """Return whether a step is one of those, about one in `every`, that are chosen; 0: none is."""
    return every > 0 and step * _MULTIPLE % _WORD < _WORD // every


def any_chosen(steps: Numbers, every: int) -> bool:
    """Return whether any of some steps, int64 [S], is chosen."""
    with np.errstate(over="ignore"):
        places = steps.astype(np.uint64) * np.uint64(_MULTIPLE)
    return bool((places <= np.uint64(_WORD // every - 1)).any())
