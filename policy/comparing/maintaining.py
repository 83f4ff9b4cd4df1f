"""How `maintain` rules differ: whether a part of the model may move further from what it was.

They change no decision, so nothing is asked of a solver. A pull that is weaker, a bound that is greater, a
share that need not be rehearsed any more, a rule that comes later, only advises or is gone, lets a band move
further: wider. So does a bound that holds for a larger band, since one part of it may then move by what the
others leave. Where something else is rehearsed, that is wider in one way and narrower in another.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal
from typing import TypeAlias

from gradwarden.policy.comparing.pairs import Cell
from gradwarden.policy.comparing.programs import Difference, Relation
from gradwarden.policy.evaluation.phrasing import maintenance_terms
from gradwarden.policy.program import Condition, Maintenance, Program

_Granted: TypeAlias = tuple[Condition, dict[str, int]]
"""Where a grant holds, and the weight per band that it gives there."""


def maintenance_differences(old: Program, new: Program, cells: Collection[Cell]) -> Iterator[Difference]:
    """Yield each part of the model that is held otherwise than before.

    A rule that only advises holds nothing.
    """
    before, after = _held(old), _held(new)
    rehearsed = _rehearsed(old), _rehearsed(new)
    for cell in cells:
        was = None if cell.old is None else before.get(old.band_names[cell.old])
        now = None if cell.new is None else after.get(new.band_names[cell.new])
        joined = _bounded(was) and any(x.new == cell.new and x.old != cell.old for x in cells)
        divided = _bounded(now) and any(x.old == cell.old and x.new != cell.new for x in cells)
        wider, narrower = _looser(was, now) or joined, _looser(now, was) or divided
        wider |= _rehearses_less(was, now, *rehearsed)
        narrower |= _rehearses_less(now, was, *reversed(rehearsed))
        if not wider and not narrower and not (cell.moved and was):
            continue
        relation: Relation = "both" if wider and narrower else "wider" if wider else "narrower"
        notes = [f"{_terms(was)}, now {_terms(now)}"]
        if was and now and _redefined(was, now, *rehearsed):
            notes.append("what is rehearsed is granted to other examples than before, or in another measure")
        if (joined or divided) and was and now:
            notes.append("a bound holds for a band as a whole, and the band has other parameters")
        if cell.moved and not wider:
            relation = "unknown"
            notes.append(
                "its part of the model may be another: compare programs that are bound (--model-map)"
            )
        yield Difference(cell.name, relation, notes=tuple(notes))


def semantics_differences(old: Program, new: Program) -> Iterator[Difference]:
    """Yield whether weights of zero stop more or less than before, where they do.

    Under `mask` an example's gradient flows through the layers of bands that are closed to it, to what lies
    before them; under `detach` those ways are closed too, and what is left is as it was.
    """
    if old.semantics != new.semantics:
        relation: Relation = "wider" if new.semantics == "mask" else "narrower"
        yield Difference("semantics", relation, notes=(f"{old.semantics}, now {new.semantics}",))


def _held(program: Program) -> dict[str, Maintenance]:
    """Return the rule that holds each band."""
    return {band: rule for rule in program.maintained if rule.level == "hard" for band in rule.bands}


def _bounded(rule: Maintenance | None) -> bool:
    return rule is not None and rule.drift is not None


def _looser(was: Maintenance | None, now: Maintenance | None) -> bool:
    """Return whether a band that `was` holds may move further under `now`, in some way."""
    if was is None:
        return False
    if now is None:
        return True
    weaker = Decimal(now.strength or 0) < Decimal(was.strength or 0)
    further = was.drift is not None and (now.drift is None or now.drift > was.drift)
    return weaker or further or now.start > was.start


def _rehearsed(program: Program) -> dict[str, _Granted]:
    """Return what each grant gives, and to what, whatever its name."""
    return {x.name: (x.when, dict(zip(program.band_names, x.weights, strict=True))) for x in program.grants}


def _rehearses_less(
    was: Maintenance | None,
    now: Maintenance | None,
    before: Mapping[str, _Granted],
    after: Mapping[str, _Granted],
) -> bool:
    """Return whether a step may bring less of what `was` has rehearsed under `now`."""
    if was is None or was.rehearsal is None:
        return False
    if now is None or now.rehearsal is None:
        return True
    return _redefined(was, now, before, after) or now.rehearsal.share < was.rehearsal.share


def _redefined(
    was: Maintenance, now: Maintenance, before: Mapping[str, _Granted], after: Mapping[str, _Granted]
) -> bool:
    """Return whether both rules have something rehearsed, and not the same."""
    if was.rehearsal is None or now.rehearsal is None:
        return False
    return before[was.rehearsal.rule] != after[now.rehearsal.rule]


def _terms(rule: Maintenance | None) -> str:
    return "not held" if rule is None else maintenance_terms(rule)
