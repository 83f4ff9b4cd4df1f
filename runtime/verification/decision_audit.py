"""Holds the decisions of a run's steps against those that the program in force gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Any, TypeAlias

from gradwarden.policy.decision import VERDICTS, Decision
from gradwarden.policy.program import Program
from gradwarden.runtime.ledger.turns import Turns
from gradwarden.runtime.records.history import bands_of
from gradwarden.runtime.records.recorder import decision_body
from gradwarden.runtime.verification.decision_tally import DecisionTally
from gradwarden.runtime.verification.outcome_audit import OutcomeAudit
from gradwarden.runtime.verification.stretch import (
    ALL_VERDICTS,
    STEP_VERDICTS,
    Judge,
    Stretch,
    Tables,
    judge_stretch,
)
from gradwarden.runtime.verification.violation import ViolationError

Recorded: TypeAlias = Sequence[Mapping[str, Any]]
"""Decisions as the ledger declares them, by number."""


class DecisionAudit:
    """Follows classes and decisions as they are declared and used. A program is in force; see `take_program`.

    reached: the bands (bit i: band i) in which some example of the last step has weight.
    """

    def __init__(self) -> None:
        self._declared = Tables()
        self._judge: Judge | None = None
        self._tally = DecisionTally()
        self.reached = 0

    def take_program(self, program: Program) -> None:
        """Judge by a program from here on, or again after another audit left off."""
        self._judge = Judge.of(program)

    @property
    def _judging(self) -> Judge:
        if self._judge is None:
            raise ValueError("no program is in force")
        return self._judge

    def forget(self, recorded: Recorded) -> None:
        """Take classes and decisions for numbered anew. recorded: the decisions so far."""
        self._tally.settle(recorded)
        self._declared.clear()
        if self._judge is not None:
            self._judge.forget()

    def facts(self, recorded: Recorded) -> dict[str, Any]:
        """Return how many decisions hold, by verdict and rule."""
        self._tally.settle(recorded)
        return self._tally.facts()

    def declare_classes(self, body: Mapping[str, Any]) -> None:
        """Take decision classes. Raises ViolationError `wrong_classes`, and ReplayError."""
        classes = self._declared.classes
        for described in body["classes"]:
            if described["id"] != len(classes):
                raise ViolationError("wrong_classes", f"decision class {described['id']} is out of order")
            classes.append(self._judging.rows.class_of(described))

    def declare_decisions(self, body: Mapping[str, Any], *, withheld: bool) -> None:
        """Take decisions. withheld: whether there may be none on private examples.

        Raises ViolationError: `wrong_decision`, `wrong_budget`.
        """
        bands = len(self._judging.rows.program.bands)
        for described in body["decisions"]:
            if described["id"] != len(self._declared.marks) or len(described["weights"]) != bands:
                raise ViolationError("wrong_decision", f"decision {described['id']} is out of order")
            if withheld and any(kind == "privacy" for kind, _ in described["obligations"]):
                raise ViolationError(
                    "wrong_budget", "the run withholds private examples, and a decision on one is recorded"
                )
            self._declared.add(described["verdict"], bands_of(described["weights"]))

    # --- many steps together -------------------------------------------------------------------------------

    def judge_together(
        self, turns: Turns, due: int, outcomes: OutcomeAudit, recorded: Recorded
    ) -> Stretch | None:
        """Judge steps with their outcomes; see `judge_stretch`. They count once `take` is told of them."""

        def agree(number: int, decision: Decision) -> int:
            return _agree(recorded, number, decision)

        return judge_stretch(turns, due, self._declared, self._judging, outcomes, agree)

    def take(self, stretch: Stretch) -> None:
        """Count the decisions of steps that hold."""
        self._tally.take_counted(stretch.decisions)

    # --- one step ------------------------------------------------------------------------------------------

    def read(self, body: Mapping[str, Any]) -> str:
        """Check that a step names known classes and decisions; return the verdict that these add up to.

        Raises ViolationError: `wrong_classes`, `wrong_decision`.
        """
        if body["classes"] and max(body["classes"]) >= len(self._declared.classes):
            raise ViolationError("wrong_classes", f"step {body['step']} names an unknown decision class")
        used, marks = set(body["decision"]), self._declared.marks
        if used and max(used) >= len(marks):
            raise ViolationError("wrong_decision", f"step {body['step']} names an unknown decision")
        mark = reduce(or_, map(marks.__getitem__, used), 0)
        self.reached = mark >> len(VERDICTS)
        return STEP_VERDICTS[mark & ALL_VERDICTS]

    def decide(self, body: Mapping[str, Any], recorded: Recorded) -> list[int]:
        """Decide a step; return numbers under which its decisions were recorded, now or earlier.

        Raises ViolationError `wrong_decision`, and ReplayError.
        """
        replayer, numbers, known = self._judging.rows, body["decision"], self._declared.classes
        return replayer.judge(
            [known[number] for number in body["classes"]],
            slots=body["slots"],
            exposures=body["exposures"],
            signals=body["signals"],
            clock=replayer.clock(body["step"], body["epoch"], body["today"], frozenset(body["spent"])),
            judge=lambda place, decision: _agree(recorded, numbers[place], decision, body["step"], place),
        )

    def hold(self, body: Mapping[str, Any], agreed: Sequence[int], verdict: str, recorded: Recorded) -> None:
        """Check that a step records what was decided (see `decide`), and its verdict (see `read`).

        Raises ViolationError `wrong_decision`.
        """
        step, numbers = body["step"], body["decision"]
        if agreed != numbers:
            for place, (before, now) in enumerate(zip(agreed, numbers, strict=True)):
                _compare(recorded, now, recorded[before], step, place)
        self._tally.take(numbers)
        if body["verdict"] != verdict:
            raise ViolationError(
                "wrong_decision",
                f"step {step} is recorded as `{body['verdict']}`; its decisions make it `{verdict}`",
            )


def _agree(recorded: Recorded, number: int, decision: Decision, step: int = 0, place: int = 0) -> int:
    """Check a decision against the one recorded under a number; return the number."""
    _compare(recorded, number, decision_body(decision), step, place)
    return number


def _compare(recorded: Recorded, number: int, given: Mapping[str, Any], step: int, place: int) -> None:
    """Compare what the policy gives for an example with the decision recorded under a number."""
    found = recorded[number]
    differences = [
        f"{name} {found[name]!r} where the policy gives {given[name]!r}"
        for name in ("verdict", "weights", "rules", "advisory", "waived", "obligations")
        if found[name] != given[name]
    ]
    if differences:
        raise ViolationError("wrong_decision", f"step {step}, example {place}: {'; '.join(differences)}")
