"""Where each name of a policy is declared and used: for editors, which jump to names and rename them.

A bare word in a condition is an attribute, a signal, a named condition or a value of an enumeration,
depending on what stands beside it; it is told here by the rules that the checker follows
(`checking/check_conditions`). Names that nothing declares are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from gradwarden.policy.frozen import frozen
from gradwarden.policy.source import Source, Span
from gradwarden.policy.syntax import tree as s

Kind = Literal["policy", "attribute", "signal", "condition", "entropy band", "band", "phase", "rule", "value"]

TERMS: tuple[Kind, ...] = ("attribute", "signal", "condition", "entropy band")
"""The kinds that share one space of names: what a condition may read by its bare name."""


@frozen
class Symbol:
    """What a name stands for. `owner` is the attribute that has a value, and empty for other kinds."""

    kind: Kind
    name: str
    owner: str = ""


@frozen
class Occurrence:
    """One place where a symbol is named. The span holds the name alone, without quotes around it."""

    symbol: Symbol
    span: Span
    declares: bool


def occurrences(files: Sequence[s.File]) -> tuple[Occurrence, ...]:
    """Return every occurrence of every declared name in the files of one policy, in textual order."""
    names = _Names()
    for file in files:
        for item in file.items:
            names.declare(item)
    for file in files:
        for item in file.items:
            names.use(item)
    order = {file.source: index for index, file in enumerate(files)}
    return tuple(sorted(names.found, key=lambda x: (order[x.span.source], x.span.start)))


def at(found: Iterable[Occurrence], source: Source, offset: int) -> Occurrence | None:
    """Return the occurrence at a character offset of a source; its end counts too."""
    here = [x for x in found if x.span.source == source and x.span.start <= offset <= x.span.end]
    return min(here, key=lambda x: offset == x.span.end, default=None)


@dataclass(slots=True)
class _Names:
    """Collects occurrences; declarations come first, so that uses can be told apart."""

    found: list[Occurrence] = field(default_factory=list)
    terms: dict[str, Symbol] = field(default_factory=dict)
    types: dict[str, s.Field] = field(default_factory=dict)
    others: set[Symbol] = field(default_factory=set)

    # --- declarations ---------------------------------------------------------------------------------------

    def declare(self, item: s.Item) -> None:
        match item:
            case s.Header(name):
                self._declared(Symbol("policy", name.text), name.span)
            case s.Examples(fields):
                for attribute in fields:
                    self._term("attribute", attribute.name)
                    self.types.setdefault(attribute.name.text, attribute)
                    if isinstance(attribute.type, s.ChoiceType):
                        for word in attribute.type.values:
                            symbol = Symbol("value", word.text, attribute.name.text)
                            self._declared(symbol, _inside(word))
            case s.Signals(fields):
                for signal in fields:
                    self._term("signal", signal.name)
            case s.Let(name):
                self._term("condition", name)
            case s.EntropyBand(name):
                self._term("entropy band", name)
            case s.Model(parts):
                for part in parts:
                    self._declared(Symbol("band", part.name.text), part.name.span)
            case s.Phases(phases):
                for phase in phases:
                    self._declared(Symbol("phase", phase.name.text), phase.name.span)
            case s.Rule(kind=kind, name=name) if kind != "waive":
                self._declared(Symbol("rule", name.text), name.span)
            case s.Assertion(name):
                self._declared(Symbol("rule", name.text), name.span)
            case _:
                pass

    def _term(self, kind: Kind, name: s.Name) -> None:
        # The first declaration counts; a second one is a fault that the checker reports.
        symbol = self.terms.setdefault(name.text, Symbol(kind, name.text))
        self.found.append(Occurrence(symbol, name.span, True))

    def _declared(self, symbol: Symbol, span: Span) -> None:
        self.others.add(symbol)
        self.found.append(Occurrence(symbol, span, True))

    # --- uses -----------------------------------------------------------------------------------------------

    def use(self, item: s.Item) -> None:
        match item:
            case s.Let(_, condition) | s.EntropyBand(_, condition):
                self._expr(condition)
            case s.Rule(kind, name, _, clauses):
                if kind == "waive":
                    self._other("rule", name)
                for clause in clauses:
                    self._clause(clause)
            case s.Assertion(claim=claim):
                if claim.band is not None:
                    self._other("band", claim.band)
                if claim.condition is not None:
                    self._expr(claim.condition)
            case s.Starvation(band):
                self._other("band", band)
            case s.Gradient(caps, paces):
                for band in [*(cap.band for cap in caps), *(pace.band for pace in paces)]:
                    self._other("band", band)
            case _:
                pass

    def _clause(self, clause: s.Clause) -> None:
        match clause:
            case s.When(condition):
                self._expr(condition)
            case s.Targets(_, targets):
                for target in targets:
                    if target.band is not None:
                        self._other("band", target.band)
            case s.Route(band):
                self._other("band", band)
            case s.Timing(_, s.Moment(value=s.Name() as name)):
                self._read(name.text, name.span)
            case s.InPhase(phase):
                self._other("phase", phase)
            case s.Within(bands):
                for band in bands:
                    self._other("band", band)
            case s.Rehearse(rule):
                self._other("rule", rule)
            case s.UnitOf(attribute):
                self._read(attribute.text, attribute.span)
            case s.Scale(scalings):
                for scaling in scalings:
                    self._other("band", scaling.band)
                    self._read(scaling.signal.text, scaling.signal.span)
            case _:
                pass

    def _other(self, kind: Kind, name: s.Name) -> None:
        if Symbol(kind, name.text) in self.others:
            self.found.append(Occurrence(Symbol(kind, name.text), name.span, False))

    def _read(self, name: str, span: Span) -> None:
        if name in self.terms:
            self.found.append(Occurrence(self.terms[name], span, False))

    # --- conditions -----------------------------------------------------------------------------------------

    def _expr(self, expr: s.Expr) -> None:
        match expr:
            case s.Reference(name, span):
                self._read(name, span)
            case s.Present(name) | s.InBand(name):
                self._read(name.text, name.span)
            case s.Comparison(operands):
                self._comparison(operands)
            case s.InList(term, members) | s.SetTest(_, term, members):
                self._expr(term)
                self._values(term, members)
            case s.TextTest(_, term, operand):
                self._expr(term)
                self._values(term, [operand])
            case _:
                for part in parts_of(expr):
                    self._expr(part)

    def _comparison(self, operands: Sequence[s.Expr]) -> None:
        left, right = operands[0], operands[-1]
        if self._is_literal(left) and not self._is_literal(right):
            left, right = right, left
        self._expr(left)
        if self._owner(left) is None:
            self._expr(right)
        elif isinstance(right, s.Word):
            self._values(left, [right])
        elif isinstance(right, s.Reference):
            self._values(left, [s.Word(right.name, False, right.span)])

    def _is_literal(self, expr: s.Expr) -> bool:
        """Whether an operand is a value rather than something that has a type of its own."""
        if isinstance(expr, s.Reference):
            return expr.name not in self.terms and expr.name not in CLOCKS_AND_PHASE
        return isinstance(expr, s.Word | s.Truth)

    def _owner(self, term: s.Expr) -> str | None:
        """Return the string, enumeration or set that is compared, or `phase`; None for other operands."""
        if not isinstance(term, s.Reference):
            return None
        if term.name == "phase":
            return term.name
        declared = self.types.get(term.name)
        if declared is None or self.terms[term.name].kind != "attribute":
            return None
        if isinstance(declared.type, s.ChoiceType) or declared.type.kind == "string":
            return term.name
        return None

    def _values(self, term: s.Expr, members: Iterable[s.Member]) -> None:
        owner = self._owner(term)
        if owner is None:
            return
        for member in members:
            if isinstance(member, s.Word):
                kind: Kind = "phase" if owner == "phase" else "value"
                symbol = Symbol(kind, member.text, "" if owner == "phase" else owner)
                if symbol in self.others:
                    self.found.append(Occurrence(symbol, _inside(member), False))


CLOCKS_AND_PHASE = frozenset({"step", "epoch", "today", "exposures", "phase"})
"""Words that stand for something in a condition without being declared."""


def parts_of(expr: s.Expr) -> Iterator[s.Expr]:
    """Yield the operands of an expression."""
    match expr:
        case s.Negative(term) | s.Negation(term):
            yield term
        case s.Operation(_, left, right) | s.Implication(left, right):
            yield from (left, right)
        case s.Junction(_, terms):
            yield from terms
        case s.Comparison(operands):
            yield from operands
        case s.InList(term) | s.InRange(term) | s.TextTest(_, term) | s.SetTest(_, term):
            yield term
        case _:
            pass


def _inside(word: s.Word) -> Span:
    """Return where the text of a word stands, without its quotes."""
    if not word.quoted:
        return word.span
    return Span(word.span.source, word.span.start + 1, word.span.end - 1)
