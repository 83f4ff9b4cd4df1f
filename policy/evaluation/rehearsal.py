"""Holds a step to what `maintain` rules have it rehearse: so much of its weight in a band, from one grant.

Rehearsal is the oldest remedy against forgetting (Robins 1995, "Catastrophic forgetting, rehearsal and
pseudorehearsal"): what is to be kept is trained again beside what is new. Shares are shares of weight, not of
examples, so that an example which hardly counts cannot stand for one that does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TypeAlias

from gradwarden.policy.evaluation.phrasing import percent
from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import SCALE, Maintenance, Program, Rehearsal

Decided: TypeAlias = tuple[Sequence[int], Collection[str], int]
"""The weight per band in millionths, the rules that matched, and how many examples were so decided."""


@frozen
class Shortfall:
    """A band in which a step brings too little of what is to be rehearsed. brought, whole: in millionths."""

    rule: str
    band: str
    rehearsal: Rehearsal
    brought: int
    whole: int

    def __str__(self) -> str:
        part = percent(self.brought * SCALE // self.whole)
        return (
            f"`{self.rehearsal.rule}` brings {part} of the step's weight in the band `{self.band}`, and "
            f"`{self.rule}` asks for at least {percent(self.rehearsal.share)}"
        )


def demands(program: Program, step: int) -> list[Maintenance]:
    """Return the rules that have something rehearsed in a step; an advisory one demands nothing."""
    return [x for x in program.maintained if x.rehearsal and x.level == "hard" and x.start <= step]


def shortfall(program: Program, step: int, decided: Iterable[Decided]) -> Shortfall | None:
    """Return where a step rehearses too little; None where it does not. decided: all of its examples.

    A step without weight in a band owes nothing there.
    """
    rules = demands(program, step)
    if not rules:
        return None
    examples = list(decided)
    for rule in rules:
        assert rule.rehearsal is not None, "`demands` returns no others"
        for place, band in enumerate(program.band_names):
            if band not in rule.bands:
                continue
            whole = sum(weights[place] * count for weights, _, count in examples)
            brought = sum(
                weights[place] * count for weights, names, count in examples if rule.rehearsal.rule in names
            )
            if brought * SCALE < rule.rehearsal.share * whole:
                return Shortfall(rule.name, band, rule.rehearsal, brought, whole)
    return None
