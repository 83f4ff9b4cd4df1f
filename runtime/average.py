"""An exponential moving average of the parameters that obeys the policy.

An ordinary moving average keeps moving towards a parameter that stands still, so a band that no example of a
step may reach would change in the averaged model all the same. Here a step moves the averages of its active
bands only; the others keep their bits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gradwarden.policy.program import Band
from gradwarden.runtime.errors import MaskError

_APPLIED: set[int] = set()
"""The parameters (by identity) that hold an average for the length of a `with` block."""


def holds_average(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether some of these parameters hold an average now (`GovernedAverage.applied`)."""
    return not _APPLIED.isdisjoint(map(id, parameters))


class GovernedAverage:
    """average <- decay * average + (1 - decay) * parameter, for the parameters of active bands.

    Starts as a copy of the parameters. Buffers are not averaged. Raises MaskError where `decay` is outside
    [0, 1) or a band names a parameter that the model lacks.
    """

    def __init__(self, model: nn.Module, bands: Sequence[Band], decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise MaskError(f"the decay of an average lies in 0..1 and below 1, not `{decay}`")
        known = dict(model.named_parameters(remove_duplicate=False))
        lacking = [name for band in bands for name in band.parameters if name not in known]
        if lacking:
            raise MaskError(
                f"the model has no parameter `{lacking[0]}`",
                help="bind the program's bands with a model map of this model",
            )
        self.decay = decay
        self._parameters = {name: known[name] for band in bands for name in band.parameters}
        self._members = {band.name: band.parameters for band in bands}
        self._average = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, active: Collection[str]) -> None:
        """Move the averages of the active bands. Call after a committed step, with the bands it reached."""
        for band in active:
            for name in self._members[band]:
                self._average[name].lerp_(self._parameters[name].detach(), 1.0 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages in the model for the length of a `with` block, then the parameters back."""
        kept = {name: p.detach().clone() for name, p in self._parameters.items()}
        own = set(map(id, self._parameters.values())) - _APPLIED
        self._write(self._average)
        _APPLIED.update(own)
        try:
            yield
        finally:
            _APPLIED.difference_update(own)
            self._write(kept)

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the averages by parameter name."""
        return {name: value.clone() for name, value in self._average.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replace the averages. Raises MaskError where names or shapes are not those of the model."""
        if state.keys() != self._average.keys():
            odd = sorted(state.keys() ^ self._average.keys())
            raise MaskError(f"the saved average and the model differ in `{odd[0]}`")
        for name, value in state.items():
            if value.shape != self._average[name].shape:
                raise MaskError(f"the saved average of `{name}` has another shape than the parameter")
        for name, value in state.items():
            self._average[name].copy_(value)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
