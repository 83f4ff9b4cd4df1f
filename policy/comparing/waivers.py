"""How long waivers last, and the proof that none outlives its lapse.

A waiver lapses on its `until`: from that day on it must lift nothing, for any example in any context. The
compiler joins every waiver's condition with `today < until`, which interval reasoning sees through; a program
made otherwise may need the solver.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gradwarden.policy.checking.types import MAX_DAY, MIN_DAY
from gradwarden.policy.comparing.bounds import Bounds
from gradwarden.policy.comparing.calendar import has_solver
from gradwarden.policy.program import Program, Waiver

Proof = Literal["intervals", "solver", "refuted", "unknown"]
"""How it is known that a waiver lifts nothing from its lapse on: by interval reasoning on its condition, by
the solver; or that it can lift something (refuted); or not at all."""


@dataclass(frozen=True, slots=True)
class Lapse:
    """One waiver. days: from the first day of the calendar to its lapse; 0 or less where it has lapsed."""

    waiver: Waiver
    days: int
    proof: Proof

    @property
    def holds(self) -> bool:
        return self.proof in ("intervals", "solver")


def lapses(program: Program, first: int, *, use_solver: bool = True, timeout: float = 10.0) -> list[Lapse]:
    """Return every waiver with the proof of its lapse; `first` is the day from which its days are counted."""
    return [
        Lapse(waiver, waiver.until - first, _proof(program, waiver, use_solver and has_solver(), timeout))
        for waiver in program.waivers
    ]


def _proof(program: Program, waiver: Waiver, use_solver: bool, timeout: float) -> Proof:
    if waiver.until > MAX_DAY:
        return "intervals"
    after = Bounds(program, {"today": (max(waiver.until, MIN_DAY), MAX_DAY)})
    if after.truth(waiver.when) is False:
        return "intervals"
    return _search(program, waiver, timeout) if use_solver else "unknown"


def _search(program: Program, waiver: Waiver, timeout: float) -> Proof:
    """Search for an example for which the waiver still lifts its rule on some day from the lapse on."""
    from gradwarden.policy.proving.inputs import Inputs
    from gradwarden.policy.proving.smt import disjunction, solver, z3
    from gradwarden.policy.proving.views import View

    inputs = Inputs.of(program)
    view = View(program, inputs)
    limited = [
        clause.when for limit in program.limits if limit.name == waiver.rule for clause in limit.clauses
    ]
    search = solver(timeout)
    search.add(*inputs.domain, inputs.clocks["today"] >= waiver.until, view.truth(waiver.when))
    answer = search.check(disjunction(map(view.truth, limited)))
    return "solver" if answer == z3.unsat else "refuted" if answer == z3.sat else "unknown"
