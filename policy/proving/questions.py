"""Questions to the solver about one program, within a time limit, and their confirmed answers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from gradwarden.policy.program import Constant, Grant, Program
from gradwarden.policy.proving.inputs import Inputs
from gradwarden.policy.proving.simplify import simplify
from gradwarden.policy.proving.smt import Truth, solver, z3
from gradwarden.policy.proving.witness import DisagreementError, Holds, Witness, read_witness

Answer = Literal["yes", "no", "unknown"]

EVERYTHING = "everything"
"""The name of the grant that controls add."""


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to a question. no: `core` are the assumptions it rests on; yes: `model` shows it."""

    answer: Answer
    core: tuple[Any, ...] = ()
    model: Any = None


class Asker:
    """Asks one solver many questions; `seconds` is the time left for all of them."""

    def __init__(self, inputs: Inputs, seconds: float) -> None:
        self.inputs = inputs
        self._solver = solver()
        self._solver.add(*inputs.domain)
        self._seconds = seconds
        self._until = time.monotonic() + seconds

    def restart(self) -> None:
        """Give the next questions the whole time again."""
        self._until = time.monotonic() + self._seconds

    def assume(self, truth: Truth) -> None:
        """Let something hold in all later questions."""
        self._solver.add(truth)

    def ask(self, *assumptions: Truth) -> Found:
        """Ask whether all assumptions can hold together."""
        left = self._until - time.monotonic()
        if left <= 0:
            return Found("unknown")
        self._solver.set("timeout", max(1, int(left * 1000)))
        answer = self._solver.check(*assumptions)
        if answer == z3.sat:
            return Found("yes", model=self._solver.model())
        if answer == z3.unsat:
            return Found("no", core=tuple(self._solver.unsat_core()))
        return Found("unknown")

    def needed(self, question: Sequence[Truth], assumptions: Sequence[Truth]) -> list[Truth]:
        """Return a minimal part of the assumptions under which the question is still answered no.

        Those that stand first are tried first, so are the first to go. Where time runs out, more are kept.
        """
        kept = list(assumptions)
        for one in assumptions:
            if not any(one is other for other in kept):
                continue
            fewer = [other for other in kept if other is not one]
            found = self.ask(*question, *fewer)
            if found.answer == "no":
                core = {each.get_id() for each in found.core}
                kept = [other for other in fewer if other.get_id() in core]
        return kept


def confirmed(inputs: Inputs, model: Any, holds: Holds) -> Witness | None:
    """Return the example of a model in plain values, if the evaluator agrees that it shows what was asked.

    Returns None where the model may rest on guessed outcomes of string tests. Raises DisagreementError.
    """
    witness = read_witness(model, inputs)
    if holds(witness.metadata, witness.context):
        return simplify(witness, inputs, holds)
    if inputs.approximate:
        return None
    raise DisagreementError(
        f"the solver and the evaluator disagree about {witness.to_json()}",
        help="this is a bug in gradwarden; please report it with the policy",
    )


def without(program: Program, rules: Iterable[str], *, everything: bool = False) -> Program:
    """Return a program without rules, and with a grant of everything where asked for."""
    dropped = set(rules)
    grants = [rule for rule in program.grants if rule.name not in dropped]
    if everything:
        # Names need not be ordered for a decision; this program is decided, never written.
        grants.append(Grant(EVERYTHING, Constant(True), (program.max_weight,) * len(program.bands)))
    return replace(
        program,
        grants=tuple(grants),
        limits=tuple(rule for rule in program.limits if rule.name not in dropped),
        modulations=tuple(rule for rule in program.modulations if rule.name not in dropped),
        waivers=tuple(rule for rule in program.waivers if rule.name not in dropped),
    )
