"""The gradients of one armed batch: which are taken jointly, in one backward pass, and which apart.

Nothing is assumed: where a parameter is used outside of weighing layers (found by walking the graph of every
armed batch), its gradient is taken by the reference engine's rule unless its band's weights are the same for
all examples.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.masks.agreement import agreed_uses
from gradwarden.runtime.masks.batch import require_graph
from gradwarden.runtime.masks.call import Call
from gradwarden.runtime.masks.detaching import refuse_loose
from gradwarden.runtime.masks.forward import Forward
from gradwarden.runtime.masks.graph import Uses, collecting_later, narrows, uses
from gradwarden.runtime.masks.passes import Passes
from gradwarden.runtime.masks.places import Places
from gradwarden.runtime.masks.plan import Plan
from gradwarden.runtime.masks.row_check import RowCheck
from gradwarden.runtime.masks.sink import Gauge, Sink
from gradwarden.runtime.masks.split import by_class, show_each
from gradwarden.runtime.masks.transfer import send
from gradwarden.runtime.masks.trial import TrialError


class Differentiation:
    """Exact gradients of a model whose places run by `forward`."""

    def __init__(self, places: Places, forward: Forward, check: RowCheck, notes: list[str]) -> None:
        self.places, self.forward = places, forward
        self.bands = places.bands
        self._check = check
        self._notes = notes

    def plan(
        self,
        weights: Tensor,
        classes: Tensor | None = None,
        units: Tensor | None = None,
        gauge: Gauge | None = None,
    ) -> Plan:
        """Return the plan of a batch with weights float64 [B, bands]. classes, units, gauge: see `Plan`."""
        forward, top = self.forward, None
        if classes is None and units is None and gauge is None and forward.scales and not forward.collective:
            top = self.places.dearest_outside()
        plan = Plan.of(weights, self.places.costs, classes, units, top, forward.narrow)
        plan.gauge = gauge
        return plan

    def gradients(
        self,
        plan: Plan,
        losses: Tensor,
        normaliser: float,
        rows: Tensor,
        retain_graph: bool = False,
        passes: Passes | None = None,
        sink: Sink | None = None,
    ) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield gradients to be added up, for the chosen rows (bool [B]) of a batch run under a plan.

        What private examples shape goes to the sink, before or while those of the others are yielded.
        """
        wanted = {id(p): p for band in plan.due(rows) for p in self.bands.trainable(band)}
        if not wanted and sink is None:
            return
        if self.forward.detached and not losses.requires_grad and any(band.empty for band in plan.bands):
            return  # every way from the losses to an open band leads through a closed one
        require_graph(losses)
        passes = passes or Passes()
        if not passes.ready():
            return
        private = {id(p): p for band in plan.unit_bands for p in self.bands.trainable(band)}
        every = wanted | private if private else wanted
        apart, ratios, calls = self._apart(plan, losses, every, normaliser, passes)
        if sink is not None and not self._hands_over(plan, private, sink, apart | ratios.keys(), passes):
            with self.forward.replay(plan, raw=True):
                if passes.collective:
                    sink.differentiate_together(losses, passes.most, self.bands.current)
                else:
                    sink.differentiate(losses)
            private, sink = {}, None
        if sink is not None:
            sink.expect([call for call in calls if call.private])
        loose = apart | ratios.keys()
        apart &= wanted.keys()
        weights = plan.examples.public * rows[:, None] if loose else plan.examples.public
        if plan.gauge is not None and loose & wanted.keys():
            with self.forward.replay(plan, raw=True, only=frozenset(loose)):
                bands = self.bands.restricted(frozenset(loose))
                show_each(plan.gauge, losses, weights, bands, passes, plan.classes)
        every = wanted | private if private else wanted
        together = [p for key, p in every.items() if key not in apart] if apart else list(every.values())
        if apart:
            keep = retain_graph or bool(together)
            with self.forward.replay(plan, raw=True, only=apart):
                bands = self.bands.restricted(apart)
                yield from by_class(losses, weights, bands, normaliser, keep, passes, plan.classes)
        if together:
            factors = plan.examples.factors * rows / normaliser
            if sink is not None and plan.units is not None:
                factors = torch.where(plan.units >= 0, plan.factors, factors)
            if plan.gauge is not None:
                plan.gauge.expect(factors, calls, loose)
            factors = send(factors, losses.device, losses.dtype)
            with self.forward.replay(plan, skip=apart, sink=sink, gauge=plan.gauge):
                scales = dict.fromkeys(together, 1.0)
                scales.update((every[key], ratio) for key, ratio in ratios.items() if key in every)
                yield from passes.joint(losses, factors, scales, retain_graph)

    def _hands_over(
        self,
        plan: Plan,
        private: Mapping[int, nn.Parameter],
        sink: Sink,
        loose: Collection[int],
        passes: Passes,
    ) -> bool:
        """Return whether layers have all that private examples shape; loose: what others have as well.

        Where passes are collective, all processes go by what the private examples of any may shape.
        """
        shaped = set(private)
        if passes.collective:
            shaped = {id(p) for band in sink.bands for p in self.bands.trainable(band)}
        return plan.units is not None and not plan.mode.misplaced and not shaped & set(loose)

    def _apart(
        self,
        plan: Plan,
        losses: Tensor,
        wanted: dict[int, nn.Parameter],
        normaliser: float,
        passes: Passes,
    ) -> tuple[frozenset[int], dict[int, float], list[Call]]:
        """Return the parameters to differentiate apart, the common weight of the others, and the calls.

        A loose use (outside a weighing layer) is unweighted in the joint pass. That is right if all examples
        have one weight for the parameter's band, if weighing layers do not use it as well (unless that weight
        is 1), and if the use was known before the forward pass, so that layers kept the gradients it needs.
        Where rows are misplaced, everything is taken apart: without weights, layers are right about any row.
        """
        if plan.trivial:
            if plan.mode.scaling and not plan.mode.narrow and passes.most(narrows(losses)):
                self.forward.narrow = True
                return frozenset(wanted), {}, []
            return frozenset(), {}, []
        homes = {key: self.bands.home[key] for key in wanted}
        with collecting_later():
            found = uses(losses, homes, plan.plainly, self.forward.still, self.places.fixed)
        self._refuse_leaks(found)
        due = not self.forward.probing and self._check.due(plan, found)
        accord = agreed_uses(passes, found, list(wanted), due, self.bands)
        found = accord.found
        self.places.loose |= found.ordinary
        if self.forward.detached:
            refuse_loose(self.bands, found.ordinary)
        if found.crossed:
            self._refuse_scaling("gradients go past its arguments and results")
            return frozenset(wanted), {}, []
        if found.shared:
            for block in found.shared:
                block.shares = True
            return frozenset(wanted), {}, []
        if found.strained:
            self._refuse_scaling("some of them compute in float16, and did not when the model was probed")
        if found.strained or (found.narrow and not plan.mode.narrow):
            # What is taken apart is scaled by nothing on its way.
            self.forward.narrow = True
            return frozenset(wanted), {}, []
        if accord.due:
            self._check.confirm(plan, losses, accord, normaliser, passes)
        if plan.mode.misplaced:
            return frozenset(wanted), {}, []
        ratios: dict[int, float] = {}
        for key in (found.ordinary & plan.mode.loose) - found.amiss:
            ratio = plan.ratio(self.bands.home[key])
            if ratio is not None and (ratio == 1.0 or key not in found.weighing):
                ratios[key] = ratio
        calls = [node.call for node in found.calls if hasattr(node, "call")]
        return frozenset(found.ordinary - ratios.keys()), ratios, calls

    def _refuse_scaling(self, reason: str) -> None:
        """Scale no block from now on."""
        self.forward.scales = False
        self._notes.append(f"blocks are weighed layer by layer: {reason}")

    def _refuse_leaks(self, found: Uses) -> None:
        """Raise MaskError if the losses depend on a tensor that a piece has handed out beside its results.

        Beyond the inputs of the piece, which are cut off there, its gradient is lost.
        """
        leaks = {id(leaf) for leaf in found.leaves if self.forward.cut.get(id(leaf)) is leaf}
        if not leaks:
            return
        failure = TrialError if self.forward.probing else MaskError
        self.places.cover(())
        raise failure(
            "a module keeps a tensor from within its forward pass, and the losses depend on it",
            help="repeat the step: from now on no module is differentiated by itself",
        )
