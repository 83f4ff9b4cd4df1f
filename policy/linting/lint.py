"""All findings of a policy: what the checker warned of and what the lints see, less what comments allow."""

from __future__ import annotations

from gradwarden.policy.checking.check import CheckedPolicy
from gradwarden.policy.errors import Diagnostic
from gradwarden.policy.frozen import frozen
from gradwarden.policy.linting.allowances import apply_allowances
from gradwarden.policy.linting.declarations import lint_declarations
from gradwarden.policy.linting.effects import lint_effects
from gradwarden.policy.linting.logic import lint_conditions
from gradwarden.policy.linting.overlaps import lint_overlaps
from gradwarden.policy.linting.privacy import lint_privacy
from gradwarden.policy.linting.registry import Input
from gradwarden.policy.linting.roundabout import lint_wording, mended_has
from gradwarden.policy.linting.subject import Finding, Report, Subject
from gradwarden.policy.linting.times import lint_dates, lint_retention, lint_stages


@frozen
class Given:
    """What the lints are told besides the policy.

    today: the day of the check, in days since 1970-01-01; None: lints of dates do not run. epoch_days: how
    many days an epoch takes. found: findings of lints that had inputs of other kinds (data, a planned run),
    and `inputs`, those kinds.
    """

    today: int | None = None
    epoch_days: int | None = None
    found: tuple[Finding, ...] = ()
    inputs: frozenset[Input] = frozenset()


NOTHING = Given()


def lint(checked: CheckedPolicy, given: Given = NOTHING) -> list[Finding]:
    """Return the findings of a policy, sorted by position, each with the edits that mend it, if any do."""
    subject = Subject.of(checked)
    report = Report()
    lint_declarations(subject, report)
    lint_conditions(subject, report)
    lint_overlaps(subject, report)
    lint_effects(subject, report)
    lint_privacy(subject, report)
    lint_stages(subject, report)
    lint_wording(subject, report)
    inputs = set(given.inputs)
    if given.today is not None:
        inputs.add("date")
        lint_dates(subject, report, given.today)
        if given.epoch_days is not None:
            inputs.add("epoch")
            lint_retention(subject, report, given.today, given.epoch_days)
    mended = {id(finding.diagnostic): finding for finding in mended_has(subject)}
    early = [mended.get(id(diagnostic), Finding(diagnostic)) for diagnostic in subject.early]
    found = apply_allowances(subject.files, [*early, *report.findings, *given.found], frozenset(inputs))
    return sorted(found, key=lambda finding: Diagnostic.sort_key(finding.diagnostic))
