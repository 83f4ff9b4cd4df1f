"""How far a step moves each band: the norm of what its parameters change by, in the optimizer or after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gradwarden.runtime.steps.gates import Total, joint_norms


class Moves:
    """The parameters of bands as they are before a step; kept once more until it is taken.

    total: where processes hold pieces of the parameters, sums numbers [bands] over the pieces.
    """

    def __init__(self, parameters: Mapping[str, Sequence[nn.Parameter]], total: Total) -> None:
        self._parameters = parameters
        self._total = total
        self._before = {band: [_piece(p).clone() for p in members] for band, members in parameters.items()}

    def norms(self) -> dict[str, float]:
        """Return the L2 norm of what each band's parameters have changed by since. Asked for once."""
        for band, members in self._parameters.items():
            for before, parameter in zip(self._before[band], members, strict=True):
                before.sub_(_piece(parameter))
        found = joint_norms([*self._before.values()], self._total)
        return dict(zip(self._before, found, strict=True))


def _piece(parameter: nn.Parameter) -> Tensor:
    """Return the values of a parameter that are here."""
    values = parameter.detach()
    with torch.no_grad():
        return values.to_local() if hasattr(values, "to_local") else values
