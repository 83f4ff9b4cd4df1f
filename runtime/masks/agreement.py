"""What the processes of a collective run must take for true alike before a backward pass.

Which gradients a pass may take jointly, and whether rows are checked, is read off the graph of the batch at
hand. Where all processes must make the same passes, each goes by what any of them has seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.masks.bands import BandIndex
from gradwarden.runtime.masks.graph import Uses
from gradwarden.runtime.masks.passes import Passes
from gradwarden.runtime.masks.trial import TrialError


@dataclass(frozen=True, slots=True)
class Accord:
    """The common view of one graph. due: whether rows are to be checked. alike: whether they can be, in
    passes that all processes make through the same layers."""

    found: Uses
    due: bool
    alike: bool


def agreed_uses(passes: Passes, found: Uses, wanted: Sequence[int], due: bool, bands: BandIndex) -> Accord:
    """Return what holds for all processes.

    wanted: ids of the parameters whose gradients are due, in an order that is the same on all. Raises
    MaskError on all of them where one uses a parameter that another leaves out.
    """
    if not passes.collective:
        return Accord(found, due, alike=True)
    seen = [[key in found.ordinary for key in wanted], [key in found.weighing for key in wanted]]
    lacks = [not (ordinary or weighing) for ordinary, weighing in zip(*seen, strict=True)]
    count = len(found.calls)
    facts = [
        int(due),
        int(found.narrow),
        count,
        -count,
        *map(int, seen[0]),
        *map(int, seen[1]),
        *map(int, lacks),
    ]
    merged = passes.largest(torch.tensor(facts, dtype=torch.int32, device="cpu"))
    some, narrow, most, least = merged[:4].tolist()
    ordinary, weighing, lacked = merged[4:].bool().view(3, -1).tolist()
    for place, key in enumerate(wanted):
        if lacked[place] and (ordinary[place] or weighing[place]):
            raise MaskError(
                f"the losses depend on the parameter `{bands.labels[key]}` on some processes only",
                help="a sharded model must take the same way through its modules on every process",
            )
    common = replace(
        found,
        ordinary={key for key, any_ in zip(wanted, ordinary, strict=True) if any_},
        weighing={key for key, any_ in zip(wanted, weighing, strict=True) if any_},
        narrow=bool(narrow),
    )
    return Accord(common, bool(some), alike=most == -least)


def agreed_keys(passes: Passes, keys: set[int], among: Sequence[int]) -> set[int]:
    """Return the keys that any process has. among: all there can be, in an order that is the same on all."""
    if not passes.collective:
        return keys
    merged = passes.largest(torch.tensor([key in keys for key in among], dtype=torch.int32, device="cpu"))
    return {key for key, hit in zip(among, merged.tolist(), strict=True) if hit}


def refuse_unlike_rows(passes: Passes, packed: bool) -> None:
    """Raise MaskError on all processes where only some are about to run packed sequences."""
    if not passes.collective:
        return
    merged = passes.largest(torch.tensor([packed, not packed], dtype=torch.int32, device="cpu"))
    if bool(merged.all()):
        raise MaskError(
            "the rows of some processes are packed sequences, those of others are not",
            help="call `assign` with owners of shape [R, T] on every process, also where R is 0",
        )


def agreed_failure(passes: Passes, failure: TrialError | None) -> TrialError | None:
    """Return why the engine cannot be trusted, where any process has found that it cannot."""
    failures = passes.largest(torch.tensor([failure is not None], dtype=torch.int32, device="cpu"))
    return failure or (TrialError("the probe failed on another process") if bool(failures.any()) else None)
