"""The explicit inputs of a decision besides the example's metadata. Nothing here is ambient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

IntArray: TypeAlias = npt.NDArray[np.integer[Any]]
FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]

EPOCH_DAY = date(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class Context:
    """Where a run stands when it asks for a decision.

    step, epoch: counted from 0. at: the calendar day; needed by policies that read `today`. exposures: how
    often this example has shaped the model before (an int, or an int array with one entry per row). signals:
    values by declared name (a number, or an array per row); a signal not given has its declared default.
    spent: names of privacy rules whose budget is used up.
    """

    step: int = 0
    epoch: int = 0
    at: date | None = None
    exposures: int | IntArray = 0
    signals: Mapping[str, float | FloatArray] = field(default_factory=dict)
    spent: frozenset[str] = frozenset()

    @property
    def today(self) -> int | None:
        """Days since 1970-01-01, or None where no date was given."""
        return None if self.at is None else (self.at - EPOCH_DAY).days
