"""Runs policy tests: decides every case of a test file and compares with what it expects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gradwarden.policy.decision import Decision
from gradwarden.policy.errors import Diagnostic, PolicyError, did_you_mean
from gradwarden.policy.evaluation.partition import partition
from gradwarden.policy.program import SCALE, Program
from gradwarden.policy.testing.test_file import NAME_LISTS, Case, TestFile


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One expectation that a decision does not meet, both sides in the words of a test file."""

    key: str
    expected: str
    actual: str


@dataclass(frozen=True, slots=True)
class CaseResult:
    """The outcome of one case; it passed where there is no mismatch."""

    case: Case
    decision: Decision
    mismatches: tuple[Mismatch, ...]

    @property
    def passed(self) -> bool:
        return not self.mismatches


def run_case(program: Program, case: Case) -> CaseResult:
    """Decide one case and compare."""
    decision = program.decide(case.example, case.context)
    return CaseResult(case, decision, tuple(_compare(case, decision)))


def run_cases(program: Program, cases: Iterable[Case]) -> list[CaseResult]:
    """Decide every case. The names in them must have been checked (`check_fit`)."""
    return [run_case(program, case) for case in cases]


def check_fit(program: Program, tests: TestFile) -> None:
    """Raise PolicyError where cases do not fit the program (`fit_faults`)."""
    if faults := fit_faults(program, tests):
        raise PolicyError(faults)


def fit_faults(program: Program, tests: TestFile) -> list[Diagnostic]:
    """Return where cases do not fit the program.

    They may name bands, rules or signals that it does not have: such a case could pass without testing
    anything (a signal that nothing reads), or never. And where it reads `today`, every case needs a date.
    """
    rules = rule_names(program)
    signals = [signal.name for signal in program.signals]
    private = [limit.name for limit in program.limits if limit.kind == "privacy"]
    dated = partition(program).uses_today
    faults: list[Diagnostic] = []
    for case in tests.cases:
        if dated and case.context.at is None:
            message = f"policy `{program.name}` reads `today`, and this case has no date"
            faults.append(Diagnostic("GW429", message, case.span, "add `at: 2026-01-31` to its `context`"))
        for expectation in case.expect:
            known: Sequence[str] = rules if expectation.key in NAME_LISTS else program.band_names
            noun = "rule" if expectation.key in NAME_LISTS else "band"
            for node in expectation.names:
                if node.value not in known:
                    message = f"policy `{program.name}` has no {noun} `{node.value}`"
                    help = did_you_mean(str(node.value), known)
                    faults.append(Diagnostic("GW428", message, node.span, help))
        for noun, given, known in (
            ("signal", case.context.signals, signals),
            ("privacy rule", case.context.spent, private),
        ):
            for name in sorted(set(given) - set(known)):
                message = f"policy `{program.name}` has no {noun} `{name}`"
                faults.append(Diagnostic("GW428", message, case.span, did_you_mean(name, known)))
    return faults


def rule_names(program: Program) -> list[str]:
    """Return the names of all rules that a decision may list."""
    groups = (program.grants, program.limits, program.modulations, program.assertions)
    return sorted(rule.name for group in groups for rule in group)


def observe(decision: Decision, key: str) -> Any:
    """Return what a decision says under a key of `expect`, in a form to compare."""
    match key:
        case "weights":
            return dict(zip(decision.bands, decision.micro, strict=True))
        case "obligations":
            return tuple(sorted({obligation.kind for obligation in decision.obligations}))
        case "problems":
            return tuple(sorted({problem.attribute for problem in decision.problems}))
        case _:
            return getattr(decision, key)


def _compare(case: Case, decision: Decision) -> Iterable[Mismatch]:
    for expectation in case.expect:
        actual = observe(decision, expectation.key)
        expected = expectation.value
        if expectation.key == "weights":
            differing = [band for band, weight in expected.items() if actual.get(band) != weight]
            expected = {band: expected[band] for band in differing}
            actual = {band: actual.get(band) for band in differing}
        if expected != actual:
            yield Mismatch(expectation.key, _show(expected), _show(actual))


def _show(value: Any) -> str:
    match value:
        case None:
            return "null"
        case dict():
            return "{" + ", ".join(f"{band}: {show_weight(weight)}" for band, weight in value.items()) + "}"
        case tuple():
            return "[" + ", ".join(value) + "]"
        case _:
            return str(value)


def show_weight(micro: int | None) -> str:
    """Return a weight in millionths as the shortest decimal: `1`, `0.5`, `0.333333`."""
    if micro is None:
        return "null"
    whole, fraction = divmod(micro, SCALE)
    return f"{whole}.{fraction:06d}".rstrip("0").rstrip(".")
