"""What the parts of a model did in one forward pass that was watched."""

from __future__ import annotations

from torch import Tensor

from gradwarden.runtime.masks.blocks import Block, Seen
from gradwarden.runtime.masks.pieces import Piece
from gradwarden.runtime.masks.sites import Site


class Recorder:
    """What every supported layer and every block did in one forward pass, in the order of calls."""

    def __init__(self) -> None:
        self.outputs: dict[Site, list[Tensor]] = {}
        self.blocks: dict[Block, list[Seen]] = {}
        self.pieces: dict[Piece, list[list[Tensor]]] = {}

    def see(self, site: Site, output: Tensor) -> None:
        """Keep the output of one call."""
        self.outputs.setdefault(site, []).append(output)

    def see_block(self, block: Block, call: Seen) -> None:
        """Keep one call of a block."""
        self.blocks.setdefault(block, []).append(call)

    def see_piece(self, piece: Piece, outputs: list[Tensor]) -> None:
        """Keep the floating-point outputs of one call of a piece."""
        self.pieces.setdefault(piece, []).append(outputs)
