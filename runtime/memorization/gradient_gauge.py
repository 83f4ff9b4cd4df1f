"""The norm of each example's own gradient with respect to the parameters, and how it is spread over bands.

norm:  |g_i|, over the bands that example i may shape
share: |g_i,deepest|^2 / |g_i|^2, how deep its lesson goes

for the unweighted gradient g_i of the example's own loss. Layers show what their gradients are made of in the
one backward pass that there is; a norm is taken from products between places or from one gradient at a time
(`unitwise`). Of a parameter that several layers use, gradients are added up before they are measured. What no
layer shows is told by a backward pass for each example (`show_each`).

That costs a fifth to a third of a step on a transformer, so a run measures one step in many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from gradwarden.policy.context import FloatArray
from gradwarden.runtime.masks.call import Call, Parameters
from gradwarden.runtime.masks.rows import Rows
from gradwarden.runtime.masks.unitwise import Owners, squared_norm


class GradientGauge:
    """Adds up squared norms by example and band; a `Gauge` for the engine that differentiates one batch.

    count: of the batch. bands: how many there are.
    """

    def __init__(self, count: int, bands: int) -> None:
        self.squares = np.zeros((count, bands))
        self._factors = np.ones(count)
        self._told: Collection[int] = ()
        self._awaited: Counter[int] = Counter()
        self._shared: dict[int, list[tuple[Call, Parameters, int]]] = {}

    def expect(self, factors: Tensor, calls: Sequence[Call], told: Collection[int]) -> None:
        """See `Gauge`."""
        self._factors, self._told = factors.detach().double().cpu().numpy(), told
        self._awaited = Counter(key for call in calls for key in set(call.ids))

    def wants(self, parameter: int) -> bool:
        """See `Gauge`."""
        return parameter not in self._told

    def take(self, call: Call, parameters: Parameters) -> None:
        """See `Gauge`."""
        wanted = [
            band is not None and not rows.empty and self.wants(key)
            for rows, band, key in zip((call.weight, call.bias), call.bands, call.ids, strict=True)
        ]
        for place, key in enumerate(call.ids):
            if wanted[place] and self._awaited[key] > 1:
                wanted[place] = False
                self._keep(call, parameters, place)
        if all(wanted) and call.weight is call.bias:
            self._look(call, parameters, call.weight, (True, True))
            return
        for place, rows in enumerate((call.weight, call.bias)):
            if wanted[place]:
                self._look(call, parameters, rows, (place == 0, place == 1))

    def note(self, row: int, band: int, square: float) -> None:
        """See `Gauge`."""
        if self._factors[row]:
            self.squares[row, band] += square / self._factors[row] ** 2

    def _look(self, call: Call, parameters: Parameters, rows: Rows, wanted: tuple[bool, bool]) -> None:
        """Measure what one call has of the examples with rows in it."""
        count = len(self.squares)
        own = call.plan.examples_of(rows.chosen)
        ones = torch.ones(rows.count, dtype=torch.float64, device="cpu")
        owners = Owners(torch.where(own < 0, count, own), ones, count + 1)
        found = parameters.unitwise(rows, *(owners if want else None for want in wanted))
        for band, by_example in zip(call.bands, found, strict=True):
            if by_example is not None and band is not None:
                for row, square in enumerate(by_example.squares()[:count]):
                    self.note(row, band, square)

    def _keep(self, call: Call, parameters: Parameters, place: int) -> None:
        """Wait for all calls that use a parameter; then measure the sum of what they have."""
        uses = self._shared.setdefault(call.ids[place], [])
        uses.append((call, parameters, place))
        if len(uses) == self._awaited[call.ids[place]]:
            self._measure(self._shared.pop(call.ids[place]))

    def _measure(self, uses: Sequence[tuple[Call, Parameters, int]]) -> None:
        """Measure what all calls that use a parameter have of each example, one at a time."""
        call, _, place = uses[0]
        band = call.bands[place]
        assert band is not None
        by_use = [_by_example(call, place) for call, _, place in uses]
        for row in set().union(*by_use):
            total: Tensor | None = None
            for (_, shown, place), rows in zip(uses, by_use, strict=True):
                if row in rows:
                    part = shown.summed(*((rows[row], None) if place == 0 else (None, rows[row])))[place]
                    assert part is not None
                    total = part if total is None else total + part
            if total is not None:
                self.note(row, band, squared_norm(total))

    def _total(self) -> FloatArray:
        """Return each example's squared norm. Calls that the backward pass has not come to have nothing."""
        while self._shared:
            self._measure(self._shared.popitem()[1])
        total: FloatArray = self.squares.sum(axis=1)
        return total

    def shares(self, deepest: int) -> FloatArray:
        """Return one band's share for each example, float64 [count]; NaN where nothing was measured."""
        total = self._total()
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(total > 0.0, self.squares[:, deepest] / total, np.nan)

    def by_band(self) -> FloatArray:
        """Return the norm of each example's gradient in each band, float64 [count, bands]."""
        self._total()
        return np.sqrt(self.squares)

    def norms(self) -> FloatArray:
        """Return the norm of each example's gradient, float64 [count]; NaN where nothing was measured."""
        total = self._total()
        return np.where(total > 0.0, np.sqrt(total), np.nan)


def _by_example(call: Call, place: int) -> dict[int, Rows]:
    """Return the rows of each example that count for the weight (place 0) or the bias of a call."""
    rows = (call.weight, call.bias)[place]
    found: dict[int, Rows] = {}
    own = call.plan.examples_of(rows.chosen)
    for example in sorted(set(own.tolist())):
        if example >= 0:
            chosen = torch.zeros(rows.batch, dtype=torch.float64, device="cpu")
            chosen[rows.chosen[own == example]] = 1.0
            found[example] = Rows(chosen)
    return found
