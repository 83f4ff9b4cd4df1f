"""What tests found wrong, as findings with codes and places, for SARIF and for annotations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gradwarden.cli.case_report import assignment_text, counterexample_lines
from gradwarden.policy.errors import Diagnostic
from gradwarden.policy.source import Source, Span

if TYPE_CHECKING:
    from gradwarden.cli.test_report import Report, Suite
    from gradwarden.policy.testing.runner import CaseResult

FAILED = "GW480"
SURVIVED = "GW481"
UNCOVERED = "GW482"

MEANINGS = {
    FAILED: "a test case fails",
    SURVIVED: "a damaged policy passes all tests",
    UNCOVERED: "an outcome of a condition that no case reaches, where more coverage is demanded",
}


def findings(report: Report, minimum: float | None) -> Iterator[Diagnostic]:
    """Yield each failed case, each mutant that survived, and what is not covered where that is too much."""
    for result in report.suite.failures:
        yield _failure(result)
    for survivor in report.campaign.survivors if report.campaign else ():
        message = f"no test notices when, in rule `{survivor.rule}`, {survivor.change}"
        help = None
        if survivor.assignment is not None:
            help = f"add a case with {assignment_text(survivor.assignment)}"
        yield Diagnostic(SURVIVED, message, _place(report.suite, survivor.rule), help)
    coverage = report.coverage
    if coverage is not None and minimum is not None and coverage.percent < minimum:
        for gap in coverage.gaps():
            message = f"no case of rule `{gap.rule}` makes `{gap.text}` {gap.side}"
            lacking = f"coverage is {coverage.percent:.1f}%, at least {minimum:g}% is wanted"
            yield Diagnostic(UNCOVERED, message, _place(report.suite, gap.rule), lacking)


def _failure(result: CaseResult) -> Diagnostic:
    told = "; ".join(f"{m.key}: expected {m.expected}, decided {m.actual}" for m in result.mismatches)
    shown = " ".join(line.strip() for line in counterexample_lines(result)) or None
    return Diagnostic(FAILED, f"`{result.case.name}` fails: {told}", result.case.span, shown)


def _place(suite: Suite, rule: str) -> Span:
    """Return where a rule is named, or the policy as a whole."""
    return suite.rules.get(rule) or Span(Source(str(suite.policy), ""), 0, 0)
