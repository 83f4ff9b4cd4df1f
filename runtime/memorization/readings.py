"""What one process measures of its part of a step, until the step is left."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gradwarden.policy.context import FloatArray, IntArray


class StepReadings:
    """Numbers by name and by place in the process's own part of the batch."""

    def __init__(self) -> None:
        self._parts: dict[str, list[tuple[IntArray, FloatArray]]] = {}

    def add(self, name: str, places: IntArray, values: FloatArray, public: npt.NDArray[np.bool_]) -> None:
        """Note the values of some places, but not those of private examples: they must not show anywhere."""
        self._parts.setdefault(name, []).append((places[public], values[public].astype(np.float64)))

    def joined(self) -> dict[str, tuple[IntArray, FloatArray]]:
        """Return all places and values by name, in the order in which they came."""
        return {
            name: (np.concatenate([p for p, _ in parts]), np.concatenate([v for _, v in parts]))
            for name, parts in self._parts.items()
        }
