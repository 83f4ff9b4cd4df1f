"""What is found in a program without being asked: rules and conditions that do nothing.

never: a rule whose condition no example fulfils. effect: one of several effects of a limit, likewise.
part: a part of a condition that always holds, or never does. shadowed: a rule without which every example
would be decided alike. silent: a limit that stops only what no rule grants. undecided: an example about which
no grant and no limit says anything. unused: an attribute that nothing reads. unknown: a question that z3 gave
up on.

All but `unused` are answers of the solver over every example and context. An example that is shown was
confirmed by the evaluator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from gradwarden.policy.context import Context
from gradwarden.policy.evaluation.evaluate import truth_of
from gradwarden.policy.evaluation.partition import reads_of
from gradwarden.policy.evaluation.phrasing import Phrasing
from gradwarden.policy.program import (
    And,
    Condition,
    Constant,
    Grant,
    Limit,
    Modulation,
    Not,
    Or,
    Program,
    Waiver,
)
from gradwarden.policy.proving.encoding import Encoding
from gradwarden.policy.proving.inputs import Inputs
from gradwarden.policy.proving.questions import Asker, confirmed
from gradwarden.policy.proving.smt import Truth, disjunction, negation, z3
from gradwarden.policy.proving.witness import Witness

Kind = Literal["never", "effect", "part", "shadowed", "silent", "undecided", "unused", "unknown"]

Ruling = Grant | Limit | Modulation | Waiver


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    rule: the rule it is about, empty where it is about the whole policy. text: the condition, in the words of
    the language (`never`: the parts that exclude each other), or the attribute. by: the rules that shadow it.
    always: of a part, that it always holds. witness: of `undecided`, the example.
    """

    kind: Kind
    rule: str = ""
    text: str = ""
    by: tuple[str, ...] = ()
    always: bool = False
    witness: Witness | None = None


def examine(
    program: Program, *, timeout: float, advance: Callable[[int], None] = lambda _count: None
) -> Iterator[Finding]:
    """Yield what is found. `timeout` is in seconds, per rule; `advance` is told of each of `steps` steps."""
    examiner = _Examiner(program, timeout)
    dead: set[str] = set()
    for rule in rules_of(program):
        for finding in examiner.conditions(rule):
            if finding.kind == "never":
                dead.add(rule.name)
            yield finding
        advance(1)
    shadows = _Shadows(program, examiner.inputs, timeout)
    for rule in rules_of(program):
        if rule.name not in dead and _level(rule) == "hard":
            yield from shadows.of(rule)
        advance(1)
    yield from examiner.undecided()
    yield from unused(program)


def steps(program: Program) -> int:
    """Return how many steps `examine` takes."""
    return 2 * len(rules_of(program))


def rules_of(program: Program) -> list[Ruling]:
    """Return the rules that have a part in decisions; assertions are claims, not rules."""
    return [*program.grants, *program.limits, *program.modulations, *program.waivers]


def unused(program: Program) -> Iterator[Finding]:
    """Yield the attributes that no condition reads and no privacy rule counts by."""
    read = {name for condition in program.conditions() for name in reads_of(condition).attributes}
    read |= {limit.privacy.unit for limit in program.limits if limit.privacy is not None}
    for spec in program.attributes:
        if spec.name not in read:
            yield Finding("unused", text=spec.name)


def _level(rule: Ruling) -> str:
    return "hard" if isinstance(rule, Waiver) else rule.level


