"""How well a signal of the loop finds the examples that can be extracted at the end: precision and recall."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from examples.memorization.training import Scored

SIGNALS = ("reconstruction", "token_score", "loss_gap", "loss_ratio", "exposures")

FALLING = frozenset({"loss_ratio"})
"""Signals of which less speaks for memorization."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Precision and recall at every threshold, the strictest first. average: mean precision over recall."""

    signal: str
    thresholds: list[float]
    precision: list[float]
    recall: list[float]
    average: float

    def at(self, threshold: float) -> tuple[float, float]:
        """Return precision and recall where all examples with at least so much of the signal are flagged."""
        place = int(np.count_nonzero(np.array(self.thresholds) >= threshold)) - 1
        return (self.precision[place], self.recall[place]) if place >= 0 else (1.0, 0.0)

    def recall_at(self, precision: float) -> float:
        """Return the greatest recall that is had with at least so much precision, 0.0 where none is."""
        reached = [
            recall for found, recall in zip(self.precision, self.recall, strict=True) if found >= precision
        ]
        return max(reached, default=0.0)


def curve(signal: str, scored: Sequence[Scored], truth: Callable[[Scored], bool]) -> Curve:
    """Return the curve of a signal over all examples. Examples of one value are flagged together."""
    sign = -1.0 if signal in FALLING else 1.0
    values = np.array([sign * one.signals[signal] for one in scored])
    true = np.array([truth(one) for one in scored])
    order = np.argsort(-values, kind="stable")
    values, hits = values[order], np.cumsum(true[order])
    last = np.flatnonzero(np.r_[values[1:] != values[:-1], True])
    recall = hits[last] / max(1, hits[-1])
    precision = hits[last] / (last + 1)
    average = float(np.sum(np.diff(np.r_[0.0, recall]) * precision))
    return Curve(signal, values[last].tolist(), precision.tolist(), recall.tolist(), average)
