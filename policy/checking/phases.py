"""What a phase means: phases follow one another, each until its end is reached.

A phase holds where the ends of all phases before it have been reached and its own has not, so exactly one
phase holds at any time, also where ends are counted in steps for some and in epochs for others.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from gradwarden.policy.checking.types import PhaseEnd
from gradwarden.policy.program import And, ClockValue, Compare, Condition, Constant, Number, Or


def in_phases(phases: Sequence[PhaseEnd], names: Collection[str]) -> Condition:
    """Return the condition that the current phase is one of `names`."""
    terms = tuple(_holds(phases, i) for i, phase in enumerate(phases) if phase.name in names)
    if not terms:
        return Constant(False)
    return terms[0] if len(terms) == 1 else Or(terms)


def _holds(phases: Sequence[PhaseEnd], index: int) -> Condition:
    ended = tuple(
        Compare("ge", ClockValue(phase.clock), Number(phase.end)) for phase in phases[:index] if phase.clock
    )
    own = phases[index]
    terms = (*ended, Compare("lt", ClockValue(own.clock), Number(own.end))) if own.clock else ended
    return terms[0] if len(terms) == 1 else And(terms) if terms else Constant(True)
