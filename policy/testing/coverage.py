"""Coverage of a policy by its tests: which conditions were seen true, and which false.

A condition that no case makes true could say anything; one that no case makes false could be missing.
Conditions that are constant have one side. Examples that break the schema reach no condition.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gradwarden.policy.evaluation.phrasing import Phrasing
from gradwarden.policy.program import Constant, Program
from gradwarden.policy.testing.runner import CaseResult


@dataclass(frozen=True, slots=True)
class ConditionCoverage:
    """How often one condition of a rule was true and false.

    part: `when`, `then`, or the effect of the clause that the condition belongs to.
    """

    rule: str
    part: str
    text: str
    constant: bool | None
    true: int
    false: int

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
class RuleCoverage:
    """How many cases a rule matched, and how many valid ones it did not."""

    rule: str
    matched: int
    unmatched: int
    conditions: tuple[ConditionCoverage, ...]


@dataclass(frozen=True, slots=True)
class Coverage:
    """Coverage of all rules of one program."""

    rules: tuple[RuleCoverage, ...]

    @property
    def sides(self) -> int:
        return sum(condition.sides for rule in self.rules for condition in rule.conditions)

    @property
    def reached(self) -> int:
        missing = sum(len(condition.missing) for rule in self.rules for condition in rule.conditions)
        return self.sides - missing

    @property
    def percent(self) -> float:
        """Share of the sides that were reached; 100 for a policy without conditions."""
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
    """Return what the cases covered. Each case is evaluated once more, condition by condition."""
    from gradwarden.policy.evaluation.evaluate import holds, read_facts

    labels = list(condition_labels(program))
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
    phrasing = Phrasing(program)
    rules: dict[str, list[ConditionCoverage]] = {}
    for (rule, part), condition, count in zip(labels, program.conditions(), true, strict=True):
        constant = condition.value if isinstance(condition, Constant) else None
        text = phrasing.condition(condition)
        entry = ConditionCoverage(rule, part, text, constant, count, valid - count)
        rules.setdefault(rule, []).append(entry)
    return Coverage(
        tuple(
            RuleCoverage(rule, matched[rule], valid - matched[rule], tuple(conditions))
            for rule, conditions in sorted(rules.items())
        )
    )
