"""Types conditions and lowers them to the program's form.

Conditions are total: an optional attribute may be read only where `has` is known to hold, which follows the
order of reading (left operands of `and`, `or` and `implies` are known when the right ones are read).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from gradwarden.policy.checking.check_numbers import (
    attribute_operand,
    clock_operand,
    combine_numbers,
    compare_numbers,
    literal,
    negate,
    signal_operand,
)
from gradwarden.policy.checking.logic import junction, negation
from gradwarden.policy.checking.phases import in_phases
from gradwarden.policy.checking.scope import Scope
from gradwarden.policy.checking.types import (
    CLOCKS,
    Categorical,
    Checked,
    Numeric,
    Operand,
    PhaseOperand,
    describe,
)
from gradwarden.policy.checking.walk import MAX_HEIGHT, MAX_SIZE, MAX_TOTAL, Measure, signals_of
from gradwarden.policy.program import (
    And,
    AttributeSpec,
    Condition,
    Constant,
    Flag,
    Has,
    OneOf,
    Or,
    SetTest,
    Text,
    TextTest,
)
from gradwarden.policy.source import Span
from gradwarden.policy.syntax import tree as s

Present = frozenset[str]
"""Optional attributes known to be present."""

NOTHING: Present = frozenset()
FALSE = Checked(Constant(False))
"""Stands in for a condition that has been reported as faulty."""

_TESTS: dict[str, TextTest] = {
    "starts with": "prefix",
    "ends with": "suffix",
    "contains": "contains",
    "like": "glob",
}


_LITERALS = {
    "date": re.compile(r"\d{4}-\d\d-\d\d").fullmatch,
    "number": re.compile(r"\d+(\.\d+)?").fullmatch,
}
"""Texts that would be values of a type if they were not quoted."""


class Conditions:
    """Checks the conditions of one policy. Named conditions are checked once, on first use."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.faults = scope.faults
        self.measure = Measure()
        self.compiled: dict[int, Condition] = {}
        """What whole conditions, and the terms of junctions, were compiled to, by the id of the node."""
        self.folded: set[int] = set()
        """Conditions, by the id of the node, in which some junction has fewer terms than were written."""
        self._folds = 0
        self._named: dict[str, Checked] = {}
        self._coded: dict[str, dict[str, int]] = {}
        self._open: list[str] = []
        self._written_out = 0
        self._total = 0

    def check(self, expr: s.Expr | None, present: Present = NOTHING) -> Checked:
        """Return the typed condition; none means always. Faulty conditions are reported and are false."""
        if expr is None:
            return Checked(Constant(True))
        outer, self._written_out = self._written_out, 0
        folds = self._folds
        checked = self._condition(expr, present)
        self.compiled[id(expr)] = checked.condition
        if self._folds > folds:
            self.folded.add(id(expr))
        written_out, self._written_out = self._written_out, outer
        size, height = self.measure(checked.condition)
        self._total += size
        if written_out > MAX_SIZE:
            return FALSE
        if size > MAX_SIZE or height > MAX_HEIGHT:
            self._too_large(expr.span)
            return FALSE
        if self._total > MAX_TOTAL:
            self.faults.error("GW471", f"the conditions of the policy exceed {MAX_TOTAL} terms", expr.span)
            self._total = 0
        return checked

    def _too_large(self, span: Span) -> None:
        help = f"conditions have at most {MAX_HEIGHT} levels and {MAX_SIZE} terms, named ones written out"
        self.faults.error("GW471", "this condition is too large", span, help)

    def named(self, name: str, span: Span) -> Checked:
        """Return a `let` condition or an entropy band."""
        if name in self._open:
            circle = " -> ".join(f"`{n}`" for n in [*self._open[self._open.index(name) :], name])
            self.faults.error("GW207", f"named conditions go round in a circle: {circle}", span)
            return FALSE
        if name not in self._named:
            self._open.append(name)
            if len(self._open) > MAX_HEIGHT:
                self.faults.error("GW471", "named conditions name each other too deeply", span)
                self._named[name] = FALSE
            else:
                self._named[name] = self.check(self.scope.named[name].condition)
            self._open.pop()
        return self._named[name]

    def _write_out(self, name: str, span: Span) -> Checked:
        """Return a named condition for use inside another; what is written out in all is bounded."""
        named = self.named(name, span)
        before = self._written_out
        self._written_out += self.measure(named.condition)[0]
        if before <= MAX_SIZE < self._written_out:
            self._too_large(span)
        return named if self._written_out <= MAX_SIZE else FALSE

    # --- logic ----------------------------------------------------------------------------------------------

    def _condition(self, expr: s.Expr, present: Present) -> Checked:
        check = _CHECKS.get(expr.__class__)
        if check:
            return check(self, expr, present)
        operand = self._operand(expr, present)
        if isinstance(operand, Checked) or operand is None:
            return operand or FALSE
        help = "compare it with something" if not isinstance(expr, s.Word) else None
        if isinstance(operand, Numeric) and operand.kind == "date":
            help = f"compare it with something, as in `{expr.span.text} < 2026-01-31`"
        self.faults.error("GW301", f"{describe(operand)} is not a condition", expr.span, help)
        return FALSE

    def _negation(self, expr: s.Negation, present: Present) -> Checked:
        return negation(self._condition(expr.term, present))

    def _implication(self, expr: s.Implication, present: Present) -> Checked:
        first = self._condition(expr.left, present)
        second = self._condition(expr.right, present | first.yes)
        return junction("or", [negation(first), second])

    def _junction(self, expr: s.Junction, present: Present) -> Checked:
        op = expr.op
        done: list[Checked] = []
        for term in expr.terms:
            done.append(self._condition(term, present))
            self.compiled[id(term)] = done[-1].condition
            present |= done[-1].yes if op == "and" else done[-1].no
        joined = junction(op, done)
        form = And if op == "and" else Or
        written = sum(len(x.condition.terms) if isinstance(x.condition, form) else 1 for x in done)
        if not isinstance(joined.condition, form) or len(joined.condition.terms) < written:
            self._folds += 1
        return joined

    # --- operands -------------------------------------------------------------------------------------------

    def _operand(self, expr: s.Expr, present: Present) -> Operand | None:
        """Return a typed operand, or None after a fault was reported."""
        match expr:
            case s.Reference(name, span):
                return self._reference(expr, name, span, present)
            case s.Quantity() | s.Day():
                return literal(self.faults, expr)
            case s.Present(name):
                return self._has(name)
            case s.Truth(value):
                return Checked(Constant(value))
            case s.InBand(name):
                return self._band(name)
            case s.Negative(term, span):
                inner = self._numeric(term, present)
                return inner and negate(self.faults, inner, span)
            case s.Operation(op, left, right, span):
                a, b = self._numeric(left, present), self._numeric(right, present)
                return a and b and combine_numbers(self.faults, op, a, b, span)
            case s.Word(text, _, span):
                self.faults.error("GW301", f'the string `"{text}"` stands where it has no meaning', span)
                return None
            case _:
                return self._condition(expr, present)

    def _numeric(self, expr: s.Expr, present: Present) -> Numeric | None:
        operand = self._operand(expr, present)
        if operand is None or isinstance(operand, Numeric):
            return operand
        self.faults.error("GW302", f"{describe(operand)} cannot be calculated with", expr.span)
        return None

    def _reference(self, node: s.Reference, name: str, span: Span, present: Present) -> Operand | None:
        scope = self.scope
        if name in CLOCKS:
            return clock_operand(name, span)  # type: ignore[arg-type]  # a clock's name
        if name == "phase":
            return PhaseOperand(span)
        scope.used.add(name)
        if name in scope.signals:
            return signal_operand(scope.signals[name], span)
        if name in scope.named:
            return self._write_out(name, span)
        if name not in scope.attributes:
            owner = scope.owner_of(name)
            declare = f"write `{_test_for(owner, name)}`" if owner else "declare it in `examples { … }`"
            known = [] if owner else [*scope.terms(), *CLOCKS, "phase"]
            self.faults.undeclared("GW201", "name", node, known, declare)
            return None
        attribute = scope.attributes[name]
        if not self._readable(attribute.spec, span, present):
            return None
        match attribute.spec.type:
            case "bool":
                return Checked(Flag(name))
            case "number" | "date":
                return attribute_operand(attribute, span)
            case _:
                return Categorical(attribute.spec, span)

    def _readable(self, spec: AttributeSpec, span: Span, present: Present) -> bool:
        if not spec.optional or spec.name in present:
            return True
        self.faults.error(
            "GW304", f"`{spec.name}` may be absent", span, f"test it first: `has {spec.name} and …`"
        )
        return False

    def _has(self, name: s.Name) -> Checked | None:
        self.scope.used.add(name.text)
        attribute = self.scope.attributes.get(name.text)
        if attribute is None:
            known = [n for n, a in self.scope.attributes.items() if a.spec.optional]
            self.faults.undeclared("GW201", "attribute", name, known, "`has` tests an optional attribute")
            return None
        if not attribute.spec.optional:
            help = f"declare `{name.text}` as `optional`, or leave the test out"
            self.faults.warn("GW505", f"`{name.text}` is never absent", name.span, help)
            return Checked(Constant(True))
        return Checked(Has(name.text), yes=frozenset([name.text]))

    def _band(self, name: s.Name) -> Checked | None:
        self.scope.used.add(name.text)
        if isinstance(self.scope.named.get(name.text), s.EntropyBand):
            return self._write_out(name.text, name.span)
        known = [n for n, item in self.scope.named.items() if isinstance(item, s.EntropyBand)]
        self.faults.undeclared("GW201", "band", name, known, "declare it: `band NAME = …`")
        return None

    # --- comparisons and membership -------------------------------------------------------------------------

    def _comparison(self, expr: s.Comparison, present: Present) -> Checked:
        (left, right), op = expr.operands, expr.ops[0]
        if self._is_literal(left) and not self._is_literal(right):
            left, right = right, left
            op = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}.get(op, op)
        operand = self._operand(left, present)
        match operand:
            case None:
                return FALSE
            case Categorical() | PhaseOperand():
                return self._equality(operand, op, right, expr.span)
            case Checked():
                return self._truth(operand, op, right, expr.span, present)
        if isinstance(right, s.Word):
            message = f"{describe(operand)} cannot be compared with a string"
            self.faults.error("GW302", message, expr.span, _unquoted(operand, right))
            return FALSE
        other = self._operand(right, present)
        if other is None:
            return FALSE
        if not isinstance(other, Numeric):
            message = f"{describe(operand)} cannot be compared with {describe(other)}"
            self.faults.error("GW302", message, expr.span)
            return FALSE
        condition = compare_numbers(self.faults, op, operand, other, expr.span)
        return FALSE if condition is None else self._comparing(condition)

    def _comparing(self, condition: Condition) -> Checked:
        if not self.scope.signals:
            return Checked(condition)
        return Checked(condition, signals=frozenset(signals_of(condition)))

    def _is_literal(self, expr: s.Expr) -> bool:
        """Whether an operand is a value rather than something that has a type of its own."""
        if isinstance(expr, s.Reference):
            return not (self.scope.declares(expr.name) or expr.name in CLOCKS or expr.name == "phase")
        return isinstance(expr, s.Word | s.Truth)

    def _equality(self, operand: Categorical | PhaseOperand, op: str, right: s.Expr, span: Span) -> Checked:
        if op not in ("==", "!=") or (isinstance(operand, Categorical) and operand.spec.type == "set"):
            help = "use `==`, `!=` or `in`"
            if isinstance(operand, Categorical) and operand.spec.type == "set":
                help = f"use `{operand.spec.name} contains …`, `has any [ … ]` or `has all [ … ]`"
            self.faults.error("GW311", f"{describe(operand)} cannot be compared with `{op}`", span, help)
            return FALSE
        if isinstance(right, s.Reference):
            right = s.Word(right.name, False, right.span)
        if not isinstance(right, s.Word):
            self.faults.error("GW302", f"{describe(operand)} is compared with a value of its own", right.span)
            return FALSE
        checked = self._member_of(operand, [right])
        return negation(checked) if op == "!=" else checked

    def _truth(self, operand: Checked, op: str, right: s.Expr, span: Span, present: Present) -> Checked:
        if op not in ("==", "!=") or not isinstance(right, s.Truth):
            self.faults.error(
                "GW302",
                "a condition is only compared with `true` or `false`",
                span,
                "write `true` or `false`" if op in ("==", "!=") else "join conditions with `and`, `or`",
            )
            return FALSE
        return operand if (op == "==") == right.value else negation(operand)

    def _in_list(self, expr: s.InList, present: Present) -> Checked:
        operand = self._operand(expr.term, present)
        if operand is None:
            return FALSE
        if not expr.members:
            self.faults.error("GW307", "this list is empty", expr.span, "list the values to test for")
            return FALSE
        match operand:
            case Numeric():
                found = self._equals_any(operand, expr.members)
            case Categorical() | PhaseOperand():
                found = self._member_of(operand, expr.members)
            case Checked():
                self.faults.error("GW302", "a condition is not in a list", expr.span)
                return FALSE
        return negation(found) if expr.negated else found

    def _equals_any(self, operand: Numeric, members: Sequence[s.Member]) -> Checked:
        terms: dict[Condition, None] = {}
        for member in members:
            if isinstance(member, s.Word):
                self.faults.error("GW302", f"`{member.text}` is not {describe(operand)}", member.span)
                continue
            value = literal(self.faults, member)
            condition = value and compare_numbers(self.faults, "==", operand, value, member.span)
            if condition:
                terms[condition] = None
        return junction("or", [self._comparing(term) for term in terms])

    def _in_range(self, expr: s.InRange, present: Present) -> Checked:
        operand = self._operand(expr.term, present)
        lo, hi = literal(self.faults, expr.lo), literal(self.faults, expr.hi)
        if operand is None or lo is None or hi is None:
            return FALSE
        if not isinstance(operand, Numeric):
            self.faults.error("GW302", f"{describe(operand)} is not in a range", expr.span, "use `in [ … ]`")
            return FALSE
        if lo.kind == hi.kind and lo.lo * 10**hi.places > hi.lo * 10**lo.places:
            self.faults.error("GW307", "this range is empty", expr.span, "write the lesser bound first")
            return FALSE
        span = expr.span
        bounds = [compare_numbers(self.faults, op, operand, x, span) for op, x in ((">=", lo), ("<=", hi))]
        if None in bounds:
            return FALSE
        inside = junction("and", [self._comparing(bound) for bound in bounds if bound])
        return negation(inside) if expr.negated else inside

    def _member_of(self, operand: Categorical | PhaseOperand, members: Sequence[s.Member]) -> Checked:
        """Whether an enum, a string or the phase is one of some values."""
        words = [member for member in members if isinstance(member, s.Word)]
        for member in members:
            if not isinstance(member, s.Word):
                self.faults.error("GW302", f"{describe(operand)} does not hold numbers or dates", member.span)
        if isinstance(operand, PhaseOperand):
            return self._phase_in(words, operand.span)
        if operand.spec.type == "enum":
            return Checked(OneOf(operand.spec.name, self._codes(operand.spec, words)))
        if operand.spec.type == "set":
            self.faults.error(
                "GW302", "a set is not in a list", operand.span, f"use `{operand.spec.name} has any [ … ]`"
            )
            return FALSE
        for word in words:
            if not word.quoted:
                self.faults.error(
                    "GW302", f"`{word.text}` is not a string", word.span, f'write `"{word.text}"`'
                )
        return Checked(Text(operand.spec.name, "equals", tuple(sorted({word.text for word in words}))))

    def _codes(self, spec: AttributeSpec, words: Sequence[s.Word]) -> tuple[int, ...]:
        known = self._coded.get(spec.name)
        if known is None:
            known = self._coded[spec.name] = {value: code for code, value in enumerate(spec.values)}
        codes = set()
        for word in words:
            if word.text in known:
                codes.add(known[word.text])
            else:
                self.faults.error(
                    "GW208",
                    f"`{word.text}` is not a value of `{spec.name}`",
                    word.span,
                    self.faults.suggestion(word.text, spec.values) or f"it is one of {_listed(spec.values)}",
                )
        return tuple(sorted(codes))

    def _phase_in(self, words: Sequence[s.Word], span: Span) -> Checked:
        names = [phase.name for phase in self.scope.phases]
        for word in words:
            if word.text not in names:
                name = s.Name(word.text, word.span)
                self.faults.undeclared("GW204", "phase", name, names, "declare it in `phases { … }`")
        return Checked(in_phases(self.scope.phases, {word.text for word in words}))

    def _text_test(self, expr: s.TextTest, present: Present) -> Checked:
        operand = self._operand(expr.term, present)
        if operand is None:
            return FALSE
        if isinstance(operand, Categorical) and operand.spec.type == "set" and expr.test == "contains":
            return Checked(SetTest(operand.spec.name, "any", self._codes(operand.spec, [expr.operand])))
        if not isinstance(operand, Categorical) or operand.spec.type != "string":
            self.faults.error("GW302", f"`{expr.test}` tests a string, not {describe(operand)}", expr.span)
            return FALSE
        if not expr.operand.quoted:
            text = expr.operand.text
            self.faults.error("GW302", f"`{text}` is not a string", expr.operand.span, f'write `"{text}"`')
            return FALSE
        return Checked(Text(operand.spec.name, _TESTS[expr.test], (expr.operand.text,)))

    def _set_test(self, expr: s.SetTest, present: Present) -> Checked:
        operand = self._operand(expr.term, present)
        if operand is None:
            return FALSE
        if not isinstance(operand, Categorical) or operand.spec.type != "set":
            help = "use `in [ … ]`" if isinstance(operand, Categorical) else None
            message = f"`has {expr.test}` tests a set, not {describe(operand)}"
            self.faults.error("GW302", message, expr.span, help)
            return FALSE
        if not expr.members:
            self.faults.error("GW307", "this list is empty", expr.span, "list the members to test for")
            return FALSE
        words = [member for member in expr.members if isinstance(member, s.Word)]
        for member in expr.members:
            if not isinstance(member, s.Word):
                self.faults.error("GW302", "a set does not hold numbers or dates", member.span)
        return Checked(SetTest(operand.spec.name, expr.test, self._codes(operand.spec, words)))


_CHECKS: dict[type, Callable[[Conditions, Any, Present], Checked]] = {
    s.Junction: Conditions._junction,
    s.Negation: Conditions._negation,
    s.Implication: Conditions._implication,
    s.Comparison: Conditions._comparison,
    s.InList: Conditions._in_list,
    s.InRange: Conditions._in_range,
    s.TextTest: Conditions._text_test,
    s.SetTest: Conditions._set_test,
}
"""The check of every form that can only be a condition."""


def _test_for(spec: AttributeSpec, value: str) -> str:
    """Return the condition that tests an attribute for one of its values."""
    return f"{spec.name} contains {value}" if spec.type == "set" else f"{spec.name} == {value}"


def _unquoted(operand: Operand, word: s.Word) -> str | None:
    """Return what to write instead of a string that holds a date or a number."""
    if not isinstance(operand, Numeric):
        return None
    pattern = _LITERALS.get(operand.kind)
    return (
        f"write the {operand.kind} without quotes: `{word.text}`" if pattern and pattern(word.text) else None
    )


def _listed(values: Sequence[str]) -> str:
    shown = ", ".join(f"`{value}`" for value in values[:8])
    return f"{shown}, …" if len(values) > 8 else shown
