"""The share of each example's gradient that lies in the deepest band: how deep its lesson goes.

|g_i,deepest|^2 / sum over bands b of |g_i,b|^2, for the unweighted gradient g_i of the example's own loss,
over the bands that it may shape. Layers show what their gradients are made of in the one backward pass that
there is; a norm is taken from products between places or from one gradient at a time (`unitwise`). Uses of
one parameter by several calls count one by one. The loss's factor and the normaliser cancel.

That costs a fifth to a third of a step on a transformer, so a run measures one step in many; which ones is
spread evenly, and out of tune with any period of the data (Weyl's sequence of the golden ratio).
"""

from __future__ import annotations

import numpy as np
import torch

from gradwarden.policy.context import FloatArray
from gradwarden.runtime.masks.call import Call, Parameters
from gradwarden.runtime.masks.rows import Rows
from gradwarden.runtime.masks.unitwise import Owners

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = 1 << 64


def measured_at(step: int, every: int) -> bool:
    """Return whether a step is one of those, about one in `every`, that are measured."""
    return step * _GOLDEN % _WORD < _WORD // every


class DepthGauge:
    """Adds up squared norms by example and band; a `Gauge` for the engine that differentiates one batch.

    count: of the batch. bands: how many there are.
    """

    def __init__(self, count: int, bands: int) -> None:
        self.squares = np.zeros((count, bands))

    def take(self, call: Call, parameters: Parameters) -> None:
        """See `Gauge`."""
        weight, bias = (
            None if band is None or rows.empty else rows
            for rows, band in zip((call.weight, call.bias), call.bands, strict=True)
        )
        if weight is not None and weight is bias:
            self._look(call, parameters, weight, (True, True))
            return
        for rows, wanted in ((weight, (True, False)), (bias, (False, True))):
            if rows is not None:
                self._look(call, parameters, rows, wanted)

    def note(self, row: int, band: int, square: float) -> None:
        """See `Gauge`."""
        self.squares[row, band] += square

    def _look(self, call: Call, parameters: Parameters, rows: Rows, wanted: tuple[bool, bool]) -> None:
        ones = torch.ones(rows.count, dtype=torch.float64, device="cpu")
        owners = Owners(torch.arange(rows.count, device="cpu"), ones, rows.count)
        places = call.plan.rows.chosen[rows.chosen].numpy()
        found = parameters.unitwise(rows, *(owners if want else None for want in wanted))
        for band, by_row in zip(call.bands, found, strict=True):
            if by_row is not None:
                np.add.at(self.squares[:, band], places, by_row.squares())

    def shares(self, deepest: int) -> FloatArray:
        """Return one band's share for each example, float64 [count]; NaN where nothing was measured."""
        total = self.squares.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(total > 0.0, self.squares[:, deepest] / total, np.nan)
