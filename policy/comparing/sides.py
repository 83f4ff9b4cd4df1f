"""A program on two sides of a moment, as z3 expressions over one example and one context.

Both sides share everything but one clock, and every comparison that reads the clock together with anything
else is held to one truth on both: what differs between the sides differs because of the program's text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from gradwarden.policy.comparing.calendar import Candidate, Change, Turn, uncertain
from gradwarden.policy.comparing.moments import Clock, comparisons, is_fixed
from gradwarden.policy.comparing.parts import Part
from gradwarden.policy.comparing.rewriting import rewritten, substituted
from gradwarden.policy.program import ClockValue, Number, Program
from gradwarden.policy.proving.encoding import Encoding
from gradwarden.policy.proving.inputs import Inputs
from gradwarden.policy.proving.smt import Truth, conjunction, disjunction, negation, solver, z3
from gradwarden.policy.proving.witness import confirm

Goal = tuple[Part, str, str]
"""(part, `begins`, `ends`, `wider` or `narrower`, band or empty)"""


@dataclass(frozen=True, slots=True)
class _Step:
    """What one part does by itself: decisions without its turn, and with it."""

    part: Part
    pairs: tuple[tuple[Encoding, Encoding], ...]


class Sides:
    """Decides which candidates of one clock are turns. `timeout` is in seconds, per question."""

    def __init__(self, program: Program, clock: Clock, timeout: float) -> None:
        self._program = program
        self._clock = clock
        self._timeout = timeout
        self._inputs = Inputs.of(program)
        self._moving = [leaf for leaf in comparisons(program, clock) if not is_fixed(leaf, clock)]

    def decide(self, candidate: Candidate) -> Turn | None:
        """Return the turn that a candidate is, None where no decision changes.

        A turn is certain where an example was found for it that the evaluator confirms. Where z3 gives up on
        a question, or cannot represent the strings of the program, the turn stays open.
        """
        before, after = self._at(candidate.at - 1), self._at(candidate.at)
        search = solver(self._timeout)
        search.add(*self._inputs.domain, *self._steady(before, after), _differ(before, after))
        answer = search.check()
        if answer == z3.unsat:
            return None
        if answer == z3.unknown:
            return uncertain(candidate)
        model = search.model()
        witness = confirm(after, model) if confirm(before, model) else None
        steps = self._steps(candidate, before, after)
        goals = {goal: wanted for step in steps for goal, wanted in _goals(step, before, after)}
        reached, given_up = _reach(search, goals)
        changes = tuple(_changes(candidate, reached, self._program.band_names))
        if given_up or self._inputs.approximate or not changes:
            return uncertain(candidate)
        return Turn(candidate.at, True, changes, witness)

    def _at(self, moment: int, program: Program | None = None) -> Encoding:
        clocks = {**self._inputs.clocks, self._clock: z3.IntVal(moment)}
        return Encoding(program or self._program, replace(self._inputs, clocks=clocks))

    def _steady(self, before: Encoding, after: Encoding) -> Iterator[Truth]:
        for leaf in self._moving:
            yield before.view.truth(leaf) == after.view.truth(leaf)

    def _steps(self, candidate: Candidate, before: Encoding, after: Encoding) -> list[_Step]:
        """Return what each part does alone.

        Of several that turn at once, one is undone on the side after, and done on the side before.
        """
        if len(candidate.parts) == 1:
            return [_Step(candidate.parts[0][0], ((before, after),))]
        steps = []
        for part, _, _ in candidate.parts:
            undone = self._at(candidate.at, self._frozen(part, candidate.at - 1))
            done = self._at(candidate.at - 1, self._frozen(part, candidate.at))
            steps.append(_Step(part, ((undone, after), (before, done))))
        return steps

    def _frozen(self, part: Part, moment: int) -> Program:
        """Return the program with the clock stopped in the fixed comparisons of one part."""
        now, then = ClockValue(self._clock), Number(moment)
        return rewritten(
            self._program,
            lambda place, old: substituted(old, now, then) if place in part.places else old,
        )


def _reach(search: Any, goals: dict[Goal, Truth]) -> tuple[set[Goal], bool]:
    """Return the goals that some example reaches, and whether z3 gave up on one (which then counts)."""
    reached: set[Goal] = set()
    given_up = False
    for goal, wanted in goals.items():
        if goal in reached:
            continue
        answer = search.check(wanted)
        if answer == z3.sat:
            model = search.model()
            reached |= {
                other
                for other, holds in goals.items()
                if z3.is_true(model.eval(holds, model_completion=True))
            }
        if answer != z3.unsat:
            reached.add(goal)
            given_up |= answer == z3.unknown
    return reached, given_up


def _differ(before: Encoding, after: Encoding) -> Truth:
    """Return whether verdict, weights or obligations differ."""
    pairs = [
        *zip(before.weights, after.weights, strict=True),
        *zip(before.verdicts.values(), after.verdicts.values(), strict=True),
        *((truth, after.obligations[key]) for key, truth in before.obligations.items()),
    ]
    return disjunction(old != new for old, new in pairs if not old.eq(new))


def _goals(step: _Step, before: Encoding, after: Encoding) -> Iterator[tuple[Goal, Truth]]:
    part = step.part
    truths = [(before.truth[place], after.truth[place]) for place in part.places]
    matters = disjunction(_differ(*pair) for pair in step.pairs)
    begins = disjunction(conjunction((negation(old), new)) for old, new in truths)
    ends = disjunction(conjunction((old, negation(new))) for old, new in truths)
    turns = disjunction((begins, ends))
    yield (part, "begins", ""), conjunction((begins, matters))
    yield (part, "ends", ""), conjunction((ends, matters))
    for index, band in enumerate(before.program.band_names):
        weights = [(old.weights[index], new.weights[index]) for old, new in step.pairs]
        wider = disjunction(new > old for old, new in weights)
        narrower = disjunction(new < old for old, new in weights)
        yield (part, "wider", band), conjunction((turns, wider))
        yield (part, "narrower", band), conjunction((turns, narrower))


def _changes(candidate: Candidate, reached: set[Goal], bands: tuple[str, ...]) -> Iterator[Change]:
    for part, _, _ in candidate.parts:
        found = {(what, band) for own, what, band in reached if own == part}
        if not found:
            continue
        wider, narrower = (
            tuple(band for band in bands if (wanted, band) in found) for wanted in ("wider", "narrower")
        )
        begins, ends = ("begins", "") in found, ("ends", "") in found
        yield Change(part.kind, part.name, part.effect, begins, ends, wider, narrower)
