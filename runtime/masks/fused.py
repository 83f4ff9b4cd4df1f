"""The fast engine: exact masks in one backward pass.

Supported layers weigh the rows of their own weight gradients; input gradients stay exact. The engine's parts
are what it answers for in a model (`places`), running that under the plan of a batch (`forward`), and taking
gradients (`differentiation`). Nothing is assumed of them: they are tried before they are trusted
(`examination`), and checked again as training goes on (`row_check`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gradwarden.policy.program import Band
from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.masks.agreement import refuse_unlike_rows
from gradwarden.runtime.masks.bands import index_bands
from gradwarden.runtime.masks.batch import (
    checked_losses,
    checked_normaliser,
    checked_owners,
    checked_weights,
    chosen_rows,
)
from gradwarden.runtime.masks.covering import LayerRules, ruled_pieces
from gradwarden.runtime.masks.detaching import refuse_uncovered
from gradwarden.runtime.masks.differentiation import Differentiation
from gradwarden.runtime.masks.examination import Examination
from gradwarden.runtime.masks.forward import Forward
from gradwarden.runtime.masks.mixing import refuse_mixing, suspects
from gradwarden.runtime.masks.narrow import autocast_narrows
from gradwarden.runtime.masks.passes import Passes
from gradwarden.runtime.masks.places import Places
from gradwarden.runtime.masks.plan import Plan
from gradwarden.runtime.masks.planner import Choice, band_choices
from gradwarden.runtime.masks.row_check import RowCheck
from gradwarden.runtime.masks.sink import Gauge, Sink
from gradwarden.runtime.masks.split import SplitEngine, add_gradient
from gradwarden.runtime.masks.trial import TrialError, holds_batch
from gradwarden.runtime.masks.watch import Watch


class FusedEngine:
    """Exact masks in one backward pass. See `Engine` for the protocol.

    strict: a failing probe raises MaskError; otherwise the engine becomes a `SplitEngine`, with a warning.
    detached: a weight of zero stops the flow through the band's layers as well (`detaching`); then strict.
    """

    def __init__(
        self,
        model: nn.Module,
        bands: Sequence[Band],
        *,
        strict: bool = False,
        detached: bool = False,
        passes: Passes | None = None,
        rules: LayerRules | None = None,
    ) -> None:
        self._suspects = suspects(model)
        refuse_mixing(self._suspects)
        self.notes: list[str] = []
        self._model, self._declared = model, tuple(bands)
        self._strict = strict or detached
        self._detached = detached
        self._passes = passes or Passes()
        self._reference: SplitEngine | None = None
        collective = self._passes.collective
        self._bands = index_bands(model, bands)
        self._places = Places(model, self._bands)
        if detached:
            refuse_uncovered(self._bands, self._places.known, rules)
        self._forward = Forward(self._places, detached=detached, collective=collective)
        check = RowCheck(self._places, self._forward, self.notes, strict=self._strict)
        self._gradients = Differentiation(self._places, self._forward, check, self.notes)
        self._examination = Examination(self._gradients, self._passes, self.notes, strict=self._strict)
        self._places.answer_by(self._forward)
        # What a module would be run apart for must be the same on all processes; there, layers are enough.
        self._places.cover(() if collective else ruled_pieces(model, self._bands, rules or {}))
        self._passes.follow(self._bands)
        self._watch = Watch(model, self._before_forward, first=collective)

    @property
    def name(self) -> str:
        """`fused`, or `split` after the probe has failed."""
        return "fused" if self._reference is None else "split"

    @property
    def paths(self) -> dict[str, str]:
        """How each trainable parameter's gradient is taken, by name: see `Engine`."""
        return self._places.paths() if self._reference is None else self._reference.paths

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
        if self._reference is not None:
            self._reference.arm(weights, owners, classes=classes, units=units, gauge=gauge)
            return
        refuse_mixing(self._suspects)
        if self._detached and owners is not None:
            raise MaskError(
                "rows that belong to examples cannot be run under `semantics detach`",
                help="give the model one row for each example, in the order of their losses",
            )
        if self._detached or owners is not None:
            units = None  # the gradients of units then come from plain autograd
        plan = self._gradients.plan(checked_weights(weights, self._bands.count), classes, units, gauge)
        self._forward.pending = plan if owners is None else plan.spread(checked_owners(owners, plan.batch))

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
        if self._reference is not None:
            self._reference.backward(losses, normaliser, rows=rows, retain_graph=retain_graph, sink=sink)
            return
        plan = self._forward.plan
        if plan is None:
            step = "the armed batch's forward pass" if self._forward.pending is not None else "`arm`"
            raise MaskError(f"`backward` was called before {step}")
        checked_losses(losses, plan.examples.batch)
        chosen = chosen_rows(rows, plan.examples.batch)
        for parameter, gradient in self._gradients.gradients(
            plan, losses, checked_normaliser(normaliser), chosen, retain_graph, self._passes, sink
        ):
            add_gradient(parameter, gradient)
        self._forward.let_go()
        if not retain_graph:
            self._forward.plan = None
            plan.let_go()

    def explain(self) -> tuple[Choice, ...]:
        """Return how each block, and each band outside of blocks, was run in the last armed forward pass."""
        if self._forward.last is None:
            return ()
        inside = {id(p) for block in self._places.blocks for p in block.module.parameters()}
        outside = {self._bands.home[key] for key in self._bands.home if key not in inside}
        return (
            *self._forward.choices.values(),
            *band_choices(self._forward.last.examples, self._bands.names, sorted(outside)),
        )

    @contextmanager
    def unweighted(self) -> Iterator[None]:
        """Inside, plain autograd over the armed batch's graph gives unweighted gradients."""
        if self._forward.plan is None:
            yield
        else:
            with self._forward.replay(self._forward.plan, raw=True):
                yield

    def disarm(self) -> None:
        """Forget the armed batch: forward passes are plain until the next `arm`."""
        self._forward.forget()
        if self._reference is not None:
            self._reference.disarm()

    def close(self) -> None:
        """Restore the model. Safe to repeat."""
        self.disarm()
        self._places.close()
        self._watch.remove()
        if self._reference is not None:
            self._reference.close()

    def _before_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        forward = self._forward
        if forward.replaying or self._reference is not None:
            return
        if forward.pending is not None:
            self._examine(args, kwargs, forward.pending)
        if forward.pending is not None and not forward.pending.mode.narrow:
            forward.narrow = forward.narrow or autocast_narrows()
            if forward.narrow:
                self._arm_again(self, forward.pending)
        plan = forward.pending or forward.plan
        if plan is None or self._reference is not None:
            return
        leaves = pytree.tree_leaves((args, kwargs))
        # Given several views of the batch at once, say, rows lie elsewhere than the probe has found them.
        forward.plain = (
            self._examination.probed
            and plan.grid is None
            and not any(holds_batch(leaf, self._examination.dim, plan.batch) for leaf in leaves)
        )
        if forward.pending is not None:
            forward.begin(plan, any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves))

    def _examine(self, args: tuple[Any, ...], kwargs: dict[str, Any], armed: Plan) -> None:
        """Try the model on the batch at hand if it was not tried on one of this kind; fall back or raise."""
        refuse_unlike_rows(self._passes, armed.grid is not None)
        if armed.grid is not None:
            self._examination.examine_packed(args, kwargs, armed)
        elif not self._examination.probed:
            try:
                self._examination.examine(args, kwargs, armed)
            except TrialError as failure:
                if self._strict:
                    raise
                self._fall_back(failure.message, armed)

    def _fall_back(self, reason: str, armed: Plan) -> None:
        self.close()
        self.notes.append(f"the fused engine is not used: {reason}")
        warnings.warn(f"gradwarden: masks use the slower `split` engine: {reason}", stacklevel=2)
        self._reference = SplitEngine(self._model, self._declared, passes=self._passes)
        self._arm_again(self._reference, armed)

    @staticmethod
    def _arm_again(engine: FusedEngine | SplitEngine, armed: Plan) -> None:
        """Arm an engine with the batch of a plan."""
        examples = armed.examples
        engine.arm(
            examples.weights,
            armed.owners,
            classes=armed.classes,
            units=examples.units,
            gauge=examples.gauge,
        )
