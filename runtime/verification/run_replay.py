"""Replays a run from its ledger: every decision, exposure, budget and outcome is worked out again.

A run replays where each step's decisions are what the program in force gives for the recorded inputs, its
exposures and spent budgets are what earlier entries add up to, and its outcome is one that its decisions
allow. The first entry that does not fit is named (`Finding.code`): `policy_mismatch` (another policy than
the one given), `program_damaged`, `unapproved_policy`, `wrong_approval`, `wrong_classes`, `wrong_step`,
`wrong_decision`, `wrong_exposures`, `wrong_budget`, `wrong_anchor`, `wrong_drift`, `wrong_rehearsal`,
`wrong_outcome`, `wrong_totals`, `wrong_base`, `wrong_tally`, `wrong_rewind`, `wrong_tensors`,
`frozen_moved`, `wrong_supply`, `wrong_contribution`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from gradwarden.policy.array_types import Numbers
from gradwarden.policy.errors import GradwardenError
from gradwarden.policy.evaluation.chosen_steps import any_chosen
from gradwarden.policy.program import Program
from gradwarden.runtime.errors import NoteError
from gradwarden.runtime.evidence.supply import MOST_SUPPLIES, describe_supply
from gradwarden.runtime.ledger.chain import ChainReport, Finding
from gradwarden.runtime.ledger.entries import Entry
from gradwarden.runtime.ledger.lines import Part
from gradwarden.runtime.ledger.program_signature import NOBODY, Approvers
from gradwarden.runtime.ledger.turns import Turns
from gradwarden.runtime.privacy.accounting import epsilon_text, privacy_rules
from gradwarden.runtime.records.history import History, PendingStep
from gradwarden.runtime.verification.approval_audit import ApprovalAudit
from gradwarden.runtime.verification.budget_audit import BudgetAudit
from gradwarden.runtime.verification.contribution_audit import ContributionAudit
from gradwarden.runtime.verification.decision_audit import DecisionAudit
from gradwarden.runtime.verification.drift_measure import AnchoredBand
from gradwarden.runtime.verification.example_audit import ExampleAudit
from gradwarden.runtime.verification.key_periods import Calendar
from gradwarden.runtime.verification.maintenance_audit import MaintenanceAudit
from gradwarden.runtime.verification.outcome_audit import OutcomeAudit
from gradwarden.runtime.verification.program_audit import ProgramAudit
from gradwarden.runtime.verification.restart_audit import RestartAudit, restart_facts
from gradwarden.runtime.verification.step_order import (
    check_begin,
    check_between,
    check_part,
    check_sealed,
    pending_step,
)
from gradwarden.runtime.verification.violation import ViolationError, number
from gradwarden.runtime.verification.weight_audit import WeightAudit

_UNFIT = {"opened": "wrong_budget", "classes": "wrong_classes", "step": "wrong_step"}
"""What is wrong with an entry of a kind that the program, or the accountant, cannot make sense of."""


SHORTEST = 4
"""Steps that are worth being judged together."""

MOST_TALLIES = 8
"""Tallies of one run that are made again; each takes another pass through the ledger."""


@dataclass(frozen=True, slots=True)
class _InForce:
    """What a complete program gives to judge by.

    plain: whether the program has neither budgets nor maintained bands. recorded: see `Program`.
    """

    outcomes: OutcomeAudit
    plain: bool
    recorded: int


def _committed(turns: Turns) -> Numbers:
    """Return the steps that were committed, int64."""
    return np.array(
        [step for step, kept in zip(turns.numbers, turns.committed, strict=True) if kept], np.int64
    )


class HistoryWithoutExamples(History):
    """A history in which no example is told from another; `ExampleAudit` does that."""

    def expose(self, step: PendingStep) -> int:
        return len(list(filter(None, step.weights())))


class RunReplay:
    """Recomputes a run from its entries; stops judging at the first violation.

    expected: the programs that it may have been governed by; any where none are given. approvers: who must
    have signed them.
    """

    def __init__(self, expected: Sequence[Program], approvers: Approvers = NOBODY) -> None:
        self._programs = ProgramAudit(expected)
        self._approvals = ApprovalAudit(approvers)
        self._decisions = DecisionAudit()
        self._examples = ExampleAudit()
        self._history = HistoryWithoutExamples()
        self._in_force: _InForce | None = None
        self._first: Finding | None = None
        self._audit = BudgetAudit((), None)
        self._maintained = MaintenanceAudit()
        self._contributions = ContributionAudit()
        self._restarts = RestartAudit()
        self.weights = WeightAudit()
        self._clip_norm = inf
        self._member: Mapping[str, Any] | None = None
        """The ledger's place in a job, where it has one."""
        self._may_skip = False
        """Whether steps may be missing here: the run was just begun, or resumed."""
        self.base: Mapping[str, Any] | None = None
        """The run that this one goes on from, as it says."""
        self.supplied: list[dict[str, Any]] = []
        """The manifests that suppliers of data have signed, as the run says."""
        self.tallies: list[tuple[int, Mapping[str, Any]]] = []
        """The `tallied` entries, by index."""
        self.checkpoint: Mapping[str, Any] | None = None
        self.anchored: tuple[AnchoredBand, ...] = ()
        """The bands that were maintained when that was saved."""
        self.measured: dict[str, str] = {}
        self.calendar = Calendar()

    @property
    def settled(self) -> bool:
        """Whether nothing is wrong so far, and the program in force is known: then one can go on later."""
        return self._first is None and self._in_force is not None

    def go_on(self, expected: Sequence[Program], approvers: Approvers) -> None:
        """Take up where another replay left off that was settled, with all that it had but this.

        expected, approvers: the same that it was given.
        """
        program = self._maintained.program
        if program is None:
            raise ValueError("no program is in force")
        self._programs.go_on(expected)
        self._approvals.go_on(approvers)
        self._audit.go_on(program)
        self._put_in_force(program)

    def accept(self, part: Part) -> None:
        """Take the next part of the chain."""
        self.calendar.accept(part)
        if isinstance(part, Entry):
            self._accept(part.index, part.kind, part.body)
            return
        rows = self._examples.number(part.examples)
        if len(part.numbers) < SHORTEST or not self._accept_stretch(part, rows):
            for entry in part.entries():
                self._accept(*entry)

    def _accept_stretch(self, turns: Turns, rows: Numbers) -> bool:
        """Take steps and outcomes together; return whether that could be done, and all is well with them.

        rows: of their examples (`ExampleAudit.number`).
        """
        force, history = self._in_force, self._history
        if self._first is not None or history.pending is not None or force is None or not force.plain:
            return False
        if self._approvals.due:
            return False
        if force.recorded and any_chosen(_committed(turns), force.recorded):
            return False
        self._may_skip = False
        stretch = self._decisions.judge_together(turns, history.next_step, force.outcomes, history.decisions)
        if stretch is None or not self._examples.accept_turns(turns, rows):
            return False
        self._restarts.step(history.next_step)
        history.advance(stretch.steps, stretch.committed, stretch.learned)
        self.weights.move(stretch.active)
        self._decisions.take(stretch)
        return True

    def _accept(self, index: int, kind: str, body: Mapping[str, Any]) -> None:
        if self._first is not None:
            return
        try:
            self._before(index, kind, body)
            self._restarts.accept(index, kind, body, self._history)
            if kind == "tallied":
                self.tallies.append((index, body))
            self._history.apply(kind, body)
            if kind == "step":
                self._check_step(body)
            else:
                self._examples.accept(kind, body)
        except ViolationError as violation:
            self._first = Finding(violation.code, index, str(violation))
        except GradwardenError as error:
            code = _UNFIT.get(kind, "program_damaged")
            self._first = Finding(code, index, error.message)

    def findings(self, chain: ChainReport) -> Iterator[Finding]:
        """Yield what is wrong, given how far the chain holds."""
        if self._first is not None:
            yield self._first
        elif self._in_force is None and chain.sealed:
            yield Finding("program_damaged", chain.size - 1, "the ledger holds no complete program")
        elif chain.sealed and self._history.pending is not None:
            step = self._history.pending.step
            yield Finding("wrong_outcome", chain.size - 1, f"step {step} has no outcome")
        else:
            for message in self._audit.wrong(self._history.spending):
                yield Finding("wrong_budget", chain.size - 1, message)
            yield from self._restarts.findings()

    def facts(self) -> dict[str, Any]:
        history = self._history
        opened = history.opened or {}
        return {
            "run": opened.get("run"),
            "policy": opened.get("policy"),
            "approvals": self._approvals.facts(),
            "engine": opened.get("engine"),
            "base": self.base,
            "supplied": self.supplied,
            "bands": opened.get("bands"),
            "steps": history.next_step,
            "committed": history.committed,
            "refused": history.refused,
            **restart_facts(history),
            **self._decisions.facts(history.decisions),
            "exposures": history.example_count,
            "contributions": self._contributions.steps,
            "privacy": history.spending,
            "epsilon_bounds": self._epsilon_bounds(),
            "on_trust": sorted(
                {word for terms in opened.get("privacy", ()) for word in terms["on_trust"].split()}
            ),
            "private_recorded": any(terms["records"] == "all" for terms in opened.get("privacy", ())),
            "drift": self._maintained.drift,
            "drift_measured": self.measured,
            "budgets_recomputed": self._audit.to_the_step,
            **self.weights.facts(),
        }

    def _epsilon_bounds(self) -> dict[str, dict[str, str]]:
        """Return between what each recorded epsilon must lie, by the verifier's own reckoning."""
        bounds = self._audit.bounds(self._history.spending)
        return {
            rule: {"low": epsilon_text(between.low), "high": epsilon_text(between.high)}
            for rule, between in bounds.items()
        }

    def _before(self, index: int, kind: str, body: Mapping[str, Any]) -> None:
        """Check an entry against what came before it."""
        match kind:
            case "step":
                self._check_order(body)
            case "committed":
                self._check_committed(body)
            case "examples":
                check_part(body, self._history)
            case "refused":
                pending_step(body, self._history)
                self._maintained.check_refused(body["step"])
                self._contributions.check_refused(body["step"])
            case "anchored":
                self._ready()
                history = self._history
                within = history.pending is not None
                self._maintained.check_anchor(body, history.next_step, within_step=within)
            case "maintained":
                pending_step(body, self._history)
                self._maintained.check_measured(body)
            case "contributed" | "moved":
                pending = pending_step(body, self._history)
                self._contributions.accept(kind, body, pending.body["count"])
            case "halted":
                self._audit.check_halt(body, self._history.private_steps)
            case "classes":
                self._ready()
                self._decisions.declare_classes(body)
            case "decisions":
                self._ready()
                self._decisions.declare_decisions(body, withheld=self._audit.withholds)
            case "program":
                self._check_program(body)
            case "approved":
                self._approvals.approve(body["note"])
            case "opened":
                self._audit = BudgetAudit(body["privacy"], body["normaliser"])
                self._clip_norm = inf if body["clip_norm"] is None else number(body["clip_norm"])
                self._member = body.get("job")
                self._may_skip = self._member is not None
                self._replace_program(body["policy"])
            case "policy_changed":
                check_between(body, self._history, "the policy changes")
                self._replace_program(body["policy"])
            case "resumed":
                self._resume()
            case "skipped":
                self._check_skipped(body)
            case "paid":
                if not self._may_skip or body["step"] != self._history.next_step:
                    raise ViolationError("wrong_budget", "budgets are said to be paid for out of turn")
                self._audit.check_paid(body["rules"], self._history.private_steps)
            case "rewound":
                self.weights.rewind(body["checkpoint"]["digest"])
            case "tensors":
                self.weights.add_part(body)
            case "checkpoint":
                self._check_checkpoint(index, body)
            case "supplied":
                self._check_supply(body)
            case "derived":
                if self._history.next_step or self.base is not None:
                    raise ViolationError("wrong_base", "a base is named twice, or after the first step")
                self.base = body
            case "tallied" if self._history.pending is not None:
                raise ViolationError("wrong_tally", "the run was tallied in the middle of a step")
            case "tallied" if len(self.tallies) == MOST_TALLIES:
                raise ViolationError("wrong_tally", f"the run was tallied more than {MOST_TALLIES} times")
            case "sealed":
                check_sealed(body, self._history)

    # --- the program in force ------------------------------------------------------------------------------

    def _replace_program(self, policy: Mapping[str, Any]) -> None:
        self._programs.name(policy)
        self._approvals.take_program(None)
        self._in_force = None
        self._decisions.forget(self._history.decisions)

    def _check_supply(self, body: Mapping[str, Any]) -> None:
        if self._history.next_step or len(self.supplied) == MOST_SUPPLIES:
            raise ViolationError("wrong_supply", "data are supplied after the first step, or too often")
        try:
            self.supplied.append(describe_supply(body["note"].encode()))
        except NoteError as error:
            raise ViolationError("wrong_supply", error.message) from None

    def _resume(self) -> None:
        pending, force = self._history.pending, self._in_force
        lost: list[str] = []
        if pending is not None and force is not None:
            lost = force.outcomes.movable(self._decisions.reached, pending.body["spent"])
        self.weights.resume(lost)
        self._decisions.forget(self._history.decisions)
        self._maintained.forget()
        self._contributions.forget()
        self._may_skip = self._member is not None

    def _check_program(self, body: Mapping[str, Any]) -> None:
        program = self._programs.read(body, self._history)
        if program is None:
            return
        self._audit.check_terms(program)
        self._maintained.take_program(program)
        self._contributions.take_program(program, together=self._member is not None)
        self.weights.take_program(program)
        self._approvals.take_program(program)
        self._put_in_force(program)

    def _put_in_force(self, program: Program) -> None:
        self._decisions.take_program(program)
        self._in_force = _InForce(
            OutcomeAudit(program, self._clip_norm, together=self._member is not None),
            not privacy_rules(program) and not program.maintained,
            program.recorded,
        )

    def _ready(self) -> _InForce:
        if self._in_force is None:
            raise ViolationError("program_damaged", "no complete program comes before this entry")
        return self._in_force

    # --- steps ---------------------------------------------------------------------------------------------

    def _check_order(self, body: Mapping[str, Any]) -> None:
        check_begin(body, self._history)
        due = self._history.next_step
        self._may_skip = False
        self._approvals.check_step(due)
        self._restarts.step(due)
        self._maintained.check_step(due)

    def _check_skipped(self, body: Mapping[str, Any]) -> None:
        due = self._history.next_step
        if not self._may_skip or body["step"] != due or body["until"] <= due:
            raise ViolationError(
                "wrong_step", f"steps from {body['step']} on are left out where step {due} was due"
            )
        self.weights.move_all()

    def _check_step(self, body: Mapping[str, Any]) -> None:
        recorded = self._history.decisions
        verdict = self._decisions.read(body)
        self._examples.accept("step", body)
        self._ready()
        agreed = self._decisions.decide(body, recorded)
        self._audit.check_spent(body, self._history.private_steps)
        self._decisions.hold(body, agreed, verdict, recorded)

    # --- outcomes ------------------------------------------------------------------------------------------

    def _check_committed(self, body: Mapping[str, Any]) -> None:
        intent = pending_step(body, self._history).body
        spent = intent["spent"]
        self._maintained.check_rehearsed(intent, self._history.decisions)
        outcomes = self._ready().outcomes
        active = outcomes.check(body, self._decisions.reached, spent)
        outcomes.check_batch(body, intent["count"])
        self._maintained.check_outcome(body["step"], active)
        self._contributions.check_outcome(intent, body, self._history.decisions)
        self.weights.move(active)
        self._audit.check_charge(body, spent, self._history.private_steps)

    def _check_checkpoint(self, index: int, body: Mapping[str, Any]) -> None:
        check_between(body, self._history, "a checkpoint was saved")
        self.weights.take_checkpoint(index, body)
        self.checkpoint, self.anchored = body, self._maintained.standing()