class _Examiner:
    """Asks about the conditions of one program."""

    def __init__(self, program: Program, timeout: float) -> None:
        self.program = program
        self.inputs = Inputs.of(program)
        self.encoding = Encoding(program, self.inputs)
        self._asker = Asker(self.inputs, timeout)
        self._phrasing = Phrasing(program)

    def conditions(self, rule: Ruling) -> Iterator[Finding]:
        """Yield whether a rule never matches, else its effects that never do and its parts that are idle."""
        self._asker.restart()
        conditions = [clause.when for clause in rule.clauses] if isinstance(rule, Limit) else [rule.when]
        answers = [self._asker.ask(self._truth(condition)).answer for condition in conditions]
        if "unknown" in answers:
            yield Finding("unknown", rule.name, "can it match?")
            return
        if "yes" not in answers:
            yield Finding("never", rule.name, self._contradiction(conditions[0]) if conditions else "")
            return
        found: dict[str, Finding] = {}
        for condition, answer in zip(conditions, answers, strict=True):
            if answer == "no":
                yield Finding("effect", rule.name, self._contradiction(condition))
                continue
            for part, always in self._idle(condition, whole=True):
                text = self._phrasing.condition(part)
                found.setdefault(text, Finding("part", rule.name, text, always=always))
        yield from found.values()

    def _truth(self, condition: Condition) -> Truth:
        return self.encoding.view.truth(condition)

    def _contradiction(self, condition: Condition) -> str:
        """Return the least of a condition that cannot hold, in words."""
        terms = list(_conjuncts(condition))
        truths = {self._truth(term).get_id(): term for term in terms}
        needed = self._asker.needed([], [self._truth(term) for term in terms])
        least = [truths[truth.get_id()] for truth in needed]
        return self._phrasing.condition(And(tuple(dict.fromkeys(least))))

    def _idle(self, condition: Condition, *, whole: bool = False) -> Iterator[tuple[Condition, bool]]:
        """Yield the smallest parts that always hold, or never do, and which of the two."""
        if isinstance(condition, Constant):
            return
        inner = [found for term in _terms(condition) for found in self._idle(term)]
        if inner:
            yield from inner
        elif not whole and self._asker.ask(self._truth(condition)).answer == "no":
            yield condition, False
        elif self._asker.ask(negation(self._truth(condition))).answer == "no":
            yield condition, True

    def undecided(self) -> Iterator[Finding]:
        """Yield an example that no grant and no limit matches."""
        self._asker.restart()
        count = len(self.program.grants) + sum(len(limit.clauses) for limit in self.program.limits)
        found = self._asker.ask(negation(disjunction(self.encoding.truth[:count])))

        def holds(metadata: Mapping[str, object], context: Context) -> bool:
            return not any(truth_of(self.program, metadata, context)[:count])

        if found.answer == "unknown":
            yield Finding("unknown", text="is there an example that no rule is about?")
        elif found.answer == "yes":
            witness = confirmed(self.inputs, found.model, holds)
            kind: Kind = "unknown" if witness is None else "undecided"
            yield Finding(kind, text="is there an example that no rule is about?", witness=witness)


def _conjuncts(condition: Condition) -> Iterator[Condition]:
    if isinstance(condition, And):
        for term in condition.terms:
            yield from _conjuncts(term)
    else:
        yield condition


def _terms(condition: Condition) -> Sequence[Condition]:
    match condition:
        case And(terms) | Or(terms):
            return terms
        case Not(term):
            return (term,)
        case _:
            return ()


class _Shadows:
    """Asks whether a program with a rule and the program without it can differ.

    Both programs have a switch for every rule. For the rule in question they are set apart, for every other
    they are held equal: so the core of an answer `no` names the rules whose presence makes this one idle.

    Assertions are left out: they say what the rules do, and one that says what a rule does would shadow it.
    """

    def __init__(self, program: Program, inputs: Inputs, timeout: float) -> None:
        self._program = replace(program, assertions=())
        self._inputs = inputs
        self._timeout = timeout

    @cached_property
    def _switches(self) -> dict[str, tuple[Truth, Truth, Truth]]:
        """By rule: in force in the first program, in the second, and alike in both."""
        names = [rule.name for rule in rules_of(self._program)]
        return {n: (z3.Bool(f"1 {n}"), z3.Bool(f"2 {n}"), z3.Bool(f"= {n}")) for n in names}

    @cached_property
    def _asker(self) -> Asker:
        first = {name: switches[0] for name, switches in self._switches.items()}
        second = {name: switches[1] for name, switches in self._switches.items()}
        asker = Asker(self._inputs, self._timeout)
        asker.assume(
            differ(
                Encoding(self._program, self._inputs, switches=first),
                Encoding(self._program, self._inputs, switches=second),
            )
        )
        for one, two, alike in self._switches.values():
            asker.assume(z3.Implies(alike, one == two))
        return asker

    def of(self, rule: Ruling) -> Iterator[Finding]:
        """Yield whether a rule changes no decision."""
        self._asker.restart()
        others = {name: switches for name, switches in self._switches.items() if name != rule.name}
        with_it, without_it, _ = self._switches[rule.name]
        apart = [with_it, negation(without_it), *(alike for _, _, alike in others.values())]
        found = self._asker.ask(*apart, *(one for one, _, _ in others.values()))
        if found.answer == "unknown":
            yield Finding("unknown", rule.name, "does it change any decision?")
        elif found.answer == "no":
            core = {each.get_id() for each in found.core}
            present = [one for one, _, _ in others.values() if one.get_id() in core]
            needed = {each.get_id() for each in self._asker.needed(apart, present)}
            by = tuple(name for name, (one, _, _) in others.items() if one.get_id() in needed)
            idle = isinstance(rule, Limit | Waiver) and not by
            yield Finding("silent" if idle else "shadowed", rule.name, by=by)


def differ(first: Encoding, second: Encoding) -> Truth:
    """Return whether two encodings over the same inputs decide differently: weights, verdict, obligations."""
    pairs = [*zip(first.weights, second.weights, strict=True)]
    pairs += [(first.verdicts[verdict], second.verdicts[verdict]) for verdict in first.verdicts]
    pairs += [(first.obligations[key], second.obligations[key]) for key in first.obligations]
    return disjunction(one != other for one, other in pairs)
