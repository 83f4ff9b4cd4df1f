"""Which steps are chosen where a policy, or a run, asks for one in so many.

They are spread evenly, and out of tune with any period of the data: step n is chosen where the n-th multiple
of the golden ratio, modulo 1, is below 1/N (Weyl's equidistribution theorem). What one in 2N chooses, one in
N does as well.
"""

from __future__ import annotations

import numpy as np

from gradwarden.policy.array_types import Numbers

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = 1 << 64


def is_chosen(step: int, every: int) -> bool:
    """Return whether a step is one of those, about one in `every`, that are chosen."""
    return step * _GOLDEN % _WORD < _WORD // every


def any_chosen(steps: Numbers, every: int) -> bool:
    """Return whether any of some steps, int64 [S], is chosen."""
    with np.errstate(over="ignore"):
        places = steps.astype(np.uint64) * np.uint64(_GOLDEN)
    return bool((places <= np.uint64(_WORD // every - 1)).any())
