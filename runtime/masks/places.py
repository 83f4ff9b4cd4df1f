"""What the fused engine answers for in a model: layers, pieces, blocks; and the parameters outside them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor, nn

from gradwarden.runtime.masks.bands import BandIndex
from gradwarden.runtime.masks.blocks import Block, find_blocks
from gradwarden.runtime.masks.pieces import Piece
from gradwarden.runtime.masks.sites import Quiet, Site, attach, detach, find_sites


class Answers(Protocol):
    """What runs a part of a model in place of its own forward."""

    quiet: Quiet

    def answer(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Run a layer."""

    def answer_piece(self, piece: Piece, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a module that is differentiated as a piece."""

    def answer_block(self, block: Block, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a block."""


class Places:
    """The places of one model where an engine stands in for its modules' forward.

    known: the layers whose gradients can be weighed; sites: those of them that are in no piece. loose: ids of
    the parameters that are used outside weighing layers and pieces, as far as seen. costs: of weighing each
    band, in parameters.
    """

    def __init__(self, model: nn.Module, bands: BandIndex) -> None:
        self.model, self.bands = model, bands
        self.known = tuple(find_sites(model, bands))
        self.blocks = tuple(find_blocks(model, self.known, bands))
        self.sites: tuple[Site, ...] = ()
        self.pieces: tuple[Piece, ...] = ()
        self.loose: frozenset[int] = frozenset()
        self.costs = [float(sum(p.numel() for p in members)) for members in bands.members]
        self._answers: Answers | None = None
        self._outside: list[tuple[Site, int]] = []

    def answer_by(self, answers: Answers) -> None:
        """Let blocks be run by `answers`, and layers and pieces from the next `cover` on."""
        self._answers = answers
        for block in self.blocks:
            attach(block, answers.answer_block, answers.quiet)

    def cover(self, pieces: Iterable[Piece]) -> None:
        """Differentiate these modules as pieces from here on; the layers in them are run as they are."""
        answers = self._answers
        assert answers is not None
        for place in self._covering():
            detach(place)
        self.pieces = tuple(pieces)
        inside = {id(module) for piece in self.pieces for module in piece.module.modules()}
        self.sites = tuple(site for site in self.known if id(site.module) not in inside)
        for site in self.sites:
            attach(site, answers.answer, answers.quiet)
        for piece in self.pieces:
            attach(piece, answers.answer_piece, answers.quiet)
        for block in self.blocks:
            within = {id(module) for module in block.module.modules()}
            for place in self._covering():
                if id(place.module) in within:
                    place.block = block
        self._outside = [
            (site, sum(p.numel() for p in site.module.parameters(recurse=False)))
            for site in self.sites
            if site.block is None and site.own
        ]
        # Loose parameters counted as used before everything. The next run shows what is.
        parts: list[Site | Piece | Block] = [*self.known, *self.pieces, *self.blocks]
        for part in parts:
            part.before = 0
        covered = {id(p) for place in self._covering() for p in place.parameters}
        self.loose = frozenset(key for key in self.bands.home if key not in covered)

    def fixed(self) -> set[int]:
        """Return the memory of parameters that nothing trains."""
        frozen = (p for p in self.model.parameters() if not p.requires_grad)
        return {p.untyped_storage()._cdata for p in frozen}

    def dearest_outside(self) -> int | None:
        """Return the band whose layers outside of blocks, but the first ones, have most parameters.

        Where blocks are scaled at their borders, these are what remains to be weighed. None where some block
        cannot be.
        """
        if not self.blocks or any(block.fault or block.changes or block.narrow for block in self.blocks):
            return None
        costs: dict[int, int] = {}
        for site, size in self._outside:
            if site.fed:
                costs[site.own] = costs.get(site.own, 0) + size
        dearest = max(costs, key=costs.__getitem__, default=0)
        return dearest.bit_length() - 1 if dearest.bit_count() == 1 else None

    def close(self) -> None:
        """Restore the model. Safe to repeat."""
        for place in (*self._covering(), *self.blocks):
            detach(place)

    def paths(self) -> dict[str, str]:
        """Return how each trainable parameter's gradient is taken, by name: see `Engine`."""
        general = {id(p) for piece in self.pieces if piece.rule is None for p in piece.parameters}
        trainable = (p for band in range(self.bands.count) for p in self.bands.trainable(band))
        return {
            self.bands.labels[id(p)]: "reference"
            if id(p) in self.loose
            else "general"
            if id(p) in general
            else "fast"
            for p in trainable
        }

    def _covering(self) -> list[Site | Piece]:
        """Return the layers and the pieces."""
        return [*self.sites, *self.pieces]
