"""What is in force in a run: its program now, the parameters of each band, the engine that masks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

from torch import nn

from gradwarden.policy.combine import QUARANTINE
from gradwarden.policy.program import Program
from gradwarden.runtime.binding import BoundModel
from gradwarden.runtime.masks import Engine, LayerRules, make_engine
from gradwarden.runtime.ranks.reduction import Reduction

Choice: TypeAlias = Literal["auto", "fused", "split"]
"""Of an engine: `fused` (one backward pass), `split` (reference), `auto` (fused where its probe passes)."""


class InForce:
    """The program of a run, bound to its model, and its engine, until another comes into force.

    layers: how classes of one's own weigh their rows; see `make_engine`. Raises MaskError for a model that
    cannot be masked exactly.
    """

    def __init__(
        self, bound: BoundModel, reduction: Reduction, choice: Choice, layers: LayerRules | None
    ) -> None:
        self._bound = bound
        self._reduction = reduction
        self._choice = choice
        self._layers = layers
        self.engine = self._engine_of(bound.program)

    def _engine_of(self, program: Program) -> Engine:
        model, passes = self._reduction.module, self._reduction.passes
        choice, layers, semantics = self._choice, self._layers, program.semantics
        return make_engine(model, program.bands, choice, passes, layers=layers, semantics=semantics)

    @property
    def program(self) -> Program:
        return self._bound.program

    @property
    def parameters(self) -> Mapping[str, tuple[nn.Parameter, ...]]:
        """The parameters of each band."""
        return self._bound.parameters

    def every_parameter(self) -> list[nn.Parameter]:
        """Return the parameters in the order of bands."""
        return [parameter for members in self.parameters.values() for parameter in members]

    @property
    def deepest(self) -> int:
        """The number of the deepest band, the quarantine aside where there is another."""
        names = self.program.band_names
        return max((n for n, name in enumerate(names) if name != QUARANTINE), default=0)

    def change(self, bound: BoundModel, agree: Callable[[], None]) -> None:
        """Put another program in force, if `agree` lets it; whatever that raises leaves the old one."""
        self.engine.close()
        try:
            self.engine = self._engine_of(bound.program)
            agree()
        except BaseException:
            self.engine.close()
            self.engine = self._engine_of(self.program)
            raise
        self._bound = bound
