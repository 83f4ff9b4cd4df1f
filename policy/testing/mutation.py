"""Mutation testing: asks of every mutant of a program whether any test notices it.

A mutant on which every test still passes has survived: the tests do not pin down what was changed. For each
survivor an example is looked for that tells it from the program, among those of the tests and near them, at
the values where conditions change their truth. A mutant that decides as the program does on every example is
no mutant: where that can be shown by trying one example of each kind (`search`), it is left out.

Only what a mutant changes is evaluated again: the truth of all other conditions is known from the program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from gradwarden.policy.combine import combine
from gradwarden.policy.decision import Decision
from gradwarden.policy.evaluation.evaluate import Facts, holds, read_facts
from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import Condition, Program
from gradwarden.policy.testing.coverage import condition_labels
from gradwarden.policy.testing.expectations import compare
from gradwarden.policy.testing.inputs import Assignment, inputs_of
from gradwarden.policy.testing.mutants import Mutant, mutants
from gradwarden.policy.testing.runner import examples_of
from gradwarden.policy.testing.search import assignment_of, kinds, neighbours
from gradwarden.policy.testing.test_file import Case, Entry

__all__ = ["Campaign", "Mutant", "Survivor", "mutants", "run_campaign", "survivors"]

MAX_LONGER = 300
"""How many examples more are tried to find one on which weights differ."""

MAX_BASES = 24
"""How many examples of the tests a distinguishing example is looked for around."""


@frozen
class Survivor:
    """A mutant that no test notices, and an example that tells it from the program, if one was found."""

    mutant: Mutant
    assignment: Assignment | None
    program_decision: Decision | None = None
    mutant_decision: Decision | None = None

    @property
    def rule(self) -> str:
        return self.mutant.rule

    @property
    def change(self) -> str:
        return self.mutant.change


@frozen
class Campaign:
    """The outcome for one program. `mutants` does not count those that change nothing (`equivalent`)."""

    mutants: int
    equivalent: int
    survivors: tuple[Survivor, ...]


@frozen
class _Known:
    """An example with what the program makes of it."""

    facts: Facts
    truth: tuple[bool, ...]
    case: Case | None = None


def survivors(
    program: Program, cases: Sequence[Entry], progress: Callable[[int], None] | None = None
) -> tuple[int, list[Survivor]]:
    """Return how many mutants there are, and those on which every case passes."""
    campaign = run_campaign(program, cases, progress)
    return campaign.mutants, list(campaign.survivors)


def run_campaign(
    program: Program, cases: Sequence[Entry], progress: Callable[[int], None] | None = None
) -> Campaign:
    """Try every mutant. The cases must pass on the program itself."""
    examples = examples_of(program, cases)
    known = list(_known(program, examples))
    total = equivalent = 0
    alive: list[Survivor] = []
    for mutant in mutants(program):
        total += 1
        trial = _Trial(program, mutant, _sources(program, mutant))
        killer = next((index for index, one in enumerate(known) if trial.fails(one)), None)
        if killer is None:
            survivor = _look_closer(trial, known)
            if survivor is None:
                equivalent += 1
            else:
                alive.append(survivor)
        elif killer:
            known.insert(0, known.pop(killer))  # what noticed one change often notices the next
        if progress is not None:
            progress(1)
    return Campaign(total - equivalent, equivalent, tuple(alive))


def _known(program: Program, cases: Iterable[Case]) -> Iterator[_Known]:
    """Yield the cases whose metadata are valid: the others are decided alike by every mutant."""
    conditions = tuple(program.conditions())
    for case in cases:
        facts, problems = read_facts(program, case.example, case.context)
        if not problems:
            yield _Known(facts, tuple(holds(condition, facts) for condition in conditions), case)


def _sources(program: Program, mutant: Mutant) -> tuple[int | Condition, ...]:
    """Return for each condition of a mutant its index in the program, or the condition if it is new."""
    indices = {id(condition): index for index, condition in enumerate(program.conditions())}
    return tuple(indices.get(id(condition), condition) for condition in mutant.program.conditions())


@frozen
class _Trial:
    """A mutant beside its program. `sources`: where the truth of each of its conditions comes from."""

    program: Program
    mutant: Mutant
    sources: tuple[int | Condition, ...]

    @property
    def changed(self) -> list[Condition]:
        return [source for source in self.sources if not isinstance(source, int)]

    def replaced(self) -> list[tuple[Condition, Condition]]:
        """Return the conditions that were changed, each with what became of it."""
        pairs = zip(self.program.conditions(), self.sources, strict=False)
        return [(old, new) for old, new in pairs if not isinstance(new, int)]

    def may_differ(self, facts: Facts) -> bool:
        """Whether a changed condition has another truth; if none was changed, the rest may tell."""
        pairs = self.replaced()
        return not pairs or any(holds(old, facts) != holds(new, facts) for old, new in pairs)

    def decide(self, known: _Known) -> Decision | None:
        """Return the decision of the mutant, None where it cannot differ from that of the program."""
        truth = tuple(
            known.truth[source] if isinstance(source, int) else holds(source, known.facts)
            for source in self.sources
        )
        if truth == known.truth and self.changed:
            return None
        return combine(self.mutant.program, truth, known.facts.signals.__getitem__)

    def fails(self, known: _Known) -> bool:
        """Return whether a case fails on the mutant."""
        assert known.case is not None, "a known example of the tests"
        decision = self.decide(known)
        return decision is not None and any(True for _ in compare(known.case.expect, decision))

    def difference(self, assignments: Iterable[Assignment]) -> Survivor | None:
        """Return an example on which the mutant decides otherwise, in anything a test can expect.

        One on which weights differ is preferred: it is looked for a little longer.
        """
        conditions = tuple(self.program.conditions())
        found: Survivor | None = None
        left = MAX_LONGER
        for assignment in assignments:
            if found is not None and (left := left - 1) < 0:
                break
            facts, problems = read_facts(self.program, *inputs_of(assignment))
            if problems or not self.may_differ(facts):
                continue
            truth = tuple(holds(condition, facts) for condition in conditions)
            decision = self.decide(_Known(facts, truth))
            if decision is None:
                continue
            original = combine(self.program, truth, facts.signals.__getitem__)
            survivor = Survivor(self.mutant, assignment, original, decision)
            if original.micro != decision.micro:
                return survivor
            if found is None and replace(original, causes=()) != replace(decision, causes=()):
                found = survivor
        return found


def _look_closer(trial: _Trial, known: Sequence[_Known]) -> Survivor | None:
    """Return a survivor with an example that shows it, None where it decides like the program everywhere."""
    if found := trial.difference(_candidates(trial, known)):
        return found
    if _same_truth(trial):
        return None
    everything = _everything(trial)
    if everything is None:
        return Survivor(trial.mutant, None)
    program, mutant = trial.program, trial.mutant
    if not program.modulations:
        return trial.difference(everything)
    # The same factors scale the weights of both: it is enough that these agree before they are scaled.
    plain = replace(mutant, program=replace(mutant.program, modulations=()))
    unscaled = replace(program, modulations=())
    differing = _Trial(unscaled, plain, _sources(unscaled, plain)).difference(everything)
    if differing is None or differing.assignment is None:
        return None
    return trial.difference([differing.assignment]) or Survivor(mutant, None)


def _everything(trial: _Trial) -> Iterator[Assignment] | None:
    """Return one example of each kind, None where they cannot be listed.

    Where a modulation was changed, every value of its signal is a kind of its own.
    """
    program, mutant = trial.program, trial.mutant
    if program.modulations != mutant.program.modulations:
        return None
    return kinds(program, [*program.conditions(), *mutant.program.conditions()])


def _candidates(trial: _Trial, known: Sequence[_Known]) -> Iterator[Assignment]:
    """Yield the examples of the tests, and those near them that differ in what the changed rule reads."""
    program = trial.program
    bases = [assignment_of(program, one.case.example, one.case.context) for one in known if one.case]
    yield from bases
    pairs = zip(condition_labels(program), program.conditions(), strict=True)
    read = [condition for (rule, _), condition in pairs if rule == trial.mutant.rule]
    yield from neighbours(program, [*read, *trial.changed], bases[:MAX_BASES])


def _same_truth(trial: _Trial) -> bool:
    """Return whether the changed conditions are true on the same examples: on one of each kind."""
    pairs = trial.replaced()
    everything = kinds(trial.program, [condition for pair in pairs for condition in pair]) if pairs else None
    if everything is None:
        return False
    for assignment in everything:
        facts, problems = read_facts(trial.program, *inputs_of(assignment))
        if not problems and any(holds(old, facts) != holds(new, facts) for old, new in pairs):
            return False
    return True
