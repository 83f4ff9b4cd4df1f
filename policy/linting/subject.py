"""What lints look at, and how they report: a checked policy with the source of each of its rules."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

from gradwarden.policy.checking.check import CheckedPolicy
from gradwarden.policy.checking.check_conditions import Conditions
from gradwarden.policy.checking.scope import MAX_FAULTS, Faults, Scope
from gradwarden.policy.errors import Diagnostic
from gradwarden.policy.frozen import frozen
from gradwarden.policy.linting.domain import Domain
from gradwarden.policy.linting.registry import BY_CODE
from gradwarden.policy.program import (
    Assertion,
    Condition,
    Constant,
    Grant,
    Limit,
    Modulation,
    Program,
    Waiver,
)
from gradwarden.policy.source import Span
from gradwarden.policy.syntax import tree as s

Compiled: TypeAlias = Grant | Limit | Modulation | Waiver | Assertion


MAX_TESTS = 100_000
"""How many tests the searches over one policy look at; what lies beyond is left to `prove`."""


@frozen
class Edit:
    """A change to a text: what stands in a span becomes something else."""

    span: Span
    text: str


@frozen
class Finding:
    """One finding of a lint, and the edits that mend it, if it can be mended safely."""

    diagnostic: Diagnostic
    edits: tuple[Edit, ...] = ()


class Report:
    """Collects findings, so many of them as are kept of errors. Their severity is the registry's."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def add(
        self, code: str, message: str, span: Span, help: str | None = None, edits: Iterable[Edit] = ()
    ) -> None:
        if len(self.findings) == MAX_FAULTS:
            return
        diagnostic = Diagnostic(code, message, span, help, BY_CODE[code].severity)
        self.findings.append(Finding(diagnostic, tuple(edits)))


@frozen
class SourcedRule:
    """A rule of the program with the declaration it was compiled from."""

    item: s.Rule | s.Assertion
    rule: Compiled

    @property
    def name(self) -> Span:
        return self.item.name.span

    @property
    def when(self) -> s.Expr | None:
        """The condition as written; of an assertion, what it is about."""
        if isinstance(self.item, s.Assertion):
            condition = self.item.claim.condition
            return condition.left if isinstance(condition, s.Implication) else condition
        clause = self.clause(s.When)
        return clause.condition if isinstance(clause, s.When) else None

    def clause(self, *kinds: type[s.Clause]) -> s.Clause | None:
        """Return the first clause of some kinds, if there is one."""
        if isinstance(self.item, s.Assertion):
            return None
        return next((clause for clause in self.item.clauses if isinstance(clause, kinds)), None)

    @property
    def is_hard(self) -> bool:
        return isinstance(self.rule, Waiver) or self.rule.level == "hard"


