"""Runs policy tests: decides every case of a test file and compares with what it expects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from gradwarden.policy.decision import Decision
from gradwarden.policy.errors import Diagnostic, PolicyError, did_you_mean
from gradwarden.policy.evaluation.partition import partition
from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import Program
from gradwarden.policy.testing.expectations import NAME_LISTS, Mismatch, compare, show_weight
from gradwarden.policy.testing.for_all import ForAll, assignments, concrete, domains, shrink
from gradwarden.policy.testing.inputs import Assignment, Variable
from gradwarden.policy.testing.test_file import Case, Entry, TestFile

__all__ = ["CaseResult", "Mismatch", "check_fit", "fit_faults", "run_case", "run_cases", "show_weight"]


@frozen
class CaseResult:
    """The outcome of one case; it passed where there is no mismatch.

    case: what was decided; of a `for all` case the simplest example found that fails, or the first that was
    tried. tried: all that was decided, one case for each example.
    """

    case: Case
    decision: Decision
    mismatches: tuple[Mismatch, ...]
    tried: tuple[Case, ...]
    is_for_all: bool = False

    @property
    def passed(self) -> bool:
        return not self.mismatches

    @property
    def is_counterexample(self) -> bool:
        return self.is_for_all and not self.passed


def run_case(program: Program, case: Case) -> CaseResult:
    """Decide one case and compare."""
    decision = program.decide(case.example, case.context)
    return CaseResult(case, decision, tuple(compare(case.expect, decision)), (case,))


def run_cases(program: Program, cases: Iterable[Entry]) -> list[CaseResult]:
    """Decide every case. They must fit the program (`check_fit`)."""
    return [
        run_case(program, case) if isinstance(case, Case) else run_for_all(program, case) for case in cases
    ]


def run_for_all(program: Program, case: ForAll) -> CaseResult:
    """Decide the examples of a `for all` case up to the first that fails, and make that one simpler."""
    inputs, _ = domains(program, case)
    tried: list[Case] = []
    first: CaseResult | None = None
    for assignment in assignments(inputs, case.samples, case.seed):
        result = run_case(program, _concrete(case, assignment))
        tried.append(result.case)
        if not result.passed:
            smallest = shrink(lambda a: not run_case(program, _concrete(case, a)).passed, assignment, inputs)
            found = run_case(program, _concrete(case, smallest))
            return CaseResult(found.case, found.decision, found.mismatches, tuple(tried), is_for_all=True)
        first = first or result
    assert first is not None, "every domain has a value"
    return CaseResult(first.case, first.decision, (), tuple(tried), is_for_all=True)


def examples_of(program: Program, cases: Iterable[Entry]) -> list[Case]:
    """Return one case for each example that cases are about."""
    return [example for case in cases for example in _examples(program, case)]


def _examples(program: Program, case: Entry) -> Iterator[Case]:
    if isinstance(case, Case):
        yield case
        return
    inputs, _ = domains(program, case)
    for assignment in assignments(inputs, case.samples, case.seed):
        yield _concrete(case, assignment)


def _concrete(case: ForAll, assignment: Assignment) -> Case:
    example, context = concrete(case, assignment)
    return Case(case.name, example, context, case.expect, case.span)


def check_fit(program: Program, tests: TestFile) -> None:
    """Raise PolicyError where cases do not fit the program (`fit_faults`)."""
    if faults := fit_faults(program, tests):
        raise PolicyError(faults)


def fit_faults(program: Program, tests: TestFile) -> list[Diagnostic]:
    """Return where cases do not fit the program.

    They may name bands, rules or signals that it does not have: such a case could pass without testing
    anything (a signal that nothing reads), or never. Where it reads `today`, every case needs a date. And
    every value of a domain must be one that the schema allows, so that no `for all` case holds for nothing.
    """
    dated = partition(program).uses_today
    faults: list[Diagnostic] = []
    for case in tests.cases:
        varies = isinstance(case, ForAll) and Variable("clock", "at") in case.drawn
        if dated and case.context.at is None and not varies:
            message = f"policy `{program.name}` reads `today`, and this case has no date"
            faults.append(Diagnostic("GW429", message, case.span, "add `at: 2026-01-31` to its `context`"))
        faults += _unknown_names(program, case)
        if isinstance(case, ForAll):
            faults += domains(program, case)[1]
    return faults


def _unknown_names(program: Program, case: Entry) -> Iterator[Diagnostic]:
    rules = rule_names(program)
    for expectation in case.expect:
        known: Sequence[str] = rules if expectation.key in NAME_LISTS else program.band_names
        noun = "rule" if expectation.key in NAME_LISTS else "band"
        for node in expectation.names:
            if node.value not in known:
                message = f"policy `{program.name}` has no {noun} `{node.value}`"
                yield Diagnostic("GW428", message, node.span, did_you_mean(str(node.value), known))
    signals = [signal.name for signal in program.signals]
    private = [limit.name for limit in program.limits if limit.kind == "privacy"]
    for noun, given, known in (
        ("signal", case.context.signals, signals),
        ("privacy rule", case.context.spent, private),
    ):
        for name in sorted(set(given) - set(known)):
            message = f"policy `{program.name}` has no {noun} `{name}`"
            yield Diagnostic("GW428", message, case.span, did_you_mean(name, known))


def rule_names(program: Program) -> list[str]:
    """Return the names of all rules that a decision may list."""
    groups = (program.grants, program.limits, program.modulations, program.assertions)
    return sorted(rule.name for group in groups for rule in group)
