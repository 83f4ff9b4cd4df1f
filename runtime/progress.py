"""How far a run has come: which step is next, whether one is open, and what became of those before.

Whatever decides a step's outcome (`step_gates`) tells it here, and here it is counted and recorded: the
intent when a proposal begins, then its commit or its refusal.
"""

from __future__ import annotations

import warnings
from math import isnan
from typing import TYPE_CHECKING

from gradwarden.policy.decision import VERDICTS, step_verdict
from gradwarden.policy.evaluation.phrasing import share
from gradwarden.policy.program import Program
from gradwarden.runtime.errors import LedgerError, MaskError, StarvationHalt
from gradwarden.runtime.joining import Joined
from gradwarden.runtime.records.history import Counts
from gradwarden.runtime.steps.expiry import ExpiryWatch
from gradwarden.runtime.steps.gates import Finding
from gradwarden.runtime.steps.starvation import Reach, StarvationGuard

if TYPE_CHECKING:
    from gradwarden.runtime.steps.proposal import Proposal

LEVELS_TO_LOOP = 6
"""How many calls up from the warning of starvation the loop is that left the step's block."""


class Progress:
    """The steps of one run so far, and the record of them.

    next_step: the number of the next one. exposed: examples that the model learned from, once for each step
    that they shaped. abandoned: steps before the next one that did not lead to the weights in hand. open: the
    proposal that was begun and has no outcome yet. over: whether no step can come any more.
    """

    def __init__(self, joined: Joined) -> None:
        self._joined = joined
        self._expiries = ExpiryWatch()
        self._starvation = StarvationGuard(joined.bound.program)
        self.go_on(Counts())
        self.open: Proposal | None = None
        self.over = False

    def go_on(self, counts: Counts) -> None:
        """Count on from there."""
        self.next_step, self.committed, self.refused = counts.next_step, counts.committed, counts.refused
        self.exposed, self.abandoned = counts.exposed, counts.abandoned

    def go_back(self, effective: int) -> None:
        """Take up weights that so many steps have led to; numbers go on."""
        self.abandoned = self.next_step - effective

    @property
    def effective_steps(self) -> int:
        """How many steps led to the weights in hand."""
        return self.next_step - self.abandoned

    @property
    def totals(self) -> dict[str, int]:
        """What the ledger's seal says."""
        return {
            "steps": self.next_step,
            "committed": self.committed,
            "refused": self.refused,
            "examples": self.exposed,
        }

    def check_idle(self, what: str) -> None:
        """Raise LedgerError where the run is over, MaskError while a step is open.

        what: what cannot be done then, in words.
        """
        if self.over:
            raise LedgerError(f"{what}: the governor is closed")
        if self.open is not None:
            raise MaskError(f"{what} while a step is open", help="leave the step's `with` block first")

    def check_first(self, noun: str, done: str) -> None:
        """Raise LedgerError where a step was proposed already, and as `check_idle`.

        noun, done: what can only be done before the first step, in words.
        """
        self.check_idle(f"{noun} cannot be {done}")
        if self.next_step:
            raise LedgerError(f"{noun} is {done} before the first step", help="call it earlier")

    def follow(self, program: Program) -> None:
        """Watch the bands of another program from the next step on."""
        self._starvation = StarvationGuard(program)

    def propose(self, proposal: Proposal) -> None:
        """Record a proposal's intent; it is open from then on."""
        roster, recorder = self._joined.roster, self._joined.recorder
        recorder.classes(roster.new_classes())
        recorded = proposal.recorded
        admitted, verdict = proposal.admitted, proposal.verdict
        if not recorded.all():
            admitted = admitted.only(recorded)
            verdict = step_verdict({VERDICTS[code] for code in admitted.verdicts.tolist()})
        recorder.propose(admitted, roster.commitments(proposal.batch[recorded]), proposal.context, verdict)
        self.open = proposal
        self.next_step += 1
        for rule, count in self._expiries.observe(admitted):
            recorder.event("expired", {"step": proposal.context.step, "rule": rule, "count": count})

    def refuse(self, proposal: Proposal, finding: Finding) -> None:
        """Put back what the step has touched, and record why it was refused."""
        joined = self._joined
        finding = joined.scaling.refuse(finding)
        proposal.refusal = finding
        proposal.restore()
        joined.budgets.forget()
        self.refused += 1
        joined.recorder.refuse(proposal.context.step, finding.gate, finding.reason, finding.detail)
        joined.keeping.stepped(self.next_step)

    def commit(self, proposal: Proposal) -> None:
        """Count and record a step that the optimizer has taken.

        Raises StarvationHalt or BudgetHalt, after the record, where the policy halts the run.
        """
        joined, step = self._joined, proposal.context.step
        proposal.committed = True
        self.committed += 1
        learned = proposal.admitted.micro.any(axis=1)
        joined.roster.expose(proposal.batch[learned])
        self.exposed += int((learned & proposal.recorded).sum())
        norms = {band: _decimal(norm) for band, norm in proposal.norms.items()}
        loss = _decimal(proposal.mean_loss)
        joined.maintainer.record(step, proposal.maintained)
        self._record_contributions(proposal)
        joined.recorder.commit(step, proposal.active, norms, loss, joined.budgets.charge(), proposal.whole)
        joined.keeping.stepped(self.next_step)
        for rule, steps in joined.budgets.halting.items():
            joined.recorder.event("halted", {"step": step, "rule": rule, "steps": steps})
        self._watch_starvation(step, proposal.reach)
        joined.budgets.check_going()

    def _record_contributions(self, proposal: Proposal) -> None:
        """Record what each example added, and how far the bands moved, in a step that is to say so."""
        added, moved = proposal.contributions(), proposal.moved
        if added is None or moved is None:
            return
        norms = {
            band: [None if isnan(norm) else f"{norm:.4g}" for norm in column.tolist()]
            for band, column in zip(moved, added[proposal.recorded].T, strict=True)
        }
        self._joined.recorder.contributions(
            proposal.context.step, norms, {band: f"{norm:.6g}" for band, norm in moved.items()}
        )

    def _watch_starvation(self, step: int, reach: Reach) -> None:
        for rule in self._starvation.observe(step, reach):
            body = {"step": step, "band": rule.band, "steps": rule.steps, "action": rule.action}
            self._joined.recorder.event("starved", body)
            words = f"no example has reached the band `{rule.band}` for {rule.steps} steps"
            if rule.below:
                least = f"less than {share(rule.below)} on average"
                words = f"examples have weighed {least} in the band `{rule.band}` for {rule.steps} steps"
            if rule.action == "report":
                warnings.warn(words, stacklevel=LEVELS_TO_LOOP)
            elif rule.action == "halt":
                raise StarvationHalt(words, help="widen a `depth` rule or accept it with `starvation`")


def _decimal(value: float | None) -> str | None:
    return None if value is None else f"{value:.6g}"
