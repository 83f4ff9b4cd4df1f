"""What a planned run would do to the budgets of a policy's privacy rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from gradwarden.cli.output import emit_table
from gradwarden.policy.frozen import frozen

if TYPE_CHECKING:
    from gradwarden.policy.program import Program
    from gradwarden.runtime.privacy.accounting import PrivacyRule


@frozen
class PlannedBudget:
    """One privacy rule over a planned run.

    sampling_rate: the chance of a unit to be in a step. noise_multiplier: the standard deviation of the noise
    over the rule's clip. lasts: for how many of the run's steps.
    """

    rule: PrivacyRule
    sampling_rate: float
    noise_multiplier: float
    steps: int
    lasts: int

    @property
    def lasting(self) -> bool:
        return self.lasts >= self.steps

    def epsilon(self) -> float:
        """Return what the whole run would cost."""
        from gradwarden.runtime.privacy.accounting import epsilon

        return epsilon(self.noise_multiplier, self.sampling_rate, self.steps, self.rule.delta)

    def needed(self) -> float | None:
        """Return the least noise multiplier under which the budget lasts the run; None if none is enough."""
        from gradwarden.runtime.errors import PrivacyError
        from gradwarden.runtime.privacy.accounting import noise_multiplier_for

        try:
            return noise_multiplier_for(self.rule.epsilon, self.rule.delta, self.sampling_rate, self.steps)
        except PrivacyError:
            return None


@frozen
class RunBudgets:
    """The budgets over a run of so many steps, units drawn at a rate. chosen: whether the noise was given."""

    steps: int
    sampling_rate: float
    sigma: float
    chosen: bool
    rules: tuple[PlannedBudget, ...]

    @property
    def lasting(self) -> bool:
        return all(planned.lasting for planned in self.rules)


def plan_budgets(program: Program, steps: int, rate: float, noise: float | None) -> RunBudgets:
    """Return what a run would cost. noise: its standard deviation over the greatest clip of the rules; None
    for the least under which every budget lasts.

    Raises PrivacyError without the accounting library, and where no noise is enough.
    """
    from gradwarden.runtime.privacy.accounting import JointPlan, privacy_rules

    rules = privacy_rules(program)
    if noise is None:
        plan = JointPlan.for_steps(rules, rate, steps)
    else:
        plan = JointPlan.for_noise(rules, rate, noise)
    planned = tuple(
        PlannedBudget(entry.rule, rate, entry.noise_multiplier, steps, entry.steps) for entry in plan.rules
    )
    return RunBudgets(steps, rate, plan.sigma, noise is not None, planned)


def show_budgets(budgets: RunBudgets) -> None:
    """Print the budgets as a table, and what would make them last."""
    from gradwarden.runtime.privacy.accounting import epsilon_text

    if not budgets.rules:
        click.echo("\nno privacy rule: no budget is spent")
        return
    click.echo(
        f"\nprivacy over {budgets.steps:,} steps, units drawn with probability {budgets.sampling_rate:g}"
    )
    rows = [
        (
            planned.rule.name,
            planned.rule.unit or "example",
            f"{planned.noise_multiplier:.3f}",
            epsilon_text(planned.epsilon()),
            f"{planned.rule.epsilon:g}",
            "the whole run" if planned.lasting else f"{planned.lasts:,}",
            "-" if (needed := planned.needed()) is None else f"{needed:.3f}",
        )
        for planned in budgets.rules
    ]
    titles = ("rule", "unit", "noise / clip", "epsilon of the run", "allowed", "lasts", "noise / clip needed")
    emit_table(titles, rows, numeric=(2, 3, 4, 5, 6))
    short = [planned for planned in budgets.rules if not planned.lasting]
    halting = [f"`{planned.rule.name}`" for planned in short if planned.rule.halts]
    if halting:
        click.echo(f"the run halts when the budget of {' or '.join(halting)} is spent")
    elif short:
        click.echo("a spent budget refuses the rule's examples from then on; the run goes on without them")


def budgets_to_json(budgets: RunBudgets) -> dict[str, Any]:
    """Return the budgets as JSON data; an epsilon that is not finite is the string `inf`."""
    from gradwarden.runtime.privacy.accounting import epsilon_text

    return {
        "steps": budgets.steps,
        "sampling_rate": budgets.sampling_rate,
        "sigma": budgets.sigma,
        "lasting": budgets.lasting,
        "rules": [
            {
                "rule": planned.rule.name,
                "unit": planned.rule.unit,
                "noise_multiplier": planned.noise_multiplier,
                "epsilon": epsilon_text(planned.epsilon()),
                "allowed": planned.rule.epsilon,
                "delta": planned.rule.delta,
                "lasts": planned.lasts,
                "needed_noise_multiplier": planned.needed(),
            }
            for planned in budgets.rules
        ],
    }
