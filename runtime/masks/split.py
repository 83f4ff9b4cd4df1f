"""The reference engine: one backward pass for each distinct vector of weights.

Rows that share a weight vector differ from a plain batch by one factor per band, so the gradient of their
summed loss, times that factor, is what the definition asks for. Works for any architecture, because it asks
nothing of the model but a graph from the losses to its parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradwarden.policy.program import Band
from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.masks.agreement import refuse_unlike_rows
from gradwarden.runtime.masks.bands import BandIndex, index_bands
from gradwarden.runtime.masks.batch import (
    checked_losses,
    checked_normaliser,
    checked_owners,
    checked_weights,
    chosen_rows,
)
from gradwarden.runtime.masks.mixing import refuse_mixing, suspects
from gradwarden.runtime.masks.packed_trial import PackedTrial, refuse_crossing
from gradwarden.runtime.masks.passes import Passes, gradients_of
from gradwarden.runtime.masks.planner import Choice
from gradwarden.runtime.masks.sink import Gauge, Sink
from gradwarden.runtime.masks.transfer import send
from gradwarden.runtime.masks.trial import Trial, TrialError, refuse_dependence
from gradwarden.runtime.masks.unitwise import squared_norm
from gradwarden.runtime.masks.watch import Watch


class _Armed(NamedTuple):
    """A batch: see `Engine.arm`."""

    weights: Tensor
    owners: Tensor | None
    classes: Tensor | None
    gauge: Gauge | None

    @property
    def packed(self) -> bool:
        """Whether its rows hold several examples."""
        return self.owners is not None and self.owners.dim() == 2


class SplitEngine:
    """Exact masks by sub-batches of equal weights. See `Engine` for the protocol."""

    name = "split"

    def __init__(
        self,
        model: nn.Module,
        bands: Sequence[Band],
        *,
        examined: bool = False,
        passes: Passes | None = None,
    ) -> None:
        """examined: whether the model is already known not to mix examples."""
        self._suspects = suspects(model)
        refuse_mixing(self._suspects)
        self.notes: list[str] = []
        self._model = model
        self._bands = index_bands(model, bands)
        self._pending: _Armed | None = None
        self._captured: _Armed | None = None
        self._examined = {False} if examined else set[bool]()
        self._passes = passes or Passes()
        self._passes.follow(self._bands)
        self._watch = Watch(model, self._before_forward, first=self._passes.collective)

    @property
    def paths(self) -> dict[str, str]:
        """How each trainable parameter's gradient is taken, by name: always `reference`."""
        trainable = (p for band in range(self._bands.count) for p in self._bands.trainable(band))
        return {self._bands.labels[id(p)]: "reference" for p in trainable}

    def explain(self) -> tuple[Choice, ...]:
        """Return nothing: every example's graph is kept whole, and differentiated once per weight vector."""
        return ()

    def arm(
        self,
        weights: Tensor,
        owners: Tensor | None = None,
        *,
        classes: Tensor | None = None,
        units: Tensor | None = None,
        gauge: Gauge | None = None,
    ) -> None:
        """Set the weights [B, bands] of the batch that the next forward pass will be given."""
        refuse_mixing(self._suspects)
        weights = checked_weights(weights, self._bands.count)
        owners = None if owners is None else checked_owners(owners, len(weights))
        public = weights if units is None else weights * (units < 0)[:, None]
        self._pending = _Armed(public, owners, classes, gauge)

    def backward(
        self,
        losses: Tensor,
        normaliser: float,
        *,
        rows: Tensor | None = None,
        retain_graph: bool = False,
        sink: Sink | None = None,
    ) -> None:
        """Add the weighted gradients of losses [B] to the parameters' `.grad`."""
        armed = self._captured or self._pending
        if armed is None:
            raise MaskError("`backward` was called before `arm`")
        weights, _, classes, gauge = armed
        checked_losses(losses, len(weights))
        chosen = weights * chosen_rows(rows, len(weights))[:, None]
        divisor, passes = checked_normaliser(normaliser), self._passes
        if sink is not None and not passes.collective:
            sink.differentiate(losses)
        if passes.ready():
            if gauge is not None:
                show_each(gauge, losses, chosen, self._bands, passes, classes)
            if sink is not None and passes.collective:
                sink.differentiate_together(losses, passes.most, self._bands.current)
            for parameter, gradient in by_class(
                losses, chosen, self._bands, divisor, retain_graph, passes, classes
            ):
                add_gradient(parameter, gradient)
        if not retain_graph:
            self._captured = None

    @contextmanager
    def unweighted(self) -> Iterator[None]:
        """Inside, plain autograd over the armed batch's graph gives unweighted gradients (always so here)."""
        yield

    def disarm(self) -> None:
        """Forget the armed batch."""
        self._pending = self._captured = None

    def close(self) -> None:
        """Take the engine off the model."""
        self.disarm()
        self._watch.remove()

    def _before_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._pending is None:
            return
        self._examine(args, kwargs, self._pending)
        self._captured, self._pending = self._pending, None

    def _examine(self, args: tuple[Any, ...], kwargs: dict[str, Any], armed: _Armed) -> None:
        """Try once whether examples are independent, and once more where they are packed together."""
        refuse_unlike_rows(self._passes, armed.packed)
        if armed.packed in self._examined:
            return
        try:
            trial = self._passes.common(lambda: self._trial(args, kwargs, armed))
            if trial is None or trial.distinct < 2:
                return  # nothing to tell apart; a later batch will show
            if isinstance(trial, PackedTrial):
                refuse_crossing(trial)
            else:
                refuse_dependence(trial)
        except TrialError as failure:
            self.notes.append(f"whether examples are independent was not examined: {failure.message}")
        self._examined.add(armed.packed)

    def _trial(self, args: tuple[Any, ...], kwargs: dict[str, Any], armed: _Armed) -> Trial:
        weights, owners, _, _ = armed
        if owners is not None and armed.packed:
            return PackedTrial(self._model, args, kwargs, owners, len(weights))
        return Trial(self._model, args, kwargs, weights if owners is None else weights[owners])


