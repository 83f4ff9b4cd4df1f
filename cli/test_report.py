"""What `gradwarden test` reports: results, coverage and surviving mutants, as text, JSON or JUnit XML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradwarden.cli.case_report import (
    assignment_text,
    context_json,
    counterexample_lines,
    decisions_apart,
    difference_lines,
    example_lines,
    plain,
)
from gradwarden.cli.diagnostics import plural, printable
from gradwarden.cli.output import emit_json, emit_table
from gradwarden.policy.frozen import frozen
from gradwarden.policy.testing.inputs import inputs_of

if TYPE_CHECKING:
    from gradwarden.policy.program import Program
    from gradwarden.policy.source import Span
    from gradwarden.policy.testing.coverage import Coverage, Gap
    from gradwarden.policy.testing.mutation import Campaign, Survivor
    from gradwarden.policy.testing.runner import CaseResult
    from gradwarden.policy.testing.test_file import TestFile


@frozen
class Suite:
    """The results of all test files of one policy. `rules`: where each rule is named in its text."""

    policy: Path
    program: Program
    rules: Mapping[str, Span]
    files: tuple[TestFile, ...]
    results: tuple[CaseResult, ...]
    seconds: tuple[float, ...]
    """How long each result took."""

    def place(self, rule: str) -> str:
        """Return where a rule stands, for the beginning of a message; nothing where it is not known."""
        return f"{self.rules[rule]}: " if rule in self.rules else ""

    @property
    def failures(self) -> list[CaseResult]:
        return [result for result in self.results if not result.passed]


@frozen
class Report:
    """One suite with what was measured about it."""

    suite: Suite
    coverage: Coverage | None
    campaign: Campaign | None


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
    elif output_format in ("sarif", "github"):
        from gradwarden.cli.sarif import to_github, to_sarif
        from gradwarden.cli.test_findings import MEANINGS, findings

        found = [finding for report in reports for finding in findings(report, minimum)]
        if output_format == "sarif":
            emit_json(to_sarif(found, "test", MEANINGS))
        for finding in found if output_format == "github" else ():
            click.echo(to_github(finding))
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
        _show_coverage(report, report.coverage, minimum)
    if report.campaign is not None:
        _show_mutants(report, report.campaign)


def _show_coverage(report: Report, coverage: Coverage, minimum: float | None) -> None:
    rows = []
    for rule in coverage.rules:
        gaps = list(rule.gaps())
        parts = Counter(condition.part for condition in rule.conditions)
        told = [_gap_text(gap, several=parts[gap.part] > 1) for gap in gaps]
        rows.append((rule.rule, str(rule.matched), str(rule.unmatched), "; ".join(told)))
    emit_table(("rule", "matched", "not", "never seen"), rows, numeric=(1, 2))
    for rule in coverage.rules:
        whole = {(gap.part, gap.side) for gap in rule.gaps() if gap.whole}
        for gap in rule.gaps():
            covered = not gap.whole and (gap.part, gap.side) in whole  # the example for the whole closes it
            if not covered and (example := _example_for(report, gap)):
                place = report.suite.place(gap.rule)
                click.echo(f"  {place}{gap.rule}: for `{printable(gap.text)}` {gap.side}, add {example}")
    wanted = "" if minimum is None else f" (at least {minimum:g}% wanted)"
    colour = "red" if minimum is not None and coverage.percent < minimum else None
    figure = (
        f"coverage {coverage.percent:.1f}%: {coverage.reached} of {coverage.sides} outcomes of conditions"
    )
    click.echo(click.style(figure + wanted, fg=colour))


def _gap_text(gap: Gap, *, several: bool) -> str:
    if gap.whole:
        return f"{gap.part} (`{gap.text}`) never {gap.side}" if several else f"{gap.part} never {gap.side}"
    return f"`{gap.text}` in {gap.part} never {gap.side}"


def _example_for(report: Report, gap: Gap) -> str:
    from gradwarden.policy.testing.coverage import example_for

    found = example_for(report.suite.program, gap, report.suite.results)
    return "" if found is None else assignment_text(found)


def _show_mutants(report: Report, campaign: Campaign) -> None:
    killed = campaign.mutants - len(campaign.survivors)
    same = f"; {campaign.equivalent} more decide like the policy everywhere" * bool(campaign.equivalent)
    click.echo(f"mutants: {killed} of {campaign.mutants} noticed by a test{same}")
    for survivor in campaign.survivors:
        place = report.suite.place(survivor.rule)
        change = printable(survivor.change)
        click.echo(f"  {click.style('survived', fg='yellow')} {place}{survivor.rule}: {change}")
        if survivor.assignment is None:
            click.echo("      no example was found on which that makes a difference")
            continue
        decided, damaged = survivor.program_decision, survivor.mutant_decision
        assert decided is not None, "kept beside the example"
        assert damaged is not None, "kept beside the example"
        for line in example_lines(*inputs_of(survivor.assignment)):
            click.echo(f"      {line}")
        for line in decisions_apart(decided, damaged):
            click.echo(f"      {line}")


def _to_json(reports: Sequence[Report], minimum: float | None) -> dict[str, Any]:
    failed = sum(len(report.suite.failures) for report in reports)
    cases = sum(len(report.suite.results) for report in reports)
    survived = any(report.campaign and report.campaign.survivors for report in reports)
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
        data["coverage"] = _coverage_json(report, report.coverage)
    if report.campaign is not None:
        data["mutation"] = {
            "mutants": report.campaign.mutants,
            "equivalent": report.campaign.equivalent,
            "survivors": [_survivor_json(survivor) for survivor in report.campaign.survivors],
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


def _survivor_json(survivor: Survivor) -> dict[str, Any]:
    data: dict[str, Any] = {"rule": survivor.rule, "change": survivor.change, "example": None}
    if survivor.assignment is not None:
        example, context = inputs_of(survivor.assignment)
        data["example"] = {"example": plain(example), "context": context_json(context)}
        assert survivor.program_decision is not None, "kept beside the example"
        assert survivor.mutant_decision is not None, "kept beside the example"
        data["decision"] = survivor.program_decision.to_json()
        data["damaged"] = survivor.mutant_decision.to_json()
    return data


def _coverage_json(report: Report, coverage: Coverage) -> dict[str, Any]:
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
                    {
                        "part": condition.part,
                        "condition": condition.text,
                        "true": condition.true,
                        "false": condition.false,
                        "parts": [
                            {"test": p.text, "true": p.true, "false": p.false} for p in condition.parts
                        ],
                    }
                    for condition in rule.conditions
                ],
            }
            for rule in coverage.rules
        ],
        "missing": [
            {
                "rule": gap.rule,
                "part": gap.part,
                "condition": gap.text,
                "never": gap.side,
                "add": _example_for(report, gap) or None,
            }
            for gap in coverage.gaps()
        ],
    }
