"""How starvation guards differ: whether a band may starve for longer, or deeper, before that is told.

They change no decision, so nothing is asked of a solver, and nothing more is learned where one is gone: what
is found is told, and no more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from gradwarden.policy.comparing.pairs import Cell
from gradwarden.policy.comparing.programs import Difference, Relation
from gradwarden.policy.evaluation.phrasing import share
from gradwarden.policy.program import Program, Starvation

_ACTIONS = ("accept", "report", "halt")
"""From the weakest to the strongest."""


def guard_differences(old: Program, new: Program, cells: Collection[Cell]) -> Iterator[Difference]:
    """Yield each part of the model that is guarded otherwise than before; wider, where more droughts pass."""
    before, after = ({guard.band: guard for guard in program.starvation} for program in (old, new))
    for cell in cells:
        if cell.old is None or cell.new is None:
            continue
        was, now = before.get(old.band_names[cell.old]), after.get(new.band_names[cell.new])
        looser, stricter = _looser(was, now), _looser(now, was)
        if looser or stricter:
            relation: Relation = "both" if looser and stricter else "wider" if looser else "narrower"
            yield Difference(cell.name, relation, notes=(f"{_terms(was)}, now {_terms(now)}",))


def _looser(was: Starvation | None, now: Starvation | None) -> bool:
    """Return whether some drought that `was` tells of is told of later, or less strongly, or not at all."""
    if was is None:
        return False
    if now is None:
        return True
    weaker = _ACTIONS.index(now.action) < _ACTIONS.index(was.action)
    return weaker or now.steps > was.steps or now.below < was.below


def _terms(guard: Starvation | None) -> str:
    """Return a guard in the words of the language: `below 0.01 after 100 steps report`."""
    if guard is None:
        return "unguarded"
    below = f"below {share(guard.below)} " if guard.below else ""
    return f"{below}after {guard.steps} {'step' if guard.steps == 1 else 'steps'} {guard.action}"
