"""Running the parts of a model that the fused engine answers for.

Layers, blocks and pieces are run plainly, or under the plan of the present forward pass. The plan is bound to
that pass, so that layers recomputed in the backward pass (activation checkpointing) find their own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.masks.bands import bands_in
from gradwarden.runtime.masks.blocks import Block, Given, observe, unflatten_call
from gradwarden.runtime.masks.borders import (
    ChangedInPlaceError,
    Left,
    ScaledPlan,
    run_first,
    run_scaled,
    scalable,
    scaled,
)
from gradwarden.runtime.masks.call import NO_OPTIONS, Call
from gradwarden.runtime.masks.detaching import refuse_flow, run_severed
from gradwarden.runtime.masks.layout import Layout
from gradwarden.runtime.masks.parts import Joined, UnlikePartsError, frozen, run_in_parts, without_graph
from gradwarden.runtime.masks.pieces import Piece, floating_outputs, run_piece
from gradwarden.runtime.masks.places import Places
from gradwarden.runtime.masks.plan import Plan
from gradwarden.runtime.masks.planner import Choice, choose, everybody, scaling
from gradwarden.runtime.masks.present import Present
from gradwarden.runtime.masks.rows import Rows
from gradwarden.runtime.masks.sink import Gauge, Sink
from gradwarden.runtime.masks.sites import Site

_NO_HOMES = (None, None)


class Forward(Present):
    """How a model's layers, blocks and pieces are run now.

    detached: whether a weight of zero stops the flow through a band's layers. collective: whether processes
    run the model together. last: the plan of the last armed forward pass, to be explained. choices: how its
    blocks were run. plain: whether layers are run as they are, because rows lie elsewhere in this pass.
    probing: whether the model is being tried. replaying: whether a backward pass is running, in which layers
    may be recomputed. scales: whether blocks may be scaled at their borders. freezing: whether rows that may
    not shape a block go through it with its parameters frozen; None: where that pays. given_up: ids of the
    layers that go the reference way. narrow: whether some part of the model has been seen to compute in a
    precision of narrow range. cut: the tensors that pieces have cut out of the graph. still: nodes of the
    graph at hand in which layers with a frozen weight have ended.
    """

    def __init__(self, places: Places, *, detached: bool, collective: bool) -> None:
        super().__init__()
        self._places = places
        self.detached = detached
        self.collective = collective
        self.last: Plan | None = None
        self.choices: dict[str, Choice] = {}
        self.plain = self.probing = self.replaying = False
        self.given_up: frozenset[int] = frozenset()
        self.scales = True
        self.narrow = False
        self.freezing: bool | None = None
        self.cut: WeakValueDictionary[int, Tensor] = WeakValueDictionary()
        self.still: set[Any] = set()
        self._joined, self._left = Joined(), Left()
        self._in_part = False
        self._no_rows: dict[int, Rows] = {}

    def forget(self) -> None:
        """Forget the armed batch."""
        self.plan = self.pending = None
        self.let_go()

    def let_go(self) -> None:
        """Let go of what blocks have left for the next ones, and of the graphs that hang on it."""
        self.still.clear()
        self._joined.clear()
        self._left.clear()

    @contextmanager
    def weighing(self) -> Iterator[None]:
        """Inside, no block is scaled: every use of a parameter is that of a layer, or shows."""
        before, self.scales = self.scales, False
        try:
            yield
        finally:
            self.scales = before

    @contextmanager
    def following(self, plan: Plan, freezing: bool = False) -> Iterator[None]:
        """Inside, forward passes follow a plan. freezing: whether blocks are frozen wherever they can be."""
        before = (self.plan, self.pending)
        self.begin(plan)
        self.freezing = freezing
        try:
            yield
        finally:
            self.plan, self.pending = before
            self.freezing = None

    def begin(self, plan: Plan, whole_inputs: bool = False) -> None:
        """Bind a plan to the forward pass that starts now."""
        places, mode = self._places, plan.mode
        places.loose = places.bands.with_stand_ins(places.loose)
        mode.whole_inputs, mode.loose, mode.given_up = whole_inputs, places.loose, self.given_up
        self._reached = 0
        for key in places.loose:
            self._reached |= 1 << places.bands.home[key]
        self.plan, self.pending = plan, None
        self.choices, self.last = {}, plan
        self.let_go()

    @contextmanager
    def replay(
        self,
        plan: Plan,
        *,
        raw: bool = False,
        only: frozenset[int] | None = None,
        skip: frozenset[int] = frozenset(),
        open: bool = False,
        sink: Sink | None = None,
        gauge: Gauge | None = None,
    ) -> Iterator[None]:
        """Set what layers compute in a backward pass; layers recomputed in it do as they did before."""
        before = self.replaying
        plan.mode.raw, plan.mode.only, plan.mode.skip, plan.mode.open = raw, only, skip, open
        plan.mode.sink, plan.mode.gauge = sink, gauge
        self.replaying = True
        try:
            yield
        finally:
            plan.mode.raw, plan.mode.only, plan.mode.skip, plan.mode.open = False, None, frozenset(), False
            plan.mode.sink = plan.mode.gauge = None
            self.replaying = before

    def answer(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Run a supported layer: plainly, or under the plan of the present forward pass."""
        if self._recorder is not None:
            self._pass(site)
            site.fed = site.fed or any(isinstance(x, Tensor) and x.requires_grad for x in args)
            output = site.stock(*args, **kwargs)
            self._recorder.see(site, output)
            return output
        if self._severed is not None:
            return run_severed(site, args, kwargs, self._home(site) in self._severed)
        if self._pending is not None and not self.replaying and torch.is_grad_enabled():
            self.begin(self._pending)
        plan = self._plan
        if plan is None:
            return site.stock(*args, **kwargs)
        if not self.replaying:
            self._pass(site)
        if not torch.is_grad_enabled() or plan.trivial:
            return site.stock(*args, **kwargs)
        if self.replaying and not self._in_part and site.block is not None:
            plan = self._recomputed(plan, site.block)
        if not site.own & ~plan.plainly:
            output = site.stock(*args, **kwargs)
            if not (self.replaying or site.parameters[0].requires_grad):
                self.still.add(output.grad_fn)
            return output
        if len(args) != 1 or kwargs:
            return self._unweighed(plan, site, *args, **kwargs)
        if plan.even and self.scales and not args[0].requires_grad and site.block is None:
            first = self._run_first(plan, site, args[0])
            if first is not None:
                return first
        return self._weighed(plan, site, args[0])

    def answer_block(self, block: Block, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a block: in one piece, without a graph, or in two parts, as is cheapest under the plan."""
        if self._recorder is not None:
            block.before |= self._reached
            result, seen = observe(block, args, kwargs)
            self._recorder.see_block(block, seen)
            return result
        if self._severed is not None:
            return block.stock(*args, **kwargs)
        if self._pending is not None and not self.replaying and torch.is_grad_enabled():
            self.begin(self._pending)
        plan = self._plan
        if plan is None or self._in_part or not torch.is_grad_enabled() or plan.trivial:
            return block.stock(*args, **kwargs)
        if not self.replaying:
            block.before |= self._reached
        if self.collective:
            # In one piece on every process, or on none; rows without a graph would end it on this one alone.
            reached = plan.mode.whole_inputs or plan.any_reach(block.own | block.before)
            with nullcontext() if reached else without_graph():
                return block.stock(*args, **kwargs)
        given = block.given(args, kwargs, plan.batch)
        part = self._part(plan, block, given)
        if part is plan:
            return block.stock(*args, **kwargs)
        if part is None:
            with without_graph():
                return block.stock(*args, **kwargs)
        outer = part.outer or part
        try:
            if outer is plan:
                return self._run_part(block, part, args, kwargs, given)
            runs = [
                lambda own: self._run_part(block, part, *unflatten_call(own.leaves, own.spec), own),
                lambda own: self._run_frozen(block, *unflatten_call(own.leaves, own.spec)),
                lambda own: self._run_quiet(block, *unflatten_call(own.leaves, own.spec)),
            ]
            partition = part.partition or plan.divide(outer.rows, outer.rows)
            return run_in_parts(block, partition, given, runs, self._joined)
        except UnlikePartsError:
            block.give_up("its result does not look like those that the probe has seen")
            plan.ways[block] = plan
            return block.stock(*args, **kwargs)

    def _part(self, plan: Plan, block: Block, given: Given) -> Plan | None:
        """Return the plan of the rows that need a graph in a block, the whole plan, or None for no row.

        It is chosen at the block's first call in a batch and stays: layers that are recomputed inside it look
        it up again.
        """
        fault = given.fault
        if self.plain:
            fault = "the model is given the batch in several views"
        if plan.grid is not None:
            fault = "its rows hold several examples"
        if block not in plan.ways:
            # What a unit shapes is taken from layers, which must see the gradients that are its
            # own; so must a gauge, which looks at layers.
            shaped = not plan.unit_bands.isdisjoint(bands_in(block.own))
            by_layer = shaped or plan.whole.gauge is not None
            even = not (by_layer or fault) and self.scales and scalable(block, given)
            plan.ways[block] = self._choose(plan, block, given, fault, even)
        elif fault and plan.ways[block] not in (None, plan):
            block.give_up(fault)
            raise MaskError(
                f"the block `{block.name}` is called with and without the batch in one step: {fault}",
                help="repeat the step: from now on the block is run in one piece",
            )
        return plan.ways[block]

    def _choose(self, plan: Plan, block: Block, given: Given, fault: str, even: bool) -> Plan | None:
        """Return what `_part` returns, by cost. even: whether a block can be run plainly between borders."""
        costs = self._places.costs
        if block.own and plan.even:
            within = scaled(plan, block.own, costs) if even else None
            self.choices[block.name] = everybody(block.name, plan.batch, within is not None, fault)
            return within or plan
        mask, cost = block.own | block.before, given.cost(block)
        chosen, reach = plan if plan.grid is None else plan.examples, plan.reach(mask)
        opened = self._open(plan, block, reach) if even else None
        if opened is not None and self.freezing:
            cost = replace(cost, size=sys.maxsize)
        choice = choose(block.name, chosen, block.own, mask, cost, fault, opened is not None)
        way: Plan | None = None
        if opened is not None and choice.way == "freeze":
            way = scaled(plan.part(opened), block.own, costs)
            if way is not None:
                way.partition = plan.divide(opened, reach)
            else:
                choice = choose(block.name, chosen, block.own, mask, cost, fault)
        if way is None and choice.way != "stop":
            forced = self.probing and choice.way == "slice" and not fault and not reach.whole
            way = plan.part(reach) if choice.way == "split" or forced else plan
            if even and way.reach(mask).whole:
                way = scaled(way, block.own, costs) or way
        self.choices[block.name] = scaling(choice) if isinstance(way, ScaledPlan) else choice
        return way

    def _open(self, plan: Plan, block: Block, reach: Rows) -> Rows | None:
        """Return the rows that may shape a block, where the others could go through it frozen.

        reach: those that may shape it or what is before it.
        """
        if self.freezing is False or self.detached or block.recomputed or plan.whole.examples is not plan:
            return None
        rows = plan.shapers(block.own)
        return None if rows is None or rows.empty or rows.count >= reach.count else rows

    def _run_part(
        self, block: Block, part: Plan, args: tuple[Any, ...], kwargs: dict[str, Any], given: Given
    ) -> Any:
        """Run a block under the plan of the rows that it is given, within borders if they are scaled."""
        if not isinstance(part, ScaledPlan):
            return self._run_under(block, part, args, kwargs)
        if not self.replaying:
            # Within the block every gradient is needed, whichever of its layers is called first.
            self._reached |= block.own
        try:
            return run_scaled(block, part, given, partial(self._run_under, block, part), self._left)
        except ChangedInPlaceError:
            block.give_up("it changes its arguments")
            raise MaskError(
                f"the block `{block.name}` has changed an argument in place, and did not when it was probed",
                help="repeat the step: from now on the block is run in one piece",
            ) from None

    def _run_under(self, block: Block, part: Plan, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before, quiet = self._plan, self.quiet.now
        self._plan, self._in_part = part, True
        # Scaled at its border, and in one band: nothing within the block needs an answer, but frozen layers.
        plainly = part.plainly != 0 and not block.own & ~part.plainly
        self.quiet.now = plainly and all(parameter.requires_grad for parameter in block.parameters)
        try:
            return block.stock(*args, **kwargs)
        finally:
            self._plan, self._in_part, self.quiet.now = before, False, quiet

    def _run_frozen(self, block: Block, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a block with its parameters frozen, on rows that may not shape it."""
        with frozen(block):
            return self._run_quiet(block, args, kwargs)

    def _run_quiet(self, block: Block, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a block as its modules would by themselves."""
        in_part, quiet = self._in_part, self.quiet.now
        self._in_part = self.quiet.now = True
        try:
            return block.stock(*args, **kwargs)
        finally:
            self._in_part, self.quiet.now = in_part, quiet

    def answer_piece(self, piece: Piece, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a module that is differentiated as a piece: plainly, or by itself under the present plan."""
        if self._recorder is not None:
            self._pass(piece)
            result = piece.stock(*args, **kwargs)
            self._recorder.see_piece(piece, floating_outputs(result))
            return result
        if self.pending is not None and not self.replaying and torch.is_grad_enabled():
            self.begin(self.pending)
        plan = self.plan
        if plan is None:
            return piece.stock(*args, **kwargs)
        if not self.replaying:
            self._pass(piece)
        if not torch.is_grad_enabled() or plan.trivial or self.plain or id(piece) in plan.mode.given_up:
            return piece.stock(*args, **kwargs)
        if plan.grid is not None:  # its outputs were located by example; the parameters go the reference way
            return piece.stock(*args, **kwargs)
        if any(self._unit_home(plan, p) is not None for p in piece.parameters):
            return piece.stock(*args, **kwargs)  # a unit's gradients are then taken by plain autograd
        if self.replaying and not self._in_part and piece.block is not None:
            plan = self._recomputed(plan, piece.block)
        if not piece.own & ~plan.plainly:
            return piece.stock(*args, **kwargs)
        rows = {p: self._rows(plan, p) for p in piece.parameters}
        counting = {p: own for p, own in rows.items() if not own.empty}
        homes = [self._band(p) for p in counting] if plan.whole.gauge is not None else ()
        return run_piece(piece, plan, counting, args, kwargs, self.cut, homes)

    def _recomputed(self, plan: Plan, block: Block) -> Plan:
        """Return the plan of what is recomputed within a block, which may have been given some rows only."""
        block.recomputed = True
        part = plan.ways.get(block) or plan
        if part.partition is None:
            return part
        raise MaskError(
            f"layers of the block `{block.name}` are recomputed, and were not when it was probed",
            help="repeat the step: from now on no row goes through the block with its parameters frozen",
        )

    def _pass(self, site: Site | Piece) -> None:
        site.before |= self._reached
        self._reached |= site.own

    def _run_first(self, plan: Plan, site: Site, x: Tensor) -> Tensor | None:
        """Run a layer before which nothing is differentiated with a border behind it.

        Returns None where it must weigh rows itself.
        """
        if self.plain or self.collective or id(site) in plan.mode.given_up:
            return None
        x = self._for_each(plan, site, x)
        layout = site.layouts.get(x.dim() + site.operation.adds_rank)
        if layout is None or not layout.fits(x.shape, plan.batch):
            return None
        return run_first(site, plan, x, layout, self._left)

    def _for_each(self, plan: Plan, site: Site, x: Tensor) -> Tensor:
        """Return indices that are looked up once for the batch once for each example; others as they are."""
        if x.dim() + site.operation.adds_rank not in site.shared:
            return x
        lead = x.shape[1:] if x.dim() > 1 and x.shape[0] == 1 else x.shape
        return x.expand(plan.batch, *lead)

    def _weighed(self, plan: Plan, site: Site, x: Tensor) -> Tensor:
        weight, bias = site.parameters
        home = self._home(site) if self.detached else None
        if home is not None and plan.bands[home].empty:
            x = x.detach()
        weight_rows, bias_rows = self._rows(plan, weight), self._rows(plan, bias)
        homes = (self._unit_home(plan, weight), self._unit_home(plan, bias)) if plan.unit_bands else _NO_HOMES
        if weight_rows.idle and bias_rows.idle and homes == _NO_HOMES and not x.requires_grad:
            with torch.no_grad():
                return site.stock(x)
        if self.plain or id(site) in plan.mode.given_up:
            return self._unweighed(plan, site, x)
        rank = x.dim() + site.operation.adds_rank
        place = None
        if plan.grid is not None:
            place = site.positions.get(rank)
            if place is None or not place.fits(x.shape, plan.grid):
                return site.stock(x)
            x = place.flatten(x, plan.grid)
            layout: Layout | None = Layout(0, x.dim() + site.operation.adds_rank)
        else:
            if rank in site.shared:
                x = self._for_each(plan, site, x)
                rank = x.dim() + site.operation.adds_rank
            layout = site.layouts.get(rank)
        if layout is None or not (place or layout.fits(x.shape, plan.batch)):
            return self._unweighed(plan, site, x)
        reach, through = plan.reach(site.before), plan.every
        if home is not None:
            reach, through = plan.flow(home, site.before), plan.bands[home]
        ids = (id(weight), id(bias))
        bands = _NO_HOMES if plan.whole.gauge is None else (self._band(weight), self._band(bias))
        call = Call(plan, layout, weight_rows, bias_rows, reach, through, ids, homes, bands, NO_OPTIONS)
        result = site.operation.run(
            site.module,
            call,
            x,
            weight.detach() if weight_rows.idle and homes[0] is None else weight,
            bias.detach() if bias is not None and bias_rows.idle and homes[1] is None else bias,
        )
        return result if place is None or plan.grid is None else place.restore(result, plan.grid)

    def _unit_home(self, plan: Plan, parameter: nn.Parameter | None) -> int | None:
        """Return the band of a parameter that private examples may shape, None for others."""
        if not plan.unit_bands or parameter is None or not parameter.requires_grad:
            return None
        band = self._places.bands.home[id(parameter)]
        return band if band in plan.unit_bands else None

    def _band(self, parameter: nn.Parameter | None) -> int | None:
        """Return the band of a parameter, None where it is absent."""
        return None if parameter is None else self._places.bands.home.get(id(parameter))

    def _home(self, site: Site) -> int | None:
        """Return the band that a layer's weight is in."""
        return self._places.bands.home.get(id(site.parameters[0]))

    def _unweighed(self, plan: Plan, site: Site, *args: Any, **kwargs: Any) -> Tensor:
        """Run a layer as its class defines it: nothing stops what flows through it."""
        home = self._home(site)
        if self.detached and home is not None and not plan.bands[home].whole:
            refuse_flow(site, args, kwargs)
        return site.stock(*args, **kwargs)

    def _rows(self, plan: Plan, parameter: nn.Parameter | None) -> Rows:
        """Return the rows that count for a parameter: none where it is absent or frozen."""
        if parameter is None or not parameter.requires_grad:
            if plan.batch not in self._no_rows:
                self._no_rows[plan.batch] = Rows(torch.zeros(plan.batch, dtype=torch.float64, device="cpu"))
            return self._no_rows[plan.batch]
        return plan.bands[self._places.bands.home[id(parameter)]]
