"""Checks a run's privacy budgets from its ledger: their terms, who pays, when they are spent, what they cost.

The terms in the opening must be the policy's. What the steps cost is worked out by the verifier's own code
(`epsilon_bounds`), from both sides: a recorded epsilon that is less than it can be, and a budget that is
overdrawn, are violations. When exactly a budget is spent is a matter of training's accounting library; where
that is not installed (`to_the_step` is false), it is checked within those bounds, and reports say so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from gradwarden.runtime.verification.epsilon_bounds import EpsilonBounds, epsilon_bounds
from gradwarden.runtime.verification.violation import ViolationError, names, number

EPSILON_ROUNDING = 1e-3
"""By how much an accounting library of another version may differ."""


SIGMA_ROUNDING = 1e-9
"""Noise multipliers are quotients of one standard deviation, rounded once each."""


@dataclass(frozen=True, slots=True)
class _Terms:
    """The declared terms of one rule, as numbers."""

    rule: PrivacyRule
    sampling_rate: float
    noise_multiplier: float

    def bounds(self, steps: int) -> EpsilonBounds:
        return epsilon_bounds(self.noise_multiplier, self.sampling_rate, steps, self.rule.delta)


class BudgetAudit:
    """Checks one run's budgets. Raises ViolationError, with the code `wrong_budget`.

    privacy, normaliser: from the opening. to_the_step: whether the accounting library is there to say exactly
    when a budget is spent.
    """

    def __init__(self, privacy: Sequence[Mapping[str, str]], normaliser: str | None) -> None:
        self._declared = {terms["rule"]: terms for terms in privacy}
        self._repeated = len(self._declared) < len(privacy)
        self._normaliser = normaliser
        self.to_the_step = self._is_exact()
        self._terms: dict[str, _Terms] = {}
        self._plan: JointPlan | None = None
        self._rules: tuple[str, ...] = ()
        self.withholds = any(terms["records"] == "public" for terms in privacy)
        """Whether the ledger holds public examples alone."""
        self._halting: frozenset[str] = frozenset()
        self._held: frozenset[str] = frozenset()
        """The rules that were last held for spent."""

    def go_on(self, program: Program) -> None:
        """Work out again what the terms come to, after another audit left off. program: the one in force."""
        self.to_the_step = self._is_exact()
        self.check_terms(program)

    def _is_exact(self) -> bool:
        return library_installed() or not self._declared

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
        self._check_noise(rules)
        self._rules = tuple(rule.name for rule in rules)
        self._halting = frozenset(rule.name for rule in rules if rule.halts)
        self._terms = {rule: _terms(self._declared[rule]) for rule in self._rules}
        # Only now, since it takes time: a ledger cannot ask for more than the policy has rules.
        if self.to_the_step and self._plan is None:
            try:
                self._plan = _plan(self._terms.values())
            except PrivacyError as error:
                raise _violation(error.message) from error

    def _check_noise(self, rules: Collection[PrivacyRule]) -> None:
        """Check that the rules share one Gaussian: noise multiplier times clip is its standard deviation."""
        sigmas = [number(t["noise_multiplier"]) * number(t["clip"]) for t in self._declared.values()]
        if sigmas and not max(sigmas) <= min(sigmas) * (1 + SIGMA_ROUNDING):
            raise _violation("the privacy rules were opened with noise of different standard deviations")
        for rule in rules:
            if max(sigmas) > rule.most_noise * (1 + SIGMA_ROUNDING):
                raise _violation(f"the run was opened with more noise than `{rule.name}` allows")

    def check_spent(self, body: Mapping[str, Any], steps: Mapping[str, int]) -> None:
        """Check which budgets a step holds for spent. steps: paid for so far, by rule."""
        spent = sorted(self._held | self._newly_spent(body["spent"], steps))
        if body["spent"] != spent:
            raise _violation(
                f"step {body['step']} holds the budgets of {names(body['spent'])} for spent; by the steps "
                f"recorded they are those of {names(spent)}"
            )
        self._held = frozenset(spent)
        halting = sorted(self._held & self._halting)
        if halting:
            raise _violation(
                f"step {body['step']} was begun with the budget of {names(halting)} spent, where the policy "
                f"halts the run"
            )

    def check_halt(self, body: Mapping[str, Any], steps: Mapping[str, int]) -> None:
        """Check that a run that is said to halt had to. steps: paid for so far, by rule."""
        rule, count = body["rule"], body["steps"]
        due = rule in self._halting and rule in self._newly_spent([rule], steps)
        if not due or steps.get(rule, 0) != count:
            raise _violation(f"the run is said to halt after {count:,} steps of `{rule}`, and need not")

    def check_paid(self, claimed: Mapping[str, int], steps: Mapping[str, int]) -> None:
        """Check that what all ranks of a job are said to have paid for is no less than this one has."""
        if any(rule not in self._rules or count < steps.get(rule, 0) for rule, count in claimed.items()):
            raise _violation(
                f"the ranks are said to have paid for {_counts(claimed)} steps; this one has paid for "
                f"{_counts(steps)}"
            )

    def _newly_spent(self, claimed: Collection[str], steps: Mapping[str, int]) -> frozenset[str]:
        """Return the rules that are spent and have not been; without the library, those that may well be."""
        if self._plan is not None and self._rules:
            return self._plan.spent(steps)
        new = [rule for rule in self._rules if rule in claimed and rule not in self._held]
        return frozenset(
            rule
            for rule in new
            if self._terms[rule].bounds(steps.get(rule, 0) + 1).high > self._terms[rule].rule.epsilon
        )

    def check_charge(self, body: Mapping[str, Any], spent: Collection[str], steps: Mapping[str, int]) -> None:
        """Check that a committed step is paid for. spent: as its intent says. steps: paid for before it."""
        due = {rule: steps.get(rule, 0) + (rule not in spent) for rule in self._rules}
        charged = {rule: spending["steps"] for rule, spending in body["privacy"].items()}
        if charged != due:
            raise _violation(
                f"step {body['step']} leaves the budgets at {_counts(charged)} steps; due are {_counts(due)}"
            )

    def bounds(self, spending: Mapping[str, Mapping[str, Any]]) -> dict[str, EpsilonBounds]:
        """Return between what the cost of each rule lies. spending: as last recorded, by rule."""
        return {
            rule: terms.bounds(spending[rule]["steps"])
            for rule, terms in self._terms.items()
            if rule in spending
        }

    def wrong(self, spending: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        """Say of each rule whose steps cost more than is recorded last, or more than its budget."""
        for rule, bounds in self.bounds(spending).items():
            recorded, steps = spending[rule]["epsilon"], spending[rule]["steps"]
            accounted = 0.0 if self._plan is None else self._plan.epsilon(rule, steps)
            due = max(bounds.low, accounted * (1 - EPSILON_ROUNDING))
            budget = self._terms[rule].rule.epsilon
            if not _epsilon(recorded) >= due:
                yield (
                    f"`{rule}` is recorded to have cost epsilon `{recorded}`; "
                    f"its {steps:,} steps cost at least {epsilon_text(due)}"
                )
            elif bounds.low > budget:
                yield (
                    f"`{rule}` is overdrawn: its {steps:,} steps cost at least epsilon "
                    f"{epsilon_text(bounds.low)}, and its budget is {epsilon_text(budget)}"
                )


def _terms(declared: Mapping[str, str]) -> _Terms:
    """Return declared terms as numbers, without the rule's bands."""
    rule = PrivacyRule(
        declared["rule"],
        number(declared["epsilon"]),
        number(declared["delta"]),
        number(declared["clip"]),
        (),
        declared["unit"],
    )
    rate, noise = number(declared["sampling_rate"]), number(declared["noise_multiplier"])
    if not (0.0 <= rate <= 1.0 and 0.0 < rule.delta < 1.0 and noise >= 0.0):
        raise _violation(
            f"the run was opened with a rate, noise or delta for `{rule.name}` that has no meaning"
        )
    return _Terms(rule, rate, noise)


def _plan(terms: Collection[_Terms]) -> JointPlan:
    """Return the plan that an opening declares, without its bands."""
    return JointPlan(
        0.0,
        tuple(
            RulePlan(
                of.rule,
                of.sampling_rate,
                of.noise_multiplier,
                steps_within(of.rule.epsilon, of.rule.delta, of.sampling_rate, of.noise_multiplier),
            )
            for of in terms
        ),
    )


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
