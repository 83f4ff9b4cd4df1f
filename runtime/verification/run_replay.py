"""Replays a run from its ledger: every decision, exposure, budget and outcome is worked out again.

A run replays where each step's decisions are what the program in force gives for the recorded inputs, its
exposures and spent budgets are what earlier entries add up to, and its outcome is one that its decisions
allow. The first entry that does not fit is named (`Finding.code`): `policy_mismatch` (another policy than
the one given), `program_damaged`, `unapproved_policy`, `wrong_approval`, `wrong_classes`, `wrong_step`,
`wrong_decision`, `wrong_exposures`, `wrong_budget`, `wrong_anchor`, `wrong_drift`, `wrong_rehearsal`,
`wrong_outcome`, `wrong_totals`, `wrong_base`, `wrong_tally`, `wrong_rewind`, `wrong_tensors`,
`frozen_moved`, `wrong_supply`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import inf
from operator import or_
from typing import Any

from gradwarden.policy.decision import VERDICTS, Decision
from gradwarden.policy.errors import GradwardenError
from gradwarden.policy.program import Program
from gradwarden.policy.program_json import program_from_json
from gradwarden.runtime.errors import NoteError
from gradwarden.runtime.evidence.supply import MOST_SUPPLIES, describe_supply
from gradwarden.runtime.history import History, PendingStep, bands_of
from gradwarden.runtime.ledger.chain import ChainReport, Finding
from gradwarden.runtime.ledger.entries import Entry
from gradwarden.runtime.ledger.lines import Part
from gradwarden.runtime.ledger.program_signature import NOBODY, Approvers
from gradwarden.runtime.ledger.turns import Turns
from gradwarden.runtime.privacy.accounting import epsilon_text, privacy_rules
from gradwarden.runtime.recorder import decision_body
from gradwarden.runtime.verification.approval_audit import ApprovalAudit
from gradwarden.runtime.verification.budget_audit import BudgetAudit
from gradwarden.runtime.verification.decision_tally import DecisionTally
from gradwarden.runtime.verification.drift_measure import AnchoredBand
from gradwarden.runtime.verification.example_audit import ExampleAudit, Numbers
from gradwarden.runtime.verification.key_periods import Calendar
from gradwarden.runtime.verification.maintenance_audit import MaintenanceAudit
from gradwarden.runtime.verification.outcome_audit import OutcomeAudit
from gradwarden.runtime.verification.restart_audit import RestartAudit, restart_facts
from gradwarden.runtime.verification.stretch import (
    ALL_VERDICTS,
    STEP_VERDICTS,
    Judge,
    Tables,
    judge_stretch,
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

    judge: remembers the number that a decision was recorded under, once it was found to be that decision.
    plain: whether the program has neither budgets nor maintained bands.
    """

    judge: Judge
    outcomes: OutcomeAudit
    band_count: int
    plain: bool


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
        self._expected = tuple(expected)
        self._approvals = ApprovalAudit(approvers)
        self._examples = ExampleAudit()
        self._history = HistoryWithoutExamples()
        self._in_force: _InForce | None = None
        self._declared = Tables()
        self._reached = 0
        """The bands (bit i: band i) in which some example of the last step has weight."""
        self._tally = DecisionTally()
        self._first: Finding | None = None
        self._audit = BudgetAudit((), None)
        self._maintained = MaintenanceAudit()
        self._restarts = RestartAudit()
        self.weights = WeightAudit()
        self._clip_norm = inf
        self._policy: Mapping[str, Any] = {}
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
        self._expected = tuple(expected)
        self._approvals.go_on(approvers)
        self._audit.go_on(program)
        self._in_force = self._put_in_force(program)

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
        self._may_skip = False
        stretch = judge_stretch(
            turns, history.next_step, self._declared, force.judge, force.outcomes, self._agree
        )
        if stretch is None or not self._examples.accept_turns(turns, rows):
            return False
        self._restarts.step(history.next_step)
        history.advance(stretch.steps, stretch.committed, stretch.learned)
        self.weights.move(stretch.active)
        self._tally.take_counted(stretch.decisions)
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
        self._tally.settle(history.decisions)
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
            **self._tally.facts(),
            "exposures": history.example_count,
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
                self._check_part(body)
            case "refused":
                self._pending(body)
                self._maintained.check_refused(body["step"])
            case "anchored":
                self._ready()
                history = self._history
                within = history.pending is not None
                self._maintained.check_anchor(body, history.next_step, within_step=within)
            case "maintained":
                self._pending(body)
                self._maintained.check_measured(body)
            case "halted":
                self._audit.check_halt(body, self._history.private_steps)
            case "classes":
                self._check_classes(body)
            case "decisions":
                self._check_decisions(body)
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
                self._check_change(body)
            case "resumed":
                self._resume()
            case "skipped":
                self._check_skipped(body)
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
                self._check_sealed(body)

    # --- program and classes -------------------------------------------------------------------------------

    def _replace_program(self, policy: Mapping[str, Any]) -> None:
        self._policy = policy
        self._approvals.take_program(None)
        self._in_force = None
        self._forget_numbers()

    def _forget_numbers(self) -> None:
        self._tally.settle(self._history.decisions)
        self._declared.clear()
        if self._in_force is not None:
            self._in_force.judge.forget()

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
            lost = force.outcomes.movable(self._reached, pending.body["spent"])
        self.weights.resume(lost)
        self._forget_numbers()
        self._maintained.forget()
        self._may_skip = self._member is not None

    def _check_change(self, body: Mapping[str, Any]) -> None:
        if body["step"] != self._history.next_step or self._history.pending is not None:
            raise ViolationError("wrong_step", "the policy changes in the middle of a step or at another one")
        self._replace_program(body["policy"])

    def _check_program(self, body: Mapping[str, Any]) -> None:
        parts = self._history.program_parts
        if body["digest"] != self._history.program_digest or body["part"] != len(parts):
            raise ViolationError("program_damaged", "the parts of the program do not fit together")
        if body["part"] + 1 < body["parts"]:
            return
        program = program_from_json("".join(parts) + body["text"])
        if program.digest != body["digest"]:
            raise ViolationError("program_damaged", "the program is not the one that the ledger names")
        self._check_identity(program)
        self._check_expected(program)
        self._audit.check_terms(program)
        self._maintained.take_program(program)
        self.weights.take_program(program)
        self._approvals.take_program(program)
        self._in_force = self._put_in_force(program)

    def _put_in_force(self, program: Program) -> _InForce:
        return _InForce(
            Judge.of(program),
            OutcomeAudit(program, self._clip_norm, together=self._member is not None),
            len(program.bands),
            not privacy_rules(program) and not program.maintained,
        )

    def _check_identity(self, program: Program) -> None:
        opened = self._history.opened or {}
        fits = (program.name, program.version) == (self._policy["name"], self._policy["version"])
        if self._policy is opened["policy"]:
            fits &= (list(program.band_names), program.model_map) == (opened["bands"], opened["model_map"])
        if not fits:
            raise ViolationError("program_damaged", "the ledger describes another program than it holds")

    def _check_expected(self, program: Program) -> None:
        """Check that a program in force is one of those given; one without a model map fits any binding."""
        if not self._expected:
            return
        unbound = program.unbound()
        given = [expected.digest for expected in self._expected]
        if not {program.digest, unbound.digest} & set(given):
            raise ViolationError(
                "policy_mismatch",
                f"the run was governed by `{program.name}` version {program.version}, digest "
                f"{program.digest[:16]}… ({unbound.digest[:16]}… without its model map), not by what was "
                f"given: {', '.join(f'{digest[:16]}…' for digest in given)}",
            )

    def _check_classes(self, body: Mapping[str, Any]) -> None:
        replayer, classes = self._ready().judge.rows, self._declared.classes
        for described in body["classes"]:
            if described["id"] != len(classes):
                raise ViolationError("wrong_classes", f"decision class {described['id']} is out of order")
            classes.append(replayer.class_of(described))

    def _check_decisions(self, body: Mapping[str, Any]) -> None:
        bands, declared = self._ready().band_count, self._declared
        for described in body["decisions"]:
            if described["id"] != len(declared.marks) or len(described["weights"]) != bands:
                raise ViolationError("wrong_decision", f"decision {described['id']} is out of order")
            if self._audit.withholds and any(kind == "privacy" for kind, _ in described["obligations"]):
                raise ViolationError(
                    "wrong_budget", "the run withholds private examples, and a decision on one is recorded"
                )
            declared.add(described["verdict"], bands_of(described["weights"]))

    def _ready(self) -> _InForce:
        if self._in_force is None:
            raise ViolationError("program_damaged", "no complete program comes before this entry")
        return self._in_force

    # --- steps ---------------------------------------------------------------------------------------------

    def _check_order(self, body: Mapping[str, Any]) -> None:
        due, pending = self._history.next_step, self._history.pending
        if pending is not None:
            raise ViolationError(
                "wrong_step", f"step {body['step']} begins before step {pending.step} has ended"
            )
        if body["step"] != due:
            raise ViolationError("wrong_step", f"step {body['step']} comes where step {due} was due")
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

    def _check_part(self, body: Mapping[str, Any]) -> None:
        history = self._history
        due = (history.next_step, history.parts)
        if (body["step"], body["part"]) != due or history.pending is not None:
            raise ViolationError("wrong_step", "commitments come out of turn, or belong to another step")

    def _check_step(self, body: Mapping[str, Any]) -> None:
        verdict, numbers = self._check_numbers(body), body["decision"]
        self._examples.accept("step", body)
        agreed = self._decide(body)
        self._audit.check_spent(body, self._history.private_steps)
        if agreed != numbers:
            self._check_same(body["step"], agreed, numbers)
        self._tally.take(numbers)
        if body["verdict"] != verdict:
            raise ViolationError(
                "wrong_decision",
                f"step {body['step']} is recorded as `{body['verdict']}`; its decisions make it `{verdict}`",
            )

    def _check_numbers(self, body: Mapping[str, Any]) -> str:
        """Check that a step names known classes and decisions; return the verdict that these add up to."""
        if body["classes"] and max(body["classes"]) >= len(self._declared.classes):
            raise ViolationError("wrong_classes", f"step {body['step']} names an unknown decision class")
        used, marks = set(body["decision"]), self._declared.marks
        if used and max(used) >= len(marks):
            raise ViolationError("wrong_decision", f"step {body['step']} names an unknown decision")
        mark = reduce(or_, map(marks.__getitem__, used), 0)
        self._reached = mark >> len(VERDICTS)
        return STEP_VERDICTS[mark & ALL_VERDICTS]

    def _decide(self, body: Mapping[str, Any]) -> list[int]:
        """Decide a step; return numbers under which its decisions were recorded, now or earlier."""
        replayer, numbers, known = self._ready().judge.rows, body["decision"], self._declared.classes
        return replayer.judge(
            [known[number] for number in body["classes"]],
            slots=body["slots"],
            exposures=body["exposures"],
            signals=body["signals"],
            clock=replayer.clock(body["step"], body["epoch"], body["today"], frozenset(body["spent"])),
            judge=lambda place, decision: self._agree(numbers[place], decision, body["step"], place),
        )

    def _agree(self, number: int, decision: Decision, step: int = 0, place: int = 0) -> int:
        """Check a decision against the one recorded under a number; return the number."""
        self._compare(number, decision_body(decision), step, place)
        return number

    def _check_same(self, step: int, agreed: Sequence[int], numbers: Sequence[int]) -> None:
        """Check that decisions recorded under other numbers than before are the same."""
        for place, (before, now) in enumerate(zip(agreed, numbers, strict=True)):
            self._compare(now, self._history.decisions[before], step, place)

    def _compare(self, number: int, given: Mapping[str, Any], step: int, place: int) -> None:
        """Compare what the policy gives for an example with the decision recorded under a number."""
        recorded = self._history.decisions[number]
        differences = [
            f"{name} {recorded[name]!r} where the policy gives {given[name]!r}"
            for name in ("verdict", "weights", "rules", "advisory", "waived", "obligations")
            if recorded[name] != given[name]
        ]
        if differences:
            raise ViolationError("wrong_decision", f"step {step}, example {place}: {'; '.join(differences)}")

    # --- outcomes ------------------------------------------------------------------------------------------

    def _pending(self, body: Mapping[str, Any]) -> PendingStep:
        pending = self._history.pending
        if pending is None or pending.step != body["step"]:
            raise ViolationError(
                "wrong_outcome", f"an outcome of step {body['step']}, which was not proposed"
            )
        return pending

    def _check_committed(self, body: Mapping[str, Any]) -> None:
        intent = self._pending(body).body
        spent = intent["spent"]
        self._maintained.check_rehearsed(intent, self._history.decisions)
        outcomes = self._ready().outcomes
        active = outcomes.check(body, self._reached, spent)
        outcomes.check_batch(body, intent["count"])
        self._maintained.check_outcome(body["step"], active)
        self.weights.move(active)
        self._audit.check_charge(body, spent, self._history.private_steps)

    def _check_checkpoint(self, index: int, body: Mapping[str, Any]) -> None:
        if body["step"] != self._history.next_step or self._history.pending is not None:
            raise ViolationError(
                "wrong_step", "a checkpoint was saved in the middle of a step or at another one"
            )
        self.weights.take_checkpoint(index, body)
        self.checkpoint, self.anchored = body, self._maintained.standing()

    def _check_sealed(self, body: Mapping[str, Any]) -> None:
        history = self._history
        counted = {
            "steps": history.next_step,
            "committed": history.committed,
            "refused": history.refused,
            "examples": history.example_count,
        }
        if body != counted:
            raise ViolationError(
                "wrong_totals", f"the seal says {dict(body)}; the entries add up to {counted}"
            )
        if history.pending is not None:
            raise ViolationError("wrong_outcome", f"step {history.pending.step} has no outcome")
