"""What `gradwarden test` reports: results, coverage and surviving mutants, as text, JSON or JUnit XML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradwarden.cli.case_report import context_json, counterexample_lines, difference_lines, plain
from gradwarden.cli.diagnostics import plural
from gradwarden.cli.output import emit_json, emit_table

if TYPE_CHECKING:
    from gradwarden.policy.program import Program
    from gradwarden.policy.testing.coverage import Coverage
    from gradwarden.policy.testing.mutation import Mutant
    from gradwarden.policy.testing.runner import CaseResult
    from gradwarden.policy.testing.test_file import TestFile


@dataclass(frozen=True, slots=True)
class Suite:
    """The results of all test files of one policy."""

    policy: Path
    program: Program
    files: tuple[TestFile, ...]
    results: tuple[CaseResult, ...]
    seconds: tuple[float, ...]
    """How long each result took."""

    @property
    def failures(self) -> list[CaseResult]:
        return [result for result in self.results if not result.passed]


@dataclass(frozen=True, slots=True)
class Report:
    """One suite with what was measured about it."""

    suite: Suite
    coverage: Coverage | None
    mutants: int
    survivors: tuple[Mutant, ...]


def too_low(report: Report, minimum: float | None) -> bool:
    """Return whether a report's coverage is below the minimum asked for."""
    return minimum is not None and report.coverage is not None and report.coverage.percent < minimum


def show(reports: Sequence[Report], output_format: str, minimum: float | None) -> None:
    """Write the reports to standard output."""
    if output_format == "json":
        emit_json(_to_json(reports, minimum))
    elif output_format == "junit":
        from gradwarden.cli.junit import to_junit

        click.echo(to_junit([report.suite for report in reports], datetime.now(UTC)))
    else:
        for report in reports:
            _show_text(report, minimum)


def _show_text(report: Report, minimum: float | None) -> None:
    from gradwarden.cli.explanation import explanation_lines
    from gradwarden.policy.evaluation.explain import explain

    suite = report.suite
    for result in suite.failures:
        span = result.case.span
        click.echo(f"{click.style('FAILED', fg='red', bold=True)} {span}: {result.case.name}")
        for line in (*difference_lines(result), *counterexample_lines(result)):
            click.echo(f"    {line}")
        explanation = explain(suite.program, result.case.example, result.case.context)
        for line in explanation_lines(explanation):
            click.echo(f"    | {line}")
        click.echo()
    passed, failed = len(suite.results) - len(suite.failures), len(suite.failures)
    outcome = click.style(f"{failed} failed", fg="red") if failed else click.style("all passed", fg="green")
    click.echo(
        f"{suite.policy}: {plural(len(suite.results), 'case')}, {outcome}"
        + (f", {passed} passed" * bool(failed))
    )
    if report.coverage is not None:
        _show_coverage(report.coverage, minimum)
    if report.mutants:
        _show_mutants(report)


def _show_coverage(coverage: Coverage, minimum: float | None) -> None:
    rows = []
    for rule in coverage.rules:
        parts = Counter(condition.part for condition in rule.conditions)
        missing = [
            f"{c.part} (`{c.text}`) never {side}" if parts[c.part] > 1 else f"{c.part} never {side}"
            for c in rule.conditions
            for side in c.missing
        ]
        rows.append((rule.rule, str(rule.matched), str(rule.unmatched), "; ".join(missing)))
    emit_table(("rule", "matched", "not", "never seen"), rows, numeric=(1, 2))
    wanted = "" if minimum is None else f" (at least {minimum:g}% wanted)"
    colour = "red" if minimum is not None and coverage.percent < minimum else None
    figure = (
        f"coverage {coverage.percent:.1f}%: {coverage.reached} of {coverage.sides} outcomes of conditions"
    )
    click.echo(click.style(figure + wanted, fg=colour))


def _show_mutants(report: Report) -> None:
    killed = report.mutants - len(report.survivors)
    click.echo(f"mutants: {killed} of {report.mutants} noticed by a test")
    for mutant in report.survivors:
        click.echo(f"  {click.style('survived', fg='yellow')} {mutant.rule}: {mutant.change}")


def _to_json(reports: Sequence[Report], minimum: float | None) -> dict[str, Any]:
    failed = sum(len(report.suite.failures) for report in reports)
    cases = sum(len(report.suite.results) for report in reports)
    survived = any(report.survivors for report in reports)
    low = any(too_low(report, minimum) for report in reports)
    return {
        "ok": bool(cases) and not failed and not survived and not low,
        "cases": cases,
        "failed": failed,
        "suites": [_suite_json(report) for report in reports],
    }


def _suite_json(report: Report) -> dict[str, Any]:
    suite = report.suite
    data: dict[str, Any] = {
        "policy": str(suite.policy),
        "name": suite.program.name,
        "files": [str(tests.path) for tests in suite.files],
        "cases": [_case_json(result) for result in suite.results],
    }
    if report.coverage is not None:
        data["coverage"] = _coverage_json(report.coverage)
    if report.mutants:
        data["mutation"] = {
            "mutants": report.mutants,
            "survivors": [{"rule": m.rule, "change": m.change} for m in report.survivors],
        }
    return data


def _case_json(result: CaseResult) -> dict[str, Any]:
    data: dict[str, Any] = {
        "name": result.case.name,
        "file": result.case.span.source.name,
        "line": result.case.span.line,
        "passed": result.passed,
        "tried": len(result.tried),
        "mismatches": [{"key": m.key, "expected": m.expected, "actual": m.actual} for m in result.mismatches],
        "decision": result.decision.to_json(),
    }
    if result.is_counterexample:
        data["counterexample"] = {
            "example": plain(result.case.example),
            "context": context_json(result.case.context),
        }
    return data


def _coverage_json(coverage: Coverage) -> dict[str, Any]:
    return {
        "percent": round(coverage.percent, 2),
        "outcomes": coverage.sides,
        "seen": coverage.reached,
        "rules": [
            {
                "rule": rule.rule,
                "matched": rule.matched,
                "not_matched": rule.unmatched,
                "conditions": [
                    {"part": c.part, "condition": c.text, "true": c.true, "false": c.false}
                    for c in rule.conditions
                ],
            }
            for rule in coverage.rules
        ],
    }
