"""Replays a run from its ledger: every decision, exposure, budget and outcome is worked out again.

A run replays where each step's decisions are what the program in force gives for the recorded inputs, its
exposures and spent budgets are what earlier entries add up to, and its outcome is one that its decisions
allow. The first entry that does not fit is named (`Finding.code`): `policy_mismatch` (another policy than
the one given), `program_damaged`, `wrong_classes`, `wrong_step`, `wrong_decision`, `wrong_exposures`,
`wrong_budget`, `wrong_anchor`, `wrong_drift`, `wrong_outcome`, `wrong_totals`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import hypot, inf
from typing import Any

from gradwarden.policy.decision import Decision, step_verdict
from gradwarden.policy.errors import GradwardenError
from gradwarden.policy.evaluation.replay import Class, Replayer
from gradwarden.policy.program import Program
from gradwarden.policy.program_json import program_from_json
from gradwarden.runtime.history import History, PendingStep
from gradwarden.runtime.ledger.chain import ChainReport, Finding
from gradwarden.runtime.ledger.entries import Entry
from gradwarden.runtime.recorder import decision_body
from gradwarden.runtime.verification.budget_audit import BudgetAudit, PrivateLimit, private_limits
from gradwarden.runtime.verification.example_audit import ExampleAudit
from gradwarden.runtime.verification.maintenance_audit import MaintenanceAudit
from gradwarden.runtime.verification.violation import ViolationError, names, number

NORM_ROUNDING = 1e-5
"""Norms are recorded with six significant digits."""

_UNFIT = {"opened": "wrong_budget", "classes": "wrong_classes", "step": "wrong_step"}
"""What is wrong with an entry of a kind that the program, or the accountant, cannot make sense of."""


class RunReplay:
    """Recomputes a run from its entries; stops judging at the first violation."""

    def __init__(self, expected: Sequence[Program]) -> None:
        self._expected = tuple(expected)
        self._history = History()
        self._replayer: Replayer | None = None
        self._classes: list[Class] = []
        self._agreed: dict[tuple[int, int], Decision] = {}
        """Pairs of a decision and the number that it was recorded under, found equal; keeps the decisions."""
        self._first: Finding | None = None
        self._audit = BudgetAudit((), None)
        self._examples = ExampleAudit()
        self._maintained = MaintenanceAudit()
        self._private: tuple[PrivateLimit, ...] = ()
        self._caps: list[float] = []
        self._clip_norm = inf
        self._bands: frozenset[str] = frozenset()
        self._signals: frozenset[str] = frozenset()
        self._policy: Mapping[str, Any] = {}
        self.decided = 0
        self.verdicts: Counter[str] = Counter()
        self.checkpoint: Mapping[str, Any] | None = None

    def accept(self, entry: Entry) -> None:
        """Take the next entry of the chain."""
        if self._first is not None:
            return
        try:
            self._before(entry.kind, entry.body)
            self._history.apply(entry.kind, entry.body)
            if entry.kind == "step":
                self._check_step(entry.body)
        except ViolationError as violation:
            self._first = Finding(violation.code, entry.index, str(violation))
        except GradwardenError as error:
            code = _UNFIT.get(entry.kind, "program_damaged")
            self._first = Finding(code, entry.index, error.message)

    def findings(self, chain: ChainReport) -> Iterator[Finding]:
        """Yield what is wrong, given how far the chain holds."""
        if self._first is not None:
            yield self._first
        elif self._replayer is None and chain.size:
            yield Finding("program_damaged", chain.size - 1, "the ledger holds no complete program")
        elif chain.sealed and self._history.pending is not None:
            step = self._history.pending.step
            yield Finding("wrong_outcome", chain.size - 1, f"step {step} has no outcome")
        else:
            for message in self._audit.understated(self._history.spending):
                yield Finding("wrong_budget", chain.size - 1, message)

    def facts(self) -> dict[str, Any]:
        history = self._history
        opened = history.opened or {}
        return {
            "run": opened.get("run"),
            "policy": opened.get("policy"),
            "engine": opened.get("engine"),
            "bands": opened.get("bands"),
            "steps": history.next_step,
            "committed": history.committed,
            "refused": history.refused,
            "decisions_replayed": self.decided,
            "verdicts": dict(self.verdicts),
            "exposures": history.example_count,
            "privacy": history.spending,
            "drift": self._maintained.drift,
            "budgets_recomputed": self._audit.recomputes,
        }

    def _before(self, kind: str, body: Mapping[str, Any]) -> None:
        """Check an entry against what came before it."""
        match kind:
            case "step":
                self._check_order(body)
            case "examples":
                self._check_part(body)
            case "committed":
                self._check_committed(body)
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
            case "classes":
                self._check_classes(body)
            case "decisions":
                self._check_decisions(body)
            case "program":
                self._check_program(body)
            case "opened":
                self._audit = BudgetAudit(body["privacy"], body["normaliser"])
                self._clip_norm = inf if body["clip_norm"] is None else number(body["clip_norm"])
                self._replace_program(body["policy"])
            case "policy_changed":
                self._check_change(body)
            case "resumed":
                self._forget_numbers()
                self._maintained.forget()
            case "checkpoint":
                self._check_checkpoint(body)
            case "sealed":
                self._check_sealed(body)

    # --- program and classes -------------------------------------------------------------------------------

    def _replace_program(self, policy: Mapping[str, Any]) -> None:
        self._policy = policy
        self._replayer = None
        self._forget_numbers()

    def _forget_numbers(self) -> None:
        self._classes.clear()
        self._agreed.clear()
        self._examples.forget()

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
        self._replayer = Replayer(program)
        self._signals = frozenset(spec.name for spec in program.signals)
        self._private = private_limits(program)
        self._bands = frozenset(program.band_names)
        self._caps = [float(cap.norm) * (1 + NORM_ROUNDING) for cap in program.gradient_caps]

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
        unbound = _unbound(program)
        given = [expected.digest for expected in self._expected]
        if not {program.digest, unbound.digest} & set(given):
            raise ViolationError(
                "policy_mismatch",
                f"the run was governed by `{program.name}` version {program.version}, digest "
                f"{program.digest[:16]}… ({unbound.digest[:16]}… without its model map), not by what was "
                f"given: {', '.join(f'{digest[:16]}…' for digest in given)}",
            )

    def _check_classes(self, body: Mapping[str, Any]) -> None:
        replayer = self._ready()
        for described in body["classes"]:
            if described["id"] != len(self._classes):
                raise ViolationError("wrong_classes", f"decision class {described['id']} is out of order")
            self._classes.append(replayer.class_of(described))
            self._examples.declare(self._classes[-1], self._signals)

    def _check_decisions(self, body: Mapping[str, Any]) -> None:
        declared = len(self._history.decisions)
        bands = len(self._ready().program.bands)
        for place, described in enumerate(body["decisions"]):
            if described["id"] != declared + place or len(described["weights"]) != bands:
                raise ViolationError("wrong_decision", f"decision {described['id']} is out of order")

    def _ready(self) -> Replayer:
        if self._replayer is None:
            raise ViolationError("program_damaged", "no complete program comes before this entry")
        return self._replayer

    # --- steps ---------------------------------------------------------------------------------------------

    def _check_order(self, body: Mapping[str, Any]) -> None:
        due, pending = self._history.next_step, self._history.pending
        if pending is not None:
            raise ViolationError(
                "wrong_step", f"step {body['step']} begins before step {pending.step} has ended"
            )
        if body["step"] != due:
            raise ViolationError("wrong_step", f"step {body['step']} comes where step {due} was due")
        self._maintained.check_step(due)

    def _check_part(self, body: Mapping[str, Any]) -> None:
        history = self._history
        due = (history.next_step, history.parts)
        if (body["step"], body["part"]) != due or history.pending is not None:
            raise ViolationError("wrong_step", "commitments come out of turn, or belong to another step")

    def _check_step(self, body: Mapping[str, Any]) -> None:
        self._check_numbers(body)
        self._check_exposures(body)
        decisions = self._decide(body)
        self._audit.check_spent(body, self._history.private_steps)
        numbers = body["decision"]
        if not self._agreed.keys() >= set(zip(map(id, decisions), numbers, strict=True)):
            for place, decision in enumerate(decisions):
                self._agree(body["step"], place, decision, numbers[place])
        verdicts = [decision.verdict for decision in decisions]
        self.verdicts.update(verdicts)
        self.decided += len(decisions)
        verdict = step_verdict(verdicts)
        if body["verdict"] != verdict:
            raise ViolationError(
                "wrong_decision",
                f"step {body['step']} is recorded as `{body['verdict']}`; its decisions make it `{verdict}`",
            )

    def _agree(self, step: int, place: int, decision: Decision, number: int) -> None:
        """Check a decision against the one recorded; equal pairs need no second look."""
        recorded = self._history.decisions[number]
        expected = {"id": number, **decision_body(decision)}
        if recorded != expected:
            raise ViolationError("wrong_decision", _difference(step, place, expected, recorded))
        self._agreed[id(decision), number] = decision

    def _check_numbers(self, body: Mapping[str, Any]) -> None:
        if body["classes"] and max(body["classes"]) >= len(self._classes):
            raise ViolationError("wrong_classes", f"step {body['step']} names an unknown decision class")
        if body["decision"] and max(body["decision"]) >= len(self._history.decisions):
            raise ViolationError("wrong_decision", f"step {body['step']} names an unknown decision")

    def _decide(self, body: Mapping[str, Any]) -> list[Decision]:
        step, numbers = body["step"], body["decision"]
        return self._ready().replay_step(
            [self._classes[number] for number in body["classes"]],
            slots=body["slots"],
            exposures=body["exposures"],
            signals=body["signals"],
            step=body["step"],
            epoch=body["epoch"],
            today=body["today"],
            spent=frozenset(body["spent"]),
            found=lambda place, decision: self._agree(step, place, decision, numbers[place]),
        )

    def _check_exposures(self, body: Mapping[str, Any]) -> None:
        recorded, pending = body["exposures"], self._history.pending
        if pending is None or len(pending.commitments) != body["count"]:
            raise ViolationError("wrong_step", f"step {body['step']} has not one commitment per example")
        self._examples.check(body, pending.commitments)
        if recorded is None:
            return
        before = self._history.exposures
        if len(set(pending.commitments)) == body["count"] and recorded == [
            before.get(commitment, 0) for commitment in pending.commitments
        ]:
            return
        here: dict[bytes, int] = {}
        for place, commitment in enumerate(pending.commitments):
            earlier = here.get(commitment, 0)
            here[commitment] = earlier + 1
            expected = before.get(commitment, 0) + earlier
            if recorded[place] != expected:
                raise ViolationError(
                    "wrong_exposures",
                    f"step {body['step']} records {recorded[place]} earlier exposures of example {place}; "
                    f"the ledger has {expected}",
                )

    # --- outcomes ------------------------------------------------------------------------------------------

    def _pending(self, body: Mapping[str, Any]) -> PendingStep:
        pending = self._history.pending
        if pending is None or pending.step != body["step"]:
            raise ViolationError(
                "wrong_outcome", f"an outcome of step {body['step']}, which was not proposed"
            )
        return pending

    def _check_committed(self, body: Mapping[str, Any]) -> None:
        pending = self._pending(body)
        program = self._ready().program
        reached, spent = pending.reached(), set(pending.body["spent"])
        noised = {band for rule in self._private if rule.name not in spent for band in rule.bands}
        active = [b for i, b in enumerate(program.band_names) if reached >> i & 1 or b in noised]
        if not active:
            raise ViolationError("wrong_outcome", f"step {body['step']} was committed, and reaches nothing")
        if body["active"] != active:
            raise ViolationError(
                "wrong_outcome",
                f"step {body['step']} moved {names(body['active'])}; its decisions allow {names(active)}",
            )
        self._check_norms(program, body, active)
        self._maintained.check_outcome(body["step"], active)
        self._audit.check_charge(program, body, spent, self._history.private_steps)

    def _check_norms(self, program: Program, body: Mapping[str, Any], active: Sequence[str]) -> None:
        norms = {band: number(norm) for band, norm in body["norms"].items() if norm is not None}
        stray = sorted(norms.keys() - set(active))
        if stray:
            raise ViolationError(
                "wrong_outcome",
                f"step {body['step']} has a gradient in {names(stray)}, which it may not reach",
            )
        if body["norms"].keys() != self._bands or min(norms.values(), default=0.0) < 0.0:
            raise ViolationError(
                "wrong_outcome", f"step {body['step']} does not record the gradient norm of each band"
            )
        if body["loss"] not in (None, "inf", "-inf"):
            number(body["loss"])
        for cap, greatest in zip(program.gradient_caps, self._caps, strict=True):
            if norms.get(cap.band, 0.0) > greatest:
                raise ViolationError(
                    "wrong_outcome",
                    f"the gradient of `{cap.band}` in step {body['step']} has norm "
                    f"{body['norms'][cap.band]}, above the cap of {cap.norm}",
                )
        whole = hypot(*norms.values())
        if whole > self._clip_norm * (1 + NORM_ROUNDING):
            raise ViolationError(
                "wrong_outcome",
                f"the gradient of step {body['step']} has norm {whole:.6g}, above {self._clip_norm:g}",
            )

    def _check_checkpoint(self, body: Mapping[str, Any]) -> None:
        if body["step"] != self._history.next_step or self._history.pending is not None:
            raise ViolationError(
                "wrong_step", "a checkpoint was saved in the middle of a step or at another one"
            )
        self.checkpoint = body

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


def _difference(step: int, place: int, given: Mapping[str, Any], recorded: Mapping[str, Any]) -> str:
    parts = [
        f"{name} {recorded[name]!r} where the policy gives {given[name]!r}"
        for name in given
        if given[name] != recorded[name]
    ]
    return f"step {step}, example {place}: " + "; ".join(parts)


def _unbound(program: Program) -> Program:
    """Return a program as it was before a model map was bound to it."""
    bands = tuple(replace(band, parameters=()) for band in program.bands)
    return replace(program, bands=bands, model_map="")