def show_each(
    gauge: Gauge,
    losses: Tensor,
    weights: Tensor,
    bands: BandIndex,
    passes: Passes,
    classes: Tensor | None = None,
) -> None:
    """Tell a gauge of each example's gradient, in a backward pass of its own; the graph is kept.

    weights: [B, bands]; an example is measured in the bands where it has weight. Where passes are collective,
    each process makes as many as the one that has most examples, through the bands of `classes` [C, bands].
    """
    rows = weights.any(dim=1).nonzero().flatten().tolist()
    reached = weights if classes is None else classes
    members = [(band, p) for band in _reached(reached) for p in bands.trainable(band)]
    if not members:
        return
    for number in range(passes.most(len(rows))):
        row = rows[number] if number < len(rows) else None
        alone = torch.zeros_like(losses)
        own = members
        if row is not None:
            alone[row] = 1.0
            if not passes.collective:
                own = [(band, p) for band, p in members if weights[row, band] > 0]
        if not own:
            continue
        found = gradients_of(losses, alone, [p for _, p in own], retain_graph=True)
        for (band, _), gradient in zip(own, found, strict=True):
            if row is not None and gradient is not None and weights[row, band] > 0:
                gauge.note(row, band, squared_norm(gradient))


def _reached(weights: Tensor) -> list[int]:
    """Return the bands in which some row of weights [N, bands] is above 0."""
    return weights.gt(0).any(dim=0).nonzero().flatten().tolist()


def by_class(
    losses: Tensor,
    weights: Tensor,
    bands: BandIndex,
    normaliser: float,
    retain_graph: bool,
    passes: Passes,
    classes: Tensor | None = None,
) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Yield, for each distinct nonzero row of weights [B, bands], its rows' gradients times its weights.

    classes: [C, bands], the rows to go through, where other processes have more of them.
    """
    if classes is None:
        classes, member = torch.unique(weights, dim=0, return_inverse=True)
    else:
        hits = (weights[:, None] == classes).all(dim=2)
        member = torch.where(hits.any(dim=1), hits.to(torch.int8).argmax(dim=1), -1)
    wanted = [
        [p for band in range(bands.count) if row[band] > 0 for p in bands.trainable(band)] for row in classes
    ]
    active = [number for number, parameters in enumerate(wanted) if parameters]
    for number in active:
        chosen = send(member == number, losses.device, losses.dtype)
        keep = retain_graph or number != active[-1]
        row = classes[number].tolist()
        scales = {p: row[bands.home[id(p)]] / normaliser for p in wanted[number]}
        yield from passes.apart(losses, chosen, scales, keep)


def add_gradient(parameter: nn.Parameter, gradient: Tensor) -> None:
    """Add to a parameter's `.grad`, which stays None until something is added."""
    if parameter.grad is None:
        parameter.grad = gradient
    elif gradient.is_sparse:
        parameter.grad = parameter.grad + gradient
    else:
        parameter.grad.add_(gradient)
