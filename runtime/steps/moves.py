"""How far a step moves each band: the norm of what its parameters change by, in the optimizer or after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf, isfinite, isnan

import torch
from torch import Tensor, nn

from gradwarden.runtime.steps.gates import Total, joint_norms


class Moves:
    """The parameters of bands as they are before a step; kept once more until it is taken.

    Those that are frozen are not: no optimizer moves them, and what is quantized has no differences.
    total: where processes hold pieces of the parameters, sums numbers [bands] over the pieces.
    """

    def __init__(self, parameters: Mapping[str, Sequence[nn.Parameter]], total: Total) -> None:
        self._parameters = {
            band: [p for p in members if p.requires_grad] for band, members in parameters.items()
        }
        self._total = total
        self._before = {
            band: [_piece(p).clone() for p in members] for band, members in self._parameters.items()
        }

    def norms(self) -> dict[str, float]:
        """Return the L2 norm of what each band's parameters have changed by since. Asked for once.

        Infinite where one has become so, or no number. What was infinite and has stayed so has not changed.
        """
        for change, parameter in self._pairs():
            change.sub_(_piece(parameter))
        found = joint_norms([*self._before.values()], self._total)
        if not all(map(isfinite, found)):
            for change, parameter in self._pairs():
                change.masked_fill_(change.isnan() & _piece(parameter).isinf(), 0.0)
            found = joint_norms([*self._before.values()], self._total)
        return {band: inf if isnan(norm) else norm for band, norm in zip(self._before, found, strict=True)}

    def _pairs(self) -> Iterator[tuple[Tensor, nn.Parameter]]:
        for band, members in self._parameters.items():
            yield from zip(self._before[band], members, strict=True)


def _piece(parameter: nn.Parameter) -> Tensor:
    """Return the values of a parameter that are here."""
    values = parameter.detach()
    with torch.no_grad():
        return values.to_local() if hasattr(values, "to_local") else values
