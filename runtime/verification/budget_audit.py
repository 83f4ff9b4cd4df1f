"""Checks a run's privacy budgets from its ledger: their terms, who pays, when they are spent, what they cost.

The terms in the opening must be the policy's. Which budgets are spent, and what the steps cost, is computed
anew with the accounting library; without it (`recomputes` is false) the rest is checked, and reports say so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from math import inf, nan
from typing import Any

from gradwarden.policy.program import Program
from gradwarden.runtime.errors import PrivacyError
from gradwarden.runtime.privacy.accounting import (
    JointPlan,
    PrivacyRule,
    RulePlan,
    epsilon_text,
    library_installed,
    privacy_rules,
    steps_within,
)
from gradwarden.runtime.verification.violation import ViolationError, names, number

EPSILON_ROUNDING = 1e-3
"""By how much an accounting library of another version may differ."""


SIGMA_ROUNDING = 1e-9
"""Noise multipliers are quotients of one standard deviation, rounded once each."""


class BudgetAudit:
    """Checks one run's budgets. Raises ViolationError, with the code `wrong_budget`.

    privacy, normaliser: from the opening. recomputes: whether spending is computed anew.
    """

    def __init__(self, privacy: Sequence[Mapping[str, str]], normaliser: str | None) -> None:
        self._declared = {terms["rule"]: terms for terms in privacy}
        self._repeated = len(self._declared) < len(privacy)
        self._normaliser = normaliser
        self.recomputes = library_installed() or not privacy
        self._plan: JointPlan | None = None
        self._rules: tuple[str, ...] = ()

    def check_terms(self, program: Program) -> None:
        """Check that the run was opened with the policy's privacy terms, and can keep them."""
        rules = privacy_rules(program)
        if self._repeated:
            raise _violation("the run was opened with terms for one rule twice")
        for rule in rules:
            terms = {
                "clip": repr(rule.clip),
                "unit": rule.unit,
                "epsilon": repr(rule.epsilon),
                "delta": repr(rule.delta),
            }
            if terms.items() - self._declared.get(rule.name, {}).items():
                raise _violation(f"the run was opened under other terms for `{rule.name}` than the policy's")
        strange = sorted(self._declared.keys() - {rule.name for rule in rules})
        if strange:
            raise _violation(f"the run was opened with {names(strange)}, which the policy lacks")
        if rules and self._normaliser is None:
            raise _violation("the run has privacy rules and no constant normaliser")
        self._check_noise()
        self._rules = tuple(rule.name for rule in rules)
        # Only now, since it takes time: a ledger cannot ask for more than the policy has rules.
        if self.recomputes and self._plan is None:
            try:
                self._plan = _plan(list(self._declared.values()))
            except PrivacyError as error:
                raise _violation(error.message) from error

    def _check_noise(self) -> None:
        """Check that the rules share one Gaussian: noise multiplier times clip is its standard deviation."""
        sigmas = [number(t["noise_multiplier"]) * number(t["clip"]) for t in self._declared.values()]
        if sigmas and not max(sigmas) <= min(sigmas) * (1 + SIGMA_ROUNDING):
            raise _violation("the privacy rules were opened with noise of different standard deviations")

    def check_spent(self, body: Mapping[str, Any], steps: Mapping[str, int]) -> None:
        """Check which budgets a step holds for spent. steps: paid for so far, by rule."""
        if self._plan is None:
            return
        spent = sorted(self._plan.spent(steps)) if self._rules else []
        if body["spent"] != spent:
            raise _violation(
                f"step {body['step']} holds the budgets of {names(body['spent'])} for spent; by the steps "
                f"recorded they are those of {names(spent)}"
            )

    def check_charge(self, body: Mapping[str, Any], spent: Collection[str], steps: Mapping[str, int]) -> None:
        """Check that a committed step is paid for. spent: as its intent says. steps: paid for before it."""
        due = {rule: steps.get(rule, 0) + (rule not in spent) for rule in self._rules}
        charged = {rule: spending["steps"] for rule, spending in body["privacy"].items()}
        if charged != due:
            raise _violation(
                f"step {body['step']} leaves the budgets at {_counts(charged)} steps; due are {_counts(due)}"
            )

    def understated(self, spending: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        """Say of each rule whose last recorded epsilon is less than what its steps cost."""
        if self._plan is None:
            return
        for rule, spent in spending.items():
            due = self._plan.epsilon(rule, spent["steps"])
            if not _epsilon(spent["epsilon"]) >= due * (1 - EPSILON_ROUNDING):
                yield (
                    f"`{rule}` is recorded to have cost epsilon `{spent['epsilon']}`; "
                    f"its {spent['steps']:,} steps cost {epsilon_text(due)}"
                )


def _plan(privacy: Sequence[Mapping[str, str]]) -> JointPlan:
    """Return the plan that an opening declares, without its bands."""
    plans = []
    for terms in privacy:
        rule = PrivacyRule(
            terms["rule"], number(terms["epsilon"]), number(terms["delta"]), number(terms["clip"]), ()
        )
        rate, noise = number(terms["sampling_rate"]), number(terms["noise_multiplier"])
        plans.append(RulePlan(rule, rate, noise, steps_within(rule.epsilon, rule.delta, rate, noise)))
    return JointPlan(0.0, tuple(plans))


def _epsilon(text: str) -> float:
    """Return a recorded epsilon; NaN where it is no number. Without noise it is recorded as `inf`."""
    try:
        return inf if text == "inf" else number(text)
    except ViolationError:
        return nan


def _counts(steps: Mapping[str, int]) -> str:
    return ", ".join(f"`{rule}` {count}" for rule, count in sorted(steps.items())) or "none"


def _violation(message: str) -> ViolationError:
    return ViolationError("wrong_budget", message)
