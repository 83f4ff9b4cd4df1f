"""Paces: how often a band may be moved, `gradient { deep at most 1 in 4 steps }`, as limits of a program.

A pace closes its band in every step whose number is no multiple of its steps. It reads the number of the step
and nothing else: no history is needed, and all ranks, a run that was resumed or taken back and whoever
verifies it agree. Like every limit it can only lower weights. Nothing waives it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from gradwarden.policy.program import Clause, Every, Limit, Not, Program

MAX_PACE = 1_000_000
"""The greatest number of steps of which one moves a band."""

_PREFIX = "pace:"
"""What the names of paces begin with; no rule that is written can be named so."""


def pace_name(band: str) -> str:
    """Return the name of a band's pace, by which decisions list it."""
    return f"{_PREFIX}{band}"


def pace(band: str, steps: int, bands: Sequence[str], ceiling: int) -> Limit:
    """Return the limit that lets one of `steps` steps move a band. bands: all of the program, in order."""
    caps = tuple(0 if name == band else ceiling for name in bands)
    return Limit(pace_name(band), "pace", (Clause(Not(Every(steps)), "paced", caps, defers=True),))


def paces(program: Program) -> dict[str, int]:
    """Return of how many steps one may move each band that has a pace."""
    return {
        limit.name.removeprefix(_PREFIX): steps
        for limit in program.limits
        if limit.kind == "pace"
        for steps in _steps(limit)
    }


def next_turn(program: Program, band: str, step: int) -> int:
    """Return the first step from `step` on in which a band's pace, if it has one, lets it be moved."""
    every = paces(program).get(band, 1)
    return -(-step // every) * every


def _steps(limit: Limit) -> Iterator[int]:
    match limit.clauses:
        case (Clause(Not(Every(steps))),):
            yield steps


def unpaced(program: Program) -> Program:
    """Return a program without its paces; nothing else of it tells steps apart by turns."""
    return replace(program, limits=tuple(limit for limit in program.limits if limit.kind != "pace"))


def noised_bands(limits: Iterable[Limit]) -> dict[str, str]:
    """Return the bands that noise moves in every step, each with a rule of it. Advisory ones add none."""
    return {
        band: limit.name
        for limit in limits
        if limit.privacy and limit.level == "hard"
        for band in limit.privacy.bands
    }


def pace_faults(program: Program) -> Iterator[str]:
    """Yield which limits are no paces though they say so, or the reverse, and paces of noised bands."""
    private = noised_bands(program.limits)
    known = paces(program)
    for limit in program.limits:
        named = limit.name.startswith(_PREFIX)
        band = limit.name.removeprefix(_PREFIX)
        if named != (limit.kind == "pace"):
            yield f"`{limit.name}` is named as a pace is, or is one under another name"
        elif named and (
            band not in program.band_names
            or limit != pace(band, known.get(band, 0), program.band_names, program.max_weight)
        ):
            yield f"`{limit.name}` is not the pace of a band"
        elif named and band in private:
            yield f"`{limit.name}` paces a band that noise moves in every step"
