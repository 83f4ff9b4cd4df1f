"""Reads what some lints need besides the policy: a data set, and the plan of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gradwarden.cli.output import arrived, progress
from gradwarden.policy.frozen import frozen

if TYPE_CHECKING:
    from gradwarden.policy.linting.subject import Finding
    from gradwarden.policy.load import Policy


@frozen
class RunPlan:
    """The run that is planned: its steps, the chance of a privacy unit to be in one, and the noise.

    noise_multiplier: the standard deviation of the noise over the greatest clip of the privacy rules.
    """

    steps: int
    sampling_rate: float
    noise_multiplier: float


def data_findings(policy: Policy, path: Path) -> tuple[Finding, ...]:
    """Return the findings of a policy over a manifest, which is read piece by piece.

    Raises InputError, OSError, ColumnsError.
    """
    from gradwarden.cli.manifest import open_manifest
    from gradwarden.policy.linting.data import Seen, lint_data
    from gradwarden.policy.linting.subject import Subject

    seen = Seen(policy.program)
    manifest = open_manifest(path, policy.program)
    with progress(f"reading {path.name}", manifest.total, manifest.unit) as advance:
        report = arrived(advance)
        for piece in manifest.pieces:
            seen.add(piece.columns, len(piece.places))
            report(piece.done)
    return tuple(lint_data(Subject.of(policy.checked), seen))


def run_findings(policy: Policy, plan: RunPlan) -> tuple[Finding, ...]:
    """Return the privacy budgets that do not last a planned run. Raises PrivacyError without the extra."""
    from gradwarden.cli.budget_plan import plan_budgets
    from gradwarden.policy.linting.subject import Report
    from gradwarden.runtime.privacy.accounting import epsilon_text

    report = Report()
    budgets = plan_budgets(policy.program, plan.steps, plan.sampling_rate, plan.noise_multiplier)
    for planned in budgets.rules:
        if planned.lasting:
            continue
        lasts = f"{planned.lasts:,} of {plan.steps:,} steps"
        then = "the run halts" if planned.rule.halts else "its examples are refused"
        message = f"the budget of `{planned.rule.name}` lasts {lasts}, then {then}"
        spent = epsilon_text(planned.epsilon())
        help = f"the whole run costs an epsilon of {spent}: add noise, or sample less"
        report.add("GW522", message, policy.rules[planned.rule.name], help)
    return tuple(report.findings)
