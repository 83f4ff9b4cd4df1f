"""Batches by epoch: what samplers that work their batches out have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from gradwarden.policy.context import IntArray


class Epochs(ABC):
    """One iteration is one epoch; the batches of an epoch are a function of its number (`order`).

    Iterating again goes on with the next epoch; after `load_state_dict`, with the rest of the one that was
    interrupted.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self._position = 0

    @abstractmethod
    def order(self, epoch: int) -> list[IntArray]:
        """Return the batches of an epoch, each int64 rows."""

    def __iter__(self) -> Iterator[IntArray]:
        batches = self.order(self.epoch)
        while self._position < len(batches):
            # Advance first: the state saved while a batch is in use must point past it.
            self._position += 1
            yield batches[self._position - 1]
        self.epoch += 1
        self._position = 0

    def state_dict(self) -> dict[str, Any]:
        """Return epoch and position (JSON data)."""
        return {"epoch": self.epoch, "position": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a sampler over the same rows, made in the same way, was saved."""
        self.epoch, self._position = state["epoch"], state["position"]
