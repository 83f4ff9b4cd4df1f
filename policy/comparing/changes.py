"""How one decision differs from another, as far as it matters to what is learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from gradwarden.policy.decision import Decision

Direction: TypeAlias = Literal["wider", "narrower", "mixed", "other"]
"""wider: some band gets more and none less. narrower: the reverse. mixed: some more, some less. other: the
weights are the same, but the verdict (a refusal that was a deferral) or an obligation is not."""

DIRECTIONS: tuple[Direction, ...] = ("wider", "narrower", "mixed", "other")


@dataclass(frozen=True, slots=True)
class Difference:
    """What changes from one decision to another.

    wider, narrower: bands whose weight rises, falls. opened: something is learned where nothing was. refused:
    nothing is learned where something was. begins, ends: rules that begin, cease to have a part in the
    decision; restored, lifted: rules whose waiver ends, begins.
    """

    direction: Direction
    wider: tuple[str, ...]
    narrower: tuple[str, ...]
    opened: bool
    refused: bool
    begins: tuple[str, ...]
    ends: tuple[str, ...]
    restored: tuple[str, ...]
    lifted: tuple[str, ...]


def effect(decision: Decision) -> tuple[object, ...]:
    """Return what of a decision acts on the model: verdict, weights and obligations."""
    return decision.verdict, decision.micro, decision.obligations


def difference(before: Decision, after: Decision) -> Difference | None:
    """Return how two decisions of one program differ; None where they act alike."""
    if effect(before) == effect(after):
        return None
    pairs = list(zip(before.bands, before.micro, after.micro, strict=True))
    wider = tuple(band for band, old, new in pairs if new > old)
    narrower = tuple(band for band, old, new in pairs if new < old)
    direction: Direction = "other"
    if wider or narrower:
        direction = "mixed" if wider and narrower else "wider" if wider else "narrower"
    old_rules, new_rules = set(before.rules), set(after.rules)
    restored = set(before.waived) & new_rules
    lifted = old_rules & set(after.waived)
    return Difference(
        direction=direction,
        wider=wider,
        narrower=narrower,
        opened=not any(before.micro) and any(after.micro),
        refused=any(before.micro) and not any(after.micro),
        begins=tuple(sorted(new_rules - old_rules - restored)),
        ends=tuple(sorted(old_rules - new_rules - lifted)),
        restored=tuple(sorted(restored)),
        lifted=tuple(sorted(lifted)),
    )
