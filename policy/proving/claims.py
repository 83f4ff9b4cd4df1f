"""Proves the assertions of a program, or refutes them with an example.

At run time an assertion that does not hold refuses the example. Here the question is whether the *other*
rules already see to it: the claim is about the weights before assertions are checked, for every example that
fits the schema, in every context.

A proof counts only with a negative control. The rules that it rests on are found (an unsatisfiable core over
switches of the rules, made minimal); then some are dropped, or a grant of everything is added where the claim
holds because nothing grants, and the claim must be refuted, by an example that the evaluator confirms.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from gradwarden.policy.context import Context
from gradwarden.policy.decision import Decision
from gradwarden.policy.evaluation.evaluate import decide
from gradwarden.policy.program import Assertion, Constant, Limit, Modulation, Program
from gradwarden.policy.proving.encoding import Encoding
from gradwarden.policy.proving.inputs import Inputs
from gradwarden.policy.proving.questions import Asker, confirmed, without
from gradwarden.policy.proving.smt import Truth, negation, z3
from gradwarden.policy.proving.witness import Holds, Witness

Outcome = Literal["proved", "refuted", "unknown", "vacuous", "trivial"]
"""proved: it holds, and the control was refuted. refuted: an example breaks it. unknown: no answer in time.
vacuous: its `when` never holds. trivial: no rules whatever could break it."""

TIMEOUT = 10.0
"""Seconds for one claim."""


@dataclass(frozen=True, slots=True)
class Control:
    """What makes a proved claim false: the rules dropped, whether everything was granted, and an example."""

    dropped: tuple[str, ...]
    granted: bool
    witness: Witness


@dataclass(frozen=True, slots=True)
class Claim:
    """What became of one assertion.

    rests_on: the rules that a proof needs; empty where it needs none. default_deny: it needs that no rule
    grants more. witness: the counterexample of a refuted claim, and `decision` what is decided about it
    before assertions. why: what kept a claim from an answer, in words.
    """

    assertion: Assertion
    outcome: Outcome
    seconds: float
    rests_on: tuple[str, ...] = ()
    default_deny: bool = False
    control: Control | None = None
    witness: Witness | None = None
    decision: Decision | None = None
    why: str = ""

    @property
    def holds(self) -> bool:
        return self.outcome == "proved"


def prove(program: Program, *, only: str | None = None, timeout: float = TIMEOUT) -> Iterator[Claim]:
    """Yield what becomes of each assertion, in the order of the program; `only` names a single one.

    `timeout` is in seconds, for each claim with its control. Raises DisagreementError where the evaluator
    does not confirm what the solver found.
    """
    prover = _Prover(program, timeout)
    for assertion in program.assertions:
        if only in (None, assertion.name):
            yield prover.prove(assertion)


@dataclass(frozen=True, slots=True)
class _Base:
    """What a proof rests on: switches of rules, and whether nothing more is granted."""

    rules: tuple[str, ...]
    default_deny: bool

    def __or__(self, other: _Base) -> _Base:
        rules = tuple(sorted({*self.rules, *other.rules}))
        return _Base(rules, self.default_deny or other.default_deny)

    def parts(self) -> list[_Base]:
        parts = [_Base((rule,), False) for rule in self.rules]
        return parts + [_Base((), True)] * self.default_deny

    def less(self, part: _Base) -> _Base:
        rules = tuple(rule for rule in self.rules if rule not in part.rules)
        return _Base(rules, self.default_deny and not part.default_deny)


class _UndecidedError(Exception):
    """A question that was not answered: the reason in words."""


class _Prover:
    """The encodings of one program. Limits and modulations have switches; grants and waivers only weaken."""

    def __init__(self, program: Program, timeout: float) -> None:
        self.program = program
        self.inputs = Inputs.of(program)
        self.encoding = Encoding(program, self.inputs)
        rules: list[Limit | Modulation] = [*program.limits, *program.modulations]
        self.switches = {rule.name: z3.Bool(f"rule {rule.name}") for rule in rules if rule.level == "hard"}
        self.everything = z3.Bool("everything is granted")
        self.switched = Encoding(program, self.inputs, switches=self.switches, everything=self.everything)
        self.asker = Asker(self.inputs, timeout)

    def prove(self, assertion: Assertion) -> Claim:
        started = time.monotonic()
        self.asker.restart()
        try:
            claim = self._settle(assertion)
        except _UndecidedError as undecided:
            claim = Claim(assertion, "unknown", 0, why=str(undecided))
        return replace(claim, seconds=time.monotonic() - started)

    def _settle(self, assertion: Assertion) -> Claim:
        view = self.encoding.view
        when, then = view.truth(assertion.when), view.truth(assertion.then)
        if not self._possible(when):
            return Claim(assertion, "vacuous", 0)
        broken = self.encoding.failed[assertion.name]
        refuted = self._counterexample(assertion, self.encoding, broken, self.program)
        if refuted is not None:
            bare = decide(replace(self.program, assertions=()), refuted.metadata, refuted.context)
            return Claim(assertion, "refuted", 0, witness=refuted, decision=bare)
        if assertion.form == "implies":
            return self._implication(assertion, when, then)
        return self._grounded(assertion)

    def _possible(self, question: Truth) -> bool:
        found = self.asker.ask(question)
        if found.answer == "unknown":
            raise _UndecidedError("z3 gave up on whether the claim is about any example")
        return found.answer == "yes"

    def _counterexample(
        self, assertion: Assertion, encoding: Encoding, broken: Truth, program: Program
    ) -> Witness | None:
        """Return an example that breaks a claim, if possible one from which something is learned."""
        for question in ((broken, encoding.learned), (broken,)):
            found = self.asker.ask(*question)
            if found.answer == "unknown":
                raise _UndecidedError("z3 gave up on whether an example breaks the claim")
            if found.answer == "yes":
                learned = len(question) == 2
                return self._shown(found.model, breaks(program, assertion, learned=learned))
        return None

    def _shown(self, model: Any, holds: Holds) -> Witness:
        witness = confirmed(self.inputs, model, holds)
        if witness is None:
            names = ", ".join(f"`{name}`" for name in sorted(self.inputs.approximate))
            raise _UndecidedError(f"z3 cannot represent the characters that tests of {names} name")
        return witness

    # --- controls -------------------------------------------------------------------------------------------

    def _implication(self, assertion: Assertion, when: Truth, then: Truth) -> Claim:
        """No rule has a part in an implication: its control is that its conclusion never holds."""
        if not self._possible(negation(then)):
            return Claim(assertion, "trivial", 0, why="its conclusion holds of every example")
        changed = replace(assertion, then=Constant(False))
        witness = self._counterexample(changed, self.encoding, when, self.program)
        assert witness is not None, "a claim that is not vacuous is about some example"
        return Claim(assertion, "proved", 0, control=Control((), False, witness))

    def _grounded(self, assertion: Assertion) -> Claim:
        """Find what a proof rests on, take it away, and see the claim refuted."""
        broken = self.switched.failed[assertion.name]
        base = self._base(broken, _Base((), False))
        assert base is not None, "the claim was proved"
        taken = self._taken(broken, base)
        if taken is None:
            why = "it would hold whatever was granted and no rule limited"
            return Claim(assertion, "trivial", 0, why=why)
        reduced = without(self.program, taken.rules, everything=taken.default_deny)
        found = self.asker.ask(broken, *self._assumptions(taken))
        if found.answer != "yes":
            raise _UndecidedError("z3 gave up on the negative control")
        witness = self._shown(found.model, breaks(reduced, assertion))
        control = Control(taken.rules, taken.default_deny, witness)
        return Claim(assertion, "proved", 0, base.rules, base.default_deny and not base.rules, control)

    def _assumptions(self, taken: _Base) -> list[Truth]:
        """All rules are in force and nothing more is granted, but for what was taken away."""
        granted = self.everything if taken.default_deny else negation(self.everything)
        switches = [
            negation(switch) if rule in taken.rules else switch for rule, switch in self.switches.items()
        ]
        return [granted, *switches]

    def _base(self, broken: Truth, taken: _Base) -> _Base | None:
        """Return what the claim rests on where something was taken away; None where it is refuted."""
        assumptions = self._assumptions(taken)
        found = self.asker.ask(broken, *assumptions)
        if found.answer == "unknown":
            raise _UndecidedError("z3 gave up on what the proof rests on")
        if found.answer == "yes":
            return None
        core = {each.get_id() for each in found.core}
        # What was taken away stays away: it is no part of what the claim rests on.
        needed = self.asker.needed([broken], [each for each in assumptions if each.get_id() in core])
        kept = {each.get_id() for each in needed}
        rules = [
            rule
            for rule, switch in self.switches.items()
            if rule not in taken.rules and switch.get_id() in kept
        ]
        return _Base(tuple(rules), not taken.default_deny and assumptions[0].get_id() in kept)

    def _taken(self, broken: Truth, base: _Base) -> _Base | None:
        """Return the least that can be taken away so that the claim is refuted; None where nothing helps."""
        for part in base.parts():
            if self._base(broken, part) is None:
                return part
        taken = base
        while (rest := self._base(broken, taken)) is not None:
            if not rest.parts():
                return None
            taken |= rest
        for part in taken.parts():
            if self._base(broken, taken.less(part)) is None:
                taken = taken.less(part)
        return taken


def breaks(program: Program, assertion: Assertion, *, learned: bool = False) -> Holds:
    """Return whether an example breaks a claim about a program, as the evaluator has it.

    `learned`: and something would be learned from it.
    """
    alone = replace(program, assertions=(replace(assertion, level="hard"),))
    bare = replace(program, assertions=())

    def holds(metadata: Mapping[str, object], context: Context) -> bool:
        if assertion.name not in decide(alone, metadata, context).rules:
            return False
        return not learned or any(decide(bare, metadata, context).micro)

    return holds
