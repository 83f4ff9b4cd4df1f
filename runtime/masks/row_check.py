"""Checking, as training goes on, that rows belong to the examples that they are credited to.

Layers whose rows do not are given up: they go the reference way from the next batch on, and all parameters do
so in the batch at hand.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.masks.agreement import Accord, agreed_keys
from gradwarden.runtime.masks.blocks import Block
from gradwarden.runtime.masks.forward import Forward
from gradwarden.runtime.masks.graph import Uses
from gradwarden.runtime.masks.ownership import Schedule, misplaced
from gradwarden.runtime.masks.packed_trial import crossing
from gradwarden.runtime.masks.passes import Passes
from gradwarden.runtime.masks.pieces import Piece
from gradwarden.runtime.masks.places import Places
from gradwarden.runtime.masks.plan import Plan
from gradwarden.runtime.masks.sites import Site

_PACKED_CHECKED = 8
"""How many batches of packed sequences are checked before the checks become rarer."""


class RowCheck:
    """The check of one engine. strict: rows that are not where they should be raise MaskError."""

    def __init__(self, places: Places, forward: Forward, notes: list[str], *, strict: bool) -> None:
        self._places, self._forward = places, forward
        self._notes = notes
        self._strict = strict
        self._schedule = Schedule()
        self._packed_schedule = Schedule(first=_PACKED_CHECKED)

    def due(self, plan: Plan, found: Uses) -> bool:
        """Count a backward pass in which it matters whose rows are whose; return whether to check it."""
        if not plan.by_rows or plan.mode.misplaced:
            return False
        schedule = self._schedule if plan.grid is None else self._packed_schedule
        return schedule.due(plan.batch, found.moved, found.sign)

    def confirm(self, plan: Plan, losses: Tensor, accord: Accord, normaliser: float, passes: Passes) -> None:
        """Check that rows are those of their examples; layers that err are given up.

        Raises MaskError where the batch at hand cannot be saved, or the engine is strict.
        """
        found = accord.found
        if not accord.alike:
            plan.mode.misplaced = True  # for this batch: processes that differ in their layers cannot check
            return
        with self._forward.replay(plan, raw=True, only=frozenset(), open=True):
            nodes = [*found.calls, *found.joins, *found.borders]
            wrong = misplaced(plan, losses, nodes, normaliser, passes)
        layers = self._layers(wrong, passes)
        within = [node.border.block for node in wrong if hasattr(node, "border")]
        layers += dict.fromkeys(site for site in within if isinstance(site, Site))
        blocks = [node.join.block for node in wrong if hasattr(node, "join")]
        blocks += [block for block in within if isinstance(block, Block)]
        if not layers and not blocks:
            return
        if plan.grid is not None:
            raise crossing("the loss of some example depends on positions of another one, or of nobody")
        odd = list(dict.fromkeys(place.name for place in (*layers, *blocks)))
        names = ", ".join(f"`{name}`" for name in odd[:3]) + (", …" if len(odd) > 3 else "")
        reason = (
            f"the rows of {names} are not where the probe has found them: the model moves rows by content"
        )
        for block in self._places.blocks:
            block.give_up(reason)
        if self._strict:
            raise MaskError(reason, help="use the engine `auto` or `split`")
        if found.joins:
            # What rows without a graph would have given cannot be had any more.
            raise MaskError(reason, help="repeat the step: from now on every row of every block has a graph")
        plan.mode.misplaced = True
        self._give_up(layers, reason)

    def _layers(self, wrong: Sequence[Any], passes: Passes) -> list[Site | Piece]:
        """Return the layers and pieces of these nodes, and the layers that any other process found wrong."""
        sites = self._places.sites
        keys = {key for node in wrong if hasattr(node, "call") for key in node.call.ids}
        first = [id(self._places.bands.used(site.parameters[0])) for site in sites]
        keys = agreed_keys(passes, keys, first)
        layers: list[Site | Piece] = [site for site, key in zip(sites, first, strict=True) if key in keys]
        return [*layers, *dict.fromkeys(node.run.piece for node in wrong if hasattr(node, "run"))]

    def _give_up(self, layers: Sequence[Site | Piece], reason: str) -> None:
        bands = self._places.bands
        self._forward.given_up |= {id(layer) for layer in layers}
        for layer in layers:
            own = (id(p) for p in layer.parameters if p is not None and id(p) in bands.home)
            self._places.loose |= bands.with_stand_ins(frozenset(own))
        self._notes.append(f"{reason}; their parameters take the reference path from here on")
        warnings.warn(f"gradwarden: {reason}; they take the slower reference path", stacklevel=2)