@dataclass
class Subject:
    """A policy without faults: its texts, its names, its program."""

    files: Sequence[s.File]
    header: s.Header
    scope: Scope
    conditions: Conditions
    program: Program
    early: Sequence[Diagnostic]
    """What the checker has warned of."""
    _lowered: dict[int, Condition | None] = field(default_factory=dict)
    _reads: dict[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, checked: CheckedPolicy) -> Subject:
        headers = (item for item in checked.files[0].items if isinstance(item, s.Header))
        conditions = checked.conditions
        return cls(
            checked.files,
            next(headers),
            conditions.scope,
            conditions,
            checked.program,
            tuple(conditions.faults.found),
        )

    @cached_property
    def domain(self) -> Domain:
        return Domain(self.program.attributes, self.program.signals, fuel=MAX_TESTS)

    @cached_property
    def items(self) -> list[s.Item]:
        return [item for file in self.files for item in file.items]

    @property
    def main(self) -> s.File:
        return self.files[0]

    @cached_property
    def rules(self) -> list[SourcedRule]:
        """Every rule in the order of the texts."""
        program = self.program
        groups: tuple[Sequence[Grant | Limit | Modulation | Assertion], ...] = (
            program.grants,
            program.limits,
            program.modulations,
            program.assertions,
        )
        compiled = {rule.name: rule for group in groups for rule in group}
        waivers = {(w.rule, w.until, w.approved_by, w.because): w for w in program.waivers}
        return [
            SourcedRule(item, rule)
            for item in self.items
            if isinstance(item, s.Rule | s.Assertion)
            and (rule := waivers.get(_waiver_key(item)) or compiled.get(item.name.text)) is not None
        ]

    def of_kind(self, kind: type[Compiled]) -> list[SourcedRule]:
        return [rule for rule in self.rules if isinstance(rule.rule, kind)]

    def lower(self, expr: s.Expr) -> Condition | None:
        """Return the compiled form of a part of a condition, on its own; None where it cannot be had.

        What it reads is taken to be present, since the whole that it is a part of has been checked.
        """
        known = self.conditions.compiled.get(id(expr))
        if known is not None:
            return known
        if id(expr) not in self._lowered:
            faults = self._quiet.faults
            before = faults.number
            lowered = self._quiet.check(expr, frozenset(self.scope.attributes)).condition
            self._lowered[id(expr)] = lowered if faults.number == before else None
        return self._lowered[id(expr)]

    def reads(self, expr: s.Expr) -> frozenset[str]:
        """Return the names that a part of a condition depends on, those behind named conditions included."""
        found: set[str] = set()
        pending = [expr]
        while pending:
            node = pending.pop()
            match node:
                case s.Reference(name):
                    found |= self._behind(name)
                case s.Present(name) | s.InBand(name):
                    found |= self._behind(name.text)
                case _:
                    pending += parts(node)
        return frozenset(found)

    def _behind(self, name: str) -> frozenset[str]:
        if name not in self.scope.named:
            return frozenset([name])
        if name not in self._reads:
            self._reads[name] = frozenset()  # named conditions do not go round in a circle
            self._reads[name] = self.reads(self.scope.named[name].condition)
        return self._reads[name]

    @cached_property
    def _quiet(self) -> Conditions:
        """Conditions over the same names, with nobody listening to their faults."""
        scope = self.scope
        return Conditions(
            Scope(
                Faults(),
                scope.attributes,
                scope.signals,
                scope.named,
                scope.phases,
                scope.bands,
                scope.band_spans,
                scope.semantics,
                scope.ceiling,
            )
        )

    def warned(self, span: Span) -> bool:
        """Return whether the checker has found a test inside a span decided (GW505, GW506)."""
        starts = self._decided.get(span.source.name, [])
        at = bisect_left(starts, span.start)
        return at < len(starts) and starts[at] < span.end

    @cached_property
    def _decided(self) -> dict[str, list[int]]:
        """Where the checker has found tests decided, by the name of the source, in order."""
        found: dict[str, list[int]] = {}
        for diagnostic in self.early:
            if diagnostic.code in ("GW505", "GW506") and diagnostic.span is not None:
                found.setdefault(diagnostic.span.source.name, []).append(diagnostic.span.start)
        return {name: sorted(starts) for name, starts in found.items()}


def _waiver_key(item: s.Rule | s.Assertion) -> tuple[str, int, str, str]:
    """Return what tells a waiver from others; nothing has the key of what is none."""
    if isinstance(item, s.Assertion) or item.kind != "waive":
        return ("", 0, "", "")
    until, by, because = 0, "", ""
    for clause in item.clauses:
        match clause:
            case s.Timing("until", s.Moment(value=s.Day(days))):
                until = days
            case s.Approved(word):
                by = word.text
            case s.Because(word):
                because = word.text
            case _:
                pass
    return (item.name.text, until, by, because)


def expressions(item: s.Item) -> Iterator[s.Expr]:
    """Yield the conditions of a declaration."""
    match item:
        case s.Let(condition=condition) | s.EntropyBand(condition=condition):
            yield condition
        case s.Rule(clauses=clauses):
            for clause in clauses:
                if isinstance(clause, s.When):
                    yield clause.condition
        case s.Assertion(claim=s.Claim(condition=condition)) if condition is not None:
            yield condition
        case _:
            pass


def parts(expr: s.Expr) -> tuple[s.Expr, ...]:
    """Return the expressions that an expression is made of."""
    match expr:
        case s.Junction(terms=terms) | s.Comparison(operands=terms):
            return terms
        case s.Implication(left, right) | s.Operation(left=left, right=right):
            return (left, right)
        case s.Negation(term) | s.Negative(term) | s.InList(term=term) | s.InRange(term=term):
            return (term,)
        case s.TextTest(term=term) | s.SetTest(term=term):
            return (term,)
        case _:
            return ()


def walk(expr: s.Expr, visit: Callable[[s.Expr, s.Expr | None], None], parent: s.Expr | None = None) -> None:
    """Call a function with every part of an expression and the part it stands in."""
    visit(expr, parent)
    for part in parts(expr):
        walk(part, visit, expr)


TRUE = Constant(True)
