"""The fast engine: exact masks in one backward pass.

Supported layers weigh the rows of their own weight gradients; input gradients stay exact. Nothing is assumed:
where a parameter is used in any other way (found by walking the graph of every armed batch), its gradient is
taken by the reference engine's rule unless its band's weights are the same for all examples; and that rows
belong to the examples they are credited to is checked again as training goes on (`ownership`). The plan of a
batch is bound to its forward pass, so that recomputed layers (activation checkpointing) find their own.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gradwarden.policy.program import Band
from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.masks.agreement import (
    Accord,
    agreed_failure,
    agreed_keys,
    agreed_uses,
    refuse_unlike_rows,
)
from gradwarden.runtime.masks.bands import index_bands
from gradwarden.runtime.masks.batch import (
    checked_losses,
    checked_normaliser,
    checked_owners,
    checked_weights,
    chosen_rows,
    require_graph,
)
from gradwarden.runtime.masks.blocks import (
    Block,
    Joined,
    UnlikePartsError,
    find_blocks,
    observe,
    run_in_parts,
    without_graph,
)
from gradwarden.runtime.masks.borders import (
    ChangedInPlaceError,
    Left,
    ScaledPlan,
    run_scaled,
    scalable,
    scaled,
)
from gradwarden.runtime.masks.call import Call
from gradwarden.runtime.masks.covering import LayerRules, notes_on, ruled_pieces
from gradwarden.runtime.masks.detaching import refuse_flow, refuse_loose, refuse_uncovered, run_severed
from gradwarden.runtime.masks.graph import Uses, uses
from gradwarden.runtime.masks.layout import Layout
from gradwarden.runtime.masks.mixing import refuse_mixing, suspects
from gradwarden.runtime.masks.ownership import Schedule, misplaced
from gradwarden.runtime.masks.packed_trial import PackedTrial, crossing
from gradwarden.runtime.masks.packing import learn_positions
from gradwarden.runtime.masks.passes import Passes
from gradwarden.runtime.masks.pieces import Piece, floating_outputs, run_piece
from gradwarden.runtime.masks.plan import Plan
from gradwarden.runtime.masks.planner import Choice, band_choices, choose, scaling
from gradwarden.runtime.masks.probe import Recorder, probe
from gradwarden.runtime.masks.rows import Rows
from gradwarden.runtime.masks.sites import Site, attach, detach, find_sites
from gradwarden.runtime.masks.split import SplitEngine, add_gradient, by_class
from gradwarden.runtime.masks.trial import Trial, TrialError, holds_batch
from gradwarden.runtime.masks.watch import Watch

_PACKED_CHECKED = 8
"""How many batches of packed sequences are checked before the checks become rarer."""


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
        self.bands = index_bands(model, bands)
        self._known = tuple(find_sites(model, self.bands))
        if detached:
            refuse_uncovered(self.bands, self._known, rules)
        self.sites: tuple[Site, ...] = ()
        self.pieces: tuple[Piece, ...] = ()
        self._cut: WeakValueDictionary[int, Tensor] = WeakValueDictionary()
        self._model = model
        self._declared = tuple(bands)
        self._strict = strict or detached
        self.detached = detached
        self._passes = passes or Passes()
        self._probed = self._probing = False
        self._dim = 0
        self._plain = False
        self._reference: SplitEngine | None = None
        self._pending: Plan | None = None
        self._last: Plan | None = None
        self._plan: Plan | None = None
        self._recorder: Recorder | None = None
        self._severed: frozenset[int] | None = None
        self._replaying = False
        self._reached = 0
        self._no_rows: dict[int, Rows] = {}
        self._schedule = Schedule()
        self._packed_schedule = Schedule(first=_PACKED_CHECKED)
        self._packed = False
        self._given_up: frozenset[int] = frozenset()
        self.blocks = tuple(find_blocks(model, self._known, self.bands))
        self._joined, self._left = Joined(), Left()
        self._costs = [float(sum(p.numel() for p in members)) for members in self.bands.members]
        self._choices: dict[str, Choice] = {}
        self._in_part = False
        self._scales = True
        for block in self.blocks:
            attach(block, self._answer_block)
        # What a module would be run apart for must be the same on all processes; there, layers are enough.
        self.cover(() if self._passes.collective else ruled_pieces(model, self.bands, rules or {}))
        self._passes.follow(self.bands)
        self._watch = Watch(model, self._before_forward, first=self._passes.collective)

    @property
    def name(self) -> str:
        """`fused`, or `split` after the probe has failed."""
        return "fused" if self._reference is None else "split"

    @property
    def paths(self) -> dict[str, str]:
        """How each trainable parameter's gradient is taken, by name: see `Engine`."""
        if self._reference is not None:
            return self._reference.paths
        general = {id(p) for piece in self.pieces if piece.rule is None for p in piece.parameters}
        trainable = (p for band in range(self.bands.count) for p in self.bands.trainable(band))
        return {
            self.bands.labels[id(p)]: "reference"
            if id(p) in self._loose
            else "general"
            if id(p) in general
            else "fast"
            for p in trainable
        }

    @property
    def model(self) -> nn.Module:
        """The model that the engine is attached to."""
        return self._model

    @property
    def loose(self) -> frozenset[int]:
        """The ids of the parameters that are used outside weighing layers and pieces, as far as seen."""
        return self._loose

    def cover(self, pieces: Iterable[Piece]) -> None:
        """Differentiate these modules as pieces from here on; the layers in them are run as they are."""
        for place in self._places():
            detach(place)
        self.pieces = tuple(pieces)
        inside = {id(module) for piece in self.pieces for module in piece.module.modules()}
        self.sites = tuple(site for site in self._known if id(site.module) not in inside)
        for site in self.sites:
            attach(site, self._answer)
        for piece in self.pieces:
            attach(piece, self._answer_piece)
        for block in self.blocks:
            within = {id(module) for module in block.module.modules()}
            for place in self._places():
                if id(place.module) in within:
                    place.block = block
        # Loose parameters counted as used before everything. The next run shows what is.
        parts: list[Site | Piece | Block] = [*self._known, *self.pieces, *self.blocks]
        for part in parts:
            part.before = 0
        covered = {id(p) for place in self._places() for p in place.parameters}
        self._loose = frozenset(key for key in self.bands.home if key not in covered)

    def _places(self) -> list[Site | Piece]:
        """Return the layers and the pieces whose forward the engine answers."""
        return [*self.sites, *self.pieces]

    @property
    def collective(self) -> bool:
        """Whether all processes run this model together and alike."""
        return self._passes.collective

    def arm(self, weights: Tensor, owners: Tensor | None = None, *, classes: Tensor | None = None) -> None:
        """Set the weights [B, bands] of the batch that the next forward pass will be given."""
        if self._reference is not None:
            self._reference.arm(weights, owners, classes=classes)
            return
        refuse_mixing(self._suspects)
        if self.detached and owners is not None:
            raise MaskError(
                "rows that belong to examples cannot be run under `semantics detach`",
                help="give the model one row for each example, in the order of their losses",
            )
        plan = self.plan(checked_weights(weights, self.bands.count), classes)
        self._pending = plan if owners is None else plan.spread(checked_owners(owners, plan.batch))

    def backward(
        self, losses: Tensor, normaliser: float, *, rows: Tensor | None = None, retain_graph: bool = False
    ) -> None:
        """Add the weighted gradients of losses [B] to the parameters' `.grad`."""
        if self._reference is not None:
            self._reference.backward(losses, normaliser, rows=rows, retain_graph=retain_graph)
            return
        plan = self._plan
        if plan is None:
            step = "the armed batch's forward pass" if self._pending is not None else "`arm`"
            raise MaskError(f"`backward` was called before {step}")
        checked_losses(losses, plan.examples.batch)
        chosen = chosen_rows(rows, plan.examples.batch)
        for parameter, gradient in self.gradients(
            plan, losses, checked_normaliser(normaliser), chosen, retain_graph, self._passes
        ):
            add_gradient(parameter, gradient)
        self._forget()
        if not retain_graph:
            self._plan = None

    def explain(self) -> tuple[Choice, ...]:
        """Return how each block, and each band outside of blocks, was run in the last armed forward pass."""
        if self._last is None:
            return ()
        inside = {id(p) for block in self.blocks for p in block.module.parameters()}
        outside = {self.bands.home[key] for key in self.bands.home if key not in inside}
        return (
            *self._choices.values(),
            *band_choices(self._last.examples, self.bands.names, sorted(outside)),
        )

    @contextmanager
    def unweighted(self) -> Iterator[None]:
        """Inside, plain autograd over the armed batch's graph gives unweighted gradients."""
        if self._plan is None:
            yield
        else:
            with self._replay(self._plan, raw=True):
                yield

    def disarm(self) -> None:
        """Forget the armed batch: forward passes are plain until the next `arm`."""
        self._plan = self._pending = None
        self._forget()
        if self._reference is not None:
            self._reference.disarm()

    def _forget(self) -> None:
        """Let go of what blocks have left for the next ones, and of the graphs that hang on it."""
        self._joined.clear()
        self._left.clear()

    def close(self) -> None:
        """Restore the model. Safe to repeat."""
        self.disarm()
        for place in self._places():
            detach(place)
        for block in self.blocks:
            detach(block)
        self._watch.remove()
        if self._reference is not None:
            self._reference.close()

    def plan(self, weights: Tensor, classes: Tensor | None = None) -> Plan:
        """Return the plan of a batch with weights float64 [B, bands]. classes: see `Plan`."""
        return Plan.of(weights, self._costs, classes)

    def gradients(
        self,
        plan: Plan,
        losses: Tensor,
        normaliser: float,
        rows: Tensor,
        retain_graph: bool = False,
        passes: Passes | None = None,
    ) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield gradients to be added up, for the chosen rows (bool [B]) of a batch run under a plan."""
        weights = plan.examples.weights * rows[:, None]
        wanted = {id(p): p for band in plan.due(rows) for p in self.bands.trainable(band)}
        if not wanted:
            return
        if self.detached and not losses.requires_grad and any(band.empty for band in plan.bands):
            return  # every way from the losses to an open band leads through a closed one
        require_graph(losses)
        passes = passes or Passes()
        if not passes.ready():
            return
        apart, ratios = self._apart(plan, losses, wanted, normaliser, passes)
        together = [parameter for key, parameter in wanted.items() if key not in apart]
        if apart:
            keep = retain_graph or bool(together)
            with self._replay(plan, raw=True, only=apart):
                bands = self.bands.restricted(apart)
                yield from by_class(losses, weights, bands, normaliser, keep, passes, plan.classes)
        if together:
            factors = (plan.examples.factors * rows / normaliser).to(device=losses.device, dtype=losses.dtype)
            with self._replay(plan, skip=apart):
                scales = {parameter: ratios.get(id(parameter), 1.0) for parameter in together}
                yield from passes.joint(losses, factors, scales, retain_graph)

    @contextmanager
    def recording(self, recorder: Recorder) -> Iterator[None]:
        """Inside, supported layers run as if no engine were attached, and `recorder` sees each call."""
        self._recorder, self._reached = recorder, 0
        try:
            yield
        finally:
            self._recorder = None

    @contextmanager
    def severing(self, bands: frozenset[int]) -> Iterator[None]:
        """Inside, layers run as if no engine were attached, those of some bands on detached inputs."""
        self._severed = bands
        try:
            yield
        finally:
            self._severed = None

    @contextmanager
    def weighing(self) -> Iterator[None]:
        """Inside, no block is scaled: every use of a parameter is that of a layer, or shows."""
        before, self._scales = self._scales, False
        try:
            yield
        finally:
            self._scales = before

    @contextmanager
    def following(self, plan: Plan) -> Iterator[None]:
        """Inside, forward passes follow a plan."""
        before = (self._plan, self._pending)
        self._begin(plan)
        try:
            yield
        finally:
            self._plan, self._pending = before

    def _apart(
        self,
        plan: Plan,
        losses: Tensor,
        wanted: dict[int, nn.Parameter],
        normaliser: float,
        passes: Passes,
    ) -> tuple[frozenset[int], dict[int, float]]:
        """Return the parameters to differentiate apart, and the common weight of those that need not be.

        A loose use (outside a weighing layer) is unweighted in the joint pass. That is right if all examples
        have one weight for the parameter's band, if weighing layers do not use it as well (unless that weight
        is 1), and if the use was known before the forward pass, so that layers kept the gradients it needs.
        Where rows are misplaced, everything is taken apart: without weights, layers are right about any row.
        """
        if plan.trivial:
            return frozenset(), {}
        found = uses(losses, {key: self.bands.home[key] for key in wanted})
        self._refuse_leaks(found)
        checks = plan.by_rows and not self._probing and not plan.mode.misplaced
        schedule = self._schedule if plan.grid is None else self._packed_schedule
        due = checks and schedule.due(plan.batch, found.moved, found.sign)
        accord = agreed_uses(passes, found, list(wanted), due, self.bands)
        found = accord.found
        self._loose |= found.ordinary
        if self.detached:
            refuse_loose(self.bands, found.ordinary)
        if found.crossed:
            self._refuse_scaling("gradients go past its arguments and results")
            return frozenset(wanted), {}
        if accord.due:
            self._confirm_rows(plan, losses, accord, normaliser, passes)
        if plan.mode.misplaced:
            return frozenset(wanted), {}
        ratios: dict[int, float] = {}
        for key in (found.ordinary & plan.mode.loose) - found.amiss:
            ratio = plan.ratio(self.bands.home[key])
            if ratio is not None and (ratio == 1.0 or key not in found.weighing):
                ratios[key] = ratio
        return frozenset(found.ordinary - ratios.keys()), ratios

    def _refuse_scaling(self, reason: str) -> None:
        """Scale no block from now on."""
        self._scales = False
        self.notes.append(f"blocks are weighed layer by layer: {reason}")

    def _refuse_leaks(self, found: Uses) -> None:
        """Raise MaskError if the losses depend on a tensor that a piece has handed out beside its results.

        Beyond the inputs of the piece, which are cut off there, its gradient is lost.
        """
        leaks = {id(leaf) for leaf in found.leaves if self._cut.get(id(leaf)) is leaf}
        if not leaks:
            return
        failure = TrialError if self._probing else MaskError
        self.cover(())
        raise failure(
            "a module keeps a tensor from within its forward pass, and the losses depend on it",
            help="repeat the step: from now on no module is differentiated by itself",
        )

    def _confirm_rows(
        self, plan: Plan, losses: Tensor, accord: Accord, normaliser: float, passes: Passes
    ) -> None:
        """Check that rows are those of their examples; layers that err are given up."""
        found = accord.found
        if not accord.alike:
            plan.mode.misplaced = True  # for this batch: processes that differ in their layers cannot check
            return
        with self._replay(plan, raw=True, only=frozenset(), open=True):
            wrong = misplaced(plan, losses, [*found.calls, *found.joins, *found.borders], normaliser, passes)
        keys = {key for node in wrong if hasattr(node, "call") for key in node.call.ids}
        first = [id(self.bands.used(site.parameters[0])) for site in self.sites]
        keys = agreed_keys(passes, keys, first)
        sites: list[Site | Piece] = [s for s, key in zip(self.sites, first, strict=True) if key in keys]
        sites += dict.fromkeys(node.run.piece for node in wrong if hasattr(node, "run"))
        blocks = [node.join.block for node in wrong if hasattr(node, "join")]
        blocks += [node.border.block for node in wrong if hasattr(node, "border")]
        if not sites and not blocks:
            return
        if plan.grid is not None:
            raise crossing("the loss of some example depends on positions of another one, or of nobody")
        odd = list(dict.fromkeys(place.name for place in (*sites, *blocks)))
        names = ", ".join(f"`{name}`" for name in odd[:3]) + (", …" if len(odd) > 3 else "")
        reason = (
            f"the rows of {names} are not where the probe has found them: the model moves rows by content"
        )
        for block in self.blocks:
            block.give_up(reason)
        if self._strict:
            raise MaskError(reason, help="use the engine `auto` or `split`")
        if found.joins:
            # What rows without a graph would have given cannot be had any more.
            raise MaskError(reason, help="repeat the step: from now on every row of every block has a graph")
        plan.mode.misplaced = True
        self._given_up |= {id(site) for site in sites}
        for site in sites:
            own = (id(p) for p in site.parameters if p is not None and id(p) in self.bands.home)
            self._loose |= self.bands.with_stand_ins(frozenset(own))
        self.notes.append(f"{reason}; their parameters take the reference path from here on")
        warnings.warn(f"gradwarden: {reason}; they take the slower reference path", stacklevel=2)

    def _before_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._replaying or self._reference is not None:
            return
        if self._pending is not None:
            refuse_unlike_rows(self._passes, self._pending.grid is not None)
            if self._pending.grid is not None:
                self._examine_packed(args, kwargs, self._pending)
            elif not self._probed:
                self._examine(args, kwargs, self._pending)
        plan = self._pending or self._plan
        if plan is None or self._reference is not None:
            return
        leaves = pytree.tree_leaves((args, kwargs))
        # Given several views of the batch at once, say, rows lie elsewhere than the probe has found them.
        self._plain = (
            self._probed
            and plan.grid is None
            and not any(holds_batch(leaf, self._dim, plan.batch) for leaf in leaves)
        )
        if self._pending is not None:
            self._begin(plan, any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves))

    def _begin(self, plan: Plan, whole_inputs: bool = False) -> None:
        """Bind a plan to the forward pass that starts now."""
        self._loose = self.bands.with_stand_ins(self._loose)
        plan.mode.whole_inputs, plan.mode.loose, plan.mode.given_up = (
            whole_inputs,
            self._loose,
            self._given_up,
        )
        self._reached = 0
        for key in self._loose:
            self._reached |= 1 << self.bands.home[key]
        self._plan, self._pending = plan, None
        self._choices, self._last = {}, plan
        self._forget()

    @contextmanager
    def _replay(
        self,
        plan: Plan,
        *,
        raw: bool = False,
        only: frozenset[int] | None = None,
        skip: frozenset[int] = frozenset(),
        open: bool = False,
    ) -> Iterator[None]:
        """Set what layers compute in a backward pass; layers recomputed in it do as they did before."""
        before = self._replaying
        plan.mode.raw, plan.mode.only, plan.mode.skip, plan.mode.open = raw, only, skip, open
        self._replaying = True
        try:
            yield
        finally:
            plan.mode.raw, plan.mode.only, plan.mode.skip, plan.mode.open = False, None, frozenset(), False
            self._replaying = before

    def _answer(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Run a supported layer: plainly, or under the plan of the present forward pass."""
        if self._recorder is not None:
            self._pass(site)
            output = site.stock(*args, **kwargs)
            self._recorder.see(site, output)
            return output
        if self._severed is not None:
            return run_severed(site, args, kwargs, self._home(site) in self._severed)
        if self._pending is not None and not self._replaying and torch.is_grad_enabled():
            self._begin(self._pending)
        plan = self._plan
        if plan is None:
            return site.stock(*args, **kwargs)
        if not self._replaying:
            self._pass(site)
        if not torch.is_grad_enabled() or plan.trivial:
            return site.stock(*args, **kwargs)
        if self._replaying and not self._in_part and site.block is not None:
            # Recomputed by a checkpoint within the block, which was given some of the rows.
            plan = plan.ways.get(site.block) or plan
        if not site.own & ~plan.plainly:
            return site.stock(*args, **kwargs)
        if len(args) != 1 or kwargs:
            return self._unweighed(plan, site, *args, **kwargs)
        return self._weighed(plan, site, args[0])

    def _answer_block(self, block: Block, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a block: in one piece, without a graph, or in two parts, as is cheapest under the plan."""
        if self._recorder is not None:
            block.before |= self._reached
            result, seen = observe(block, args, kwargs)
            self._recorder.see_block(block, seen)
            return result
        if self._severed is not None:
            return block.stock(*args, **kwargs)
        if self._pending is not None and not self._replaying and torch.is_grad_enabled():
            self._begin(self._pending)
        plan = self._plan
        if plan is None or self._in_part or not torch.is_grad_enabled() or plan.trivial:
            return block.stock(*args, **kwargs)
        if not self._replaying:
            block.before |= self._reached
        part = self._part(plan, block, args, kwargs)
        if part is plan:
            return block.stock(*args, **kwargs)
        if part is None:
            with without_graph():
                return block.stock(*args, **kwargs)
        outer = part.outer or part
        try:
            if outer is plan:
                return self._run_part(block, part, args, kwargs)
            return run_in_parts(
                block, outer, args, kwargs, lambda a, k: self._run_part(block, part, a, k), self._joined
            )
        except UnlikePartsError:
            block.give_up("its result does not look like those that the probe has seen")
            plan.ways[block] = plan
            return block.stock(*args, **kwargs)

    def _part(self, plan: Plan, block: Block, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan | None:
        """Return the plan of the rows that need a graph in a block, the whole plan, or None for no row.

        It is chosen at the block's first call in a batch and stays: layers that are recomputed inside it look
        it up again.
        """
        if self.collective:
            # In one piece on every process, or on none; rows without a graph would end it on this one alone.
            reached = plan.mode.whole_inputs or plan.any_reach(block.own | block.before)
            return plan if reached else None
        fault, cost = block.look_at(args, kwargs, plan.batch)
        if self._plain:
            fault = "the model is given the batch in several views"
        if plan.grid is not None:
            fault = "its rows hold several examples"
        if block not in plan.ways:
            mask = block.own | block.before
            chosen = plan if plan.grid is None else plan.examples
            choice = choose(block.name, chosen, block.own, mask, cost, fault)
            forced = self._probing and choice.way == "slice" and not fault and not plan.reach(mask).whole
            split = choice.way == "split" or forced
            way = None if choice.way == "stop" else plan.part(plan.reach(mask)) if split else plan
            if way is not None and way.reach(mask).whole and not fault and self._scales:
                way = (scaled(way, block.own, self._costs) if scalable(block, args, kwargs) else None) or way
            plan.ways[block] = way
            self._choices[block.name] = scaling(choice) if way is not None and way.plainly else choice
        elif fault and plan.ways[block] not in (None, plan):
            block.give_up(fault)
            raise MaskError(
                f"the block `{block.name}` is called with and without the batch in one step: {fault}",
                help="repeat the step: from now on the block is run in one piece",
            )
        return plan.ways[block]

    def _run_part(self, block: Block, part: Plan, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a block under the plan of the rows that it is given, within borders if they are scaled."""
        if not isinstance(part, ScaledPlan):
            return self._run_under(block, part, args, kwargs)
        if not self._replaying:
            # Within the block every gradient is needed, whichever of its layers is called first.
            self._reached |= block.own
        try:
            return run_scaled(
                block, part, args, kwargs, lambda a, k: self._run_under(block, part, a, k), self._left
            )
        except ChangedInPlaceError:
            block.give_up("it changes its arguments")
            raise MaskError(
                f"the block `{block.name}` has changed an argument in place, and did not when it was probed",
                help="repeat the step: from now on the block is run in one piece",
            ) from None

    def _run_under(self, block: Block, part: Plan, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before = self._plan
        self._plan, self._in_part = part, True
        try:
            return block.stock(*args, **kwargs)
        finally:
            self._plan, self._in_part = before, False

    def _answer_piece(self, piece: Piece, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a module that is differentiated as a piece: plainly, or by itself under the present plan."""
        if self._recorder is not None:
            self._pass(piece)
            result = piece.stock(*args, **kwargs)
            self._recorder.see_piece(piece, floating_outputs(result))
            return result
        if self._pending is not None and not self._replaying and torch.is_grad_enabled():
            self._begin(self._pending)
        plan = self._plan
        if plan is None:
            return piece.stock(*args, **kwargs)
        if not self._replaying:
            self._pass(piece)
        if not torch.is_grad_enabled() or plan.trivial or self._plain or id(piece) in plan.mode.given_up:
            return piece.stock(*args, **kwargs)
        if plan.grid is not None:  # its outputs were located by example; the parameters go the reference way
            return piece.stock(*args, **kwargs)
        if self._replaying and not self._in_part and piece.block is not None:
            plan = plan.ways.get(piece.block) or plan
        if not piece.own & ~plan.plainly:
            return piece.stock(*args, **kwargs)
        rows = {p: self._rows(plan, p) for p in piece.parameters}
        counting = {p: own for p, own in rows.items() if not own.empty}
        return run_piece(piece, plan, counting, args, kwargs, self._cut)

    def _pass(self, site: Site | Piece) -> None:
        site.before |= self._reached
        self._reached |= site.own

    def _weighed(self, plan: Plan, site: Site, x: Tensor) -> Tensor:
        weight, bias = site.parameters
        home = self._home(site) if self.detached else None
        if home is not None and plan.bands[home].empty:
            x = x.detach()
        weight_rows, bias_rows = self._rows(plan, weight), self._rows(plan, bias)
        if weight_rows.idle and bias_rows.idle and not x.requires_grad:
            with torch.no_grad():
                return site.stock(x)
        if self._plain or id(site) in plan.mode.given_up:
            return self._unweighed(plan, site, x)
        rank = x.dim() + site.operation.adds_rank
        if plan.grid is not None:
            place = site.positions.get(rank)
            if place is None or not place.fits(x.shape, plan.grid):
                return site.stock(x)
            flat = place.flatten(x, plan.grid)
            by_position = Layout(0, flat.dim() + site.operation.adds_rank)
            return place.restore(self._run(plan, site, flat, by_position, weight_rows, bias_rows), plan.grid)
        if rank in site.shared:
            lead = x.shape[1:] if x.dim() > 1 and x.shape[0] == 1 else x.shape
            x = x.expand(plan.batch, *lead)
            rank = x.dim() + site.operation.adds_rank
        layout = site.layouts.get(rank)
        if layout is None or not layout.fits(x.shape, plan.batch):
            return self._unweighed(plan, site, x)
        return self._run(plan, site, x, layout, weight_rows, bias_rows)

    def _run(
        self, plan: Plan, site: Site, x: Tensor, layout: Layout, weight_rows: Rows, bias_rows: Rows
    ) -> Tensor:
        """Run a layer whose rows are known."""
        weight, bias = site.parameters
        home = self._home(site) if self.detached else None
        reach, through = plan.reach(site.before), plan.every
        if home is not None:
            reach, through = plan.flow(home, site.before), plan.bands[home]
        call = Call(plan, layout, weight_rows, bias_rows, reach, through, (id(weight), id(bias)))
        return site.operation.run(
            site.module,
            call,
            x,
            weight.detach() if weight_rows.idle else weight,
            bias.detach() if bias is not None and bias_rows.idle else bias,
        )

    def _home(self, site: Site) -> int | None:
        """Return the band that a layer's weight is in."""
        return self.bands.home.get(id(site.parameters[0]))

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
        return plan.bands[self.bands.home[id(parameter)]]

    def _examine(self, args: tuple[Any, ...], kwargs: dict[str, Any], armed: Plan) -> None:
        """Probe the model with a few of the batch's examples; fall back or raise where the probe fails."""
        self._pending, self._probing = None, True
        failure: TrialError | None = None
        try:
            trial = self._passes.common(lambda: Trial(self._model, args, kwargs, armed.weights))
            # One example cannot be mixed with others. Until there are two, layers go the reference way.
            if trial is not None and trial.distinct > 1:
                self._probed = probe(self, trial)
                self._dim = trial.dim
        except TrialError as error:
            failure = error
        finally:
            self._pending, self._probing = armed, False
        failure = agreed_failure(self._passes, failure)
        if failure is not None:
            if self._strict:
                raise failure
            self._fall_back(failure.message, armed)
            return
        if self._probed:
            self.notes += notes_on(self.pieces)
        names = sorted(name for name, path in self.paths.items() if path == "reference")
        if self._probed and names:
            shown = ", ".join(f"`{name}`" for name in names[:3]) + (", …" if len(names) > 3 else "")
            self.notes.append(
                f"{len(names)} parameters are used outside supported layers and take the reference path "
                f"where their weights differ between examples: {shown}"
            )

    def _examine_packed(self, args: tuple[Any, ...], kwargs: dict[str, Any], armed: Plan) -> None:
        """Try the model on packed sequences once; layers whose positions are not found stay stock ones."""
        owners, count = armed.owners, armed.examples.batch
        if self._packed or owners is None:
            return
        self._pending, self._probing = None, True
        failure: TrialError | None = None
        try:
            trial = self._passes.common(lambda: PackedTrial(self._model, args, kwargs, owners, count))
            if trial is not None and trial.distinct > 1:
                learn_positions(self, trial)
                self._packed = True
        except TrialError as error:
            failure = error
        finally:
            self._pending, self._probing = armed, False
        failure = agreed_failure(self._passes, failure)
        if failure is None:
            return
        if self._strict:
            raise failure
        self._packed = True
        for site in self.sites:
            site.positions.clear()
        reason = f"packed sequences take the slower reference path: {failure.message}"
        self.notes.append(reason)
        warnings.warn(f"gradwarden: {reason}", stacklevel=2)

    def _fall_back(self, reason: str, armed: Plan) -> None:
        self.close()
        self.notes.append(f"the fused engine is not used: {reason}")
        warnings.warn(f"gradwarden: masks use the slower `split` engine: {reason}", stacklevel=2)
        self._reference = SplitEngine(self._model, self._declared, passes=self._passes)
        self._reference.arm(armed.examples.weights, armed.owners, classes=armed.classes)
