"""Coverage of a policy by its tests: which conditions, and which parts of them, were seen true and false.

A condition that no case makes true could say anything; one that no case makes false could be missing. The
same goes for its parts, the tests that `and`, `or` and `not` join: a part that was never seen both ways could
be left out or turned round. A part that reads an attribute counts only where the attribute is present.
Conditions that are constant have one side. Examples that break the schema reach no condition.

Coverage counts outcomes: the two sides of every condition, and of every part where there are several.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gradwarden.policy.evaluation.evaluate import Facts, holds, read_facts
from gradwarden.policy.evaluation.partition import reads_of
from gradwarden.policy.evaluation.phrasing import Phrasing
from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import Condition, Constant, Has, Program
from gradwarden.policy.testing.inputs import Assignment, leaves, variables_read
from gradwarden.policy.testing.runner import CaseResult
from gradwarden.policy.testing.search import assignment_of, find

MAX_BASES = 8
"""How many examples of the tests are changed to find one that a test lacks."""


@dataclass(frozen=True, slots=True)
class PartCoverage:
    """How often a condition, or one of the tests it is made of, was true and false."""

    text: str
    condition: Condition
    true: int
    false: int

    @property
    def constant(self) -> bool | None:
        return self.condition.value if isinstance(self.condition, Constant) else None

    @property
    def missing(self) -> tuple[str, ...]:
        """The sides that no case reached: `true`, `false`."""
        sides = []
        if not self.true and self.constant is not False:
            sides.append("true")
        if not self.false and self.constant is not True:
            sides.append("false")
        return tuple(sides)

    @property
    def sides(self) -> int:
        return 2 if self.constant is None else 1


@dataclass(frozen=True, slots=True)
class ConditionCoverage(PartCoverage):
    """One condition of a rule with its parts; none where the condition is a single test.

    part: `when`, `then`, or the effect of the clause that the condition belongs to.
    """

    rule: str
    part: str
    parts: tuple[PartCoverage, ...]


@frozen
class Gap:
    """An outcome that no case reached. `whole`: of a condition, not only of a part of one."""

    rule: str
    part: str
    text: str
    side: str
    condition: Condition
    whole: bool


@frozen
class RuleCoverage:
    """How many cases a rule matched, and how many valid ones it did not."""

    rule: str
    matched: int
    unmatched: int
    conditions: tuple[ConditionCoverage, ...]

    def gaps(self) -> Iterator[Gap]:
        """Yield what is missing, conditions before their parts."""
        for condition in self.conditions:
            for piece in (condition, *condition.parts):
                for side in piece.missing:
                    whole = piece is condition
                    yield Gap(self.rule, condition.part, piece.text, side, piece.condition, whole)


@frozen
class Coverage:
    """Coverage of all rules of one program."""

    rules: tuple[RuleCoverage, ...]

    def gaps(self) -> Iterator[Gap]:
        for rule in self.rules:
            yield from rule.gaps()

    @property
    def sides(self) -> int:
        conditions = (condition for rule in self.rules for condition in rule.conditions)
        return sum(piece.sides for condition in conditions for piece in (condition, *condition.parts))

    @property
    def reached(self) -> int:
        return self.sides - sum(1 for _ in self.gaps())

    @property
    def percent(self) -> float:
        """Share of the outcomes that were reached; 100 for a policy without conditions."""
        return 100.0 * self.reached / self.sides if self.sides else 100.0


def condition_labels(program: Program) -> Iterator[tuple[str, str]]:
    """Yield (rule, part) for every condition, in the order of `Program.conditions`."""
    for grant in program.grants:
        yield grant.name, "when"
    for limit in program.limits:
        for clause in limit.clauses:
            yield limit.name, clause.effect
    for modulation in program.modulations:
        yield modulation.name, "when"
    for waiver in program.waivers:
        yield waiver.name, "when"
    for assertion in program.assertions:
        yield assertion.name, "when"
        if assertion.form == "implies":
            yield assertion.name, "then"


def measure(program: Program, results: Iterable[CaseResult]) -> Coverage:
    """Return what the cases covered. Each is evaluated once more, condition by condition."""
    labels = list(condition_labels(program))
    pieces = {leaf: [0, 0] for condition in program.conditions() for leaf in leaves(condition)}
    true = [0] * len(labels)
    matched: dict[str, int] = dict.fromkeys((rule for rule, _ in labels), 0)
    valid = 0
    for case in (case for result in results for case in result.tried):
        facts, problems = read_facts(program, case.example, case.context)
        if problems:
            continue
        valid += 1
        truth = [holds(condition, facts) for condition in program.conditions()]
        for index, value in enumerate(truth):
            true[index] += value
        for rule in {labels[index][0] for index, value in enumerate(truth) if value}:
            matched[rule] += 1
        for leaf, seen in pieces.items():
            if _is_told(leaf, facts):
                seen[holds(leaf, facts)] += 1
    phrasing = Phrasing(program)
    rules: dict[str, list[ConditionCoverage]] = {}
    for (rule, part), condition, count in zip(labels, program.conditions(), true, strict=True):
        parts = tuple(
            PartCoverage(phrasing.condition(leaf), leaf, pieces[leaf][1], pieces[leaf][0])
            for leaf in _parts(condition)
        )
        text = phrasing.condition(condition)
        entry = ConditionCoverage(text, condition, count, valid - count, rule, part, parts)
        rules.setdefault(rule, []).append(entry)
    return Coverage(
        tuple(
            RuleCoverage(rule, matched[rule], valid - matched[rule], tuple(conditions))
            for rule, conditions in sorted(rules.items())
        )
    )


def _parts(condition: Condition) -> list[Condition]:
    """Return the distinct tests that a condition joins; none where it is one test, negated or not."""
    found: list[Condition] = list(dict.fromkeys(leaves(condition)))
    found = [leaf for leaf in found if not isinstance(leaf, Constant)]
    return found if len(found) > 1 else []


def _is_told(leaf: Condition, facts: Facts) -> bool:
    """Whether the truth of a test says something: the attributes that it reads are present."""
    return isinstance(leaf, Has) or reads_of(leaf).attributes <= facts.values.keys()


def example_for(program: Program, gap: Gap, results: Sequence[CaseResult]) -> Assignment | None:
    """Return the inputs of an example that would close a gap, those that the condition reads only.

    The others are as in one of the tests. None where no such example was found.
    """
    cases = [result.case for result in results if result.decision.verdict != "invalid"][:MAX_BASES]
    bases = [assignment_of(program, case.example, case.context) for case in cases]
    found = find(program, gap.condition, gap.side == "true", bases)
    if found is None:
        return None
    read = variables_read([gap.condition])
    return {variable: value for variable, value in found.items() if variable in read}
