"""The parameters of a live model by band."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

from torch import Tensor, nn

from gradwarden.policy.errors import did_you_mean
from gradwarden.policy.program import Band
from gradwarden.runtime.errors import MaskError


@cache
def bands_in(mask: int) -> tuple[int, ...]:
    """Return the bands whose bits are set."""
    return tuple(band for band in range(mask.bit_length()) if mask >> band & 1)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class BandIndex:
    """Which band each parameter belongs to.

    names: band names, in the policy's order. members: the parameters of each band. home: band index by
    `id(parameter)`. labels: a parameter's name by `id(parameter)`. stand_ins: by the id of a member, the
    parameter that forward passes use in its place (a sharded one's whole).
    """

    names: tuple[str, ...]
    members: tuple[tuple[nn.Parameter, ...], ...]
    home: dict[int, int]
    labels: dict[int, str]
    stand_ins: dict[int, nn.Parameter] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return len(self.names)

    def trainable(self, band: int) -> list[nn.Parameter]:
        """Return the parameters of a band that are not frozen, as forward passes use them."""
        members = [parameter for parameter in self.members[band] if parameter.requires_grad]
        return [self.used(parameter) for parameter in members] if self.stand_ins else members

    def used(self, parameter: nn.Parameter) -> nn.Parameter:
        """Return what forward passes use for a member: itself, or what stands in for it."""
        return self.stand_ins.get(id(parameter), parameter)

    def current(self, member: Tensor) -> Tensor:
        """Return the same for a member that is known as a tensor."""
        return self.stand_ins.get(id(member), member)

    def stand_in(self, parameter: nn.Parameter, used: nn.Parameter) -> None:
        """Let forward passes use another parameter in the place of a member."""
        before = self.stand_ins.get(id(parameter))
        if before is not None:
            del self.home[id(before)], self.labels[id(before)]
        self.stand_ins[id(parameter)] = used
        self.home[id(used)], self.labels[id(used)] = self.home[id(parameter)], self.labels[id(parameter)]

    def with_stand_ins(self, keys: frozenset[int]) -> frozenset[int]:
        """Return the ids of members together with those of what stands in for them."""
        return keys | {id(self.stand_ins[key]) for key in keys & self.stand_ins.keys()}

    def restricted(self, parameters: frozenset[int]) -> BandIndex:
        """Return the index with only the parameters of these ids as members."""
        members = tuple(tuple(p for p in band if id(self.used(p)) in parameters) for band in self.members)
        return BandIndex(self.names, members, self.home, self.labels, self.stand_ins)


def index_bands(model: nn.Module, bands: Sequence[Band]) -> BandIndex:
    """Look up every parameter that the bands name.

    Raises MaskError where a band names a parameter that the model lacks, where two bands share a tensor, or
    where a trainable parameter is in no band.
    """
    known = dict(model.named_parameters(remove_duplicate=False))
    home: dict[int, int] = {}
    members: list[tuple[nn.Parameter, ...]] = []
    for number, band in enumerate(bands):
        found: dict[int, nn.Parameter] = {}
        for name in band.parameters:
            if name not in known:
                raise MaskError(
                    f"band `{band.name}` names parameter `{name}`, which the model does not have",
                    help=did_you_mean(name, known) or "compile the policy with this model's map",
                )
            parameter = known[name]
            if home.setdefault(id(parameter), number) != number:
                raise MaskError(
                    f"parameter `{name}` is in bands `{bands[home[id(parameter)]].name}` and `{band.name}`"
                )
            found[id(parameter)] = parameter
        members.append(tuple(found.values()))
    labels = {id(parameter): name for name, parameter in reversed(known.items())}
    lost = [labels[id(p)] for p in model.parameters() if p.requires_grad and id(p) not in home]
    if lost:
        raise MaskError(
            f"trainable parameter `{lost[0]}` is in no band ({len(lost)} in all)",
            help="compile the policy with this model's map",
        )
    return BandIndex(tuple(band.name for band in bands), tuple(members), home, labels)
