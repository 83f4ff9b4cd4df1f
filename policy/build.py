"""From the parser's reductions to syntax nodes: one method per grammar rule, called as each rule completes.

The parser keeps every token, so the children of a rule are its tokens and the nodes of its sub-rules in
textual order, and a node's span runs from its first child to its last. Building bottom-up bounds nesting
without recursion: an expression taller than `MAX_NESTING` is reported once and replaced by a leaf.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any, TypeAlias, cast

from gradwarden.policy import syntax as s
from gradwarden.policy.errors import Diagnostic
from gradwarden.policy.source import Source, Span

MAX_NESTING = 64
"""How many levels of operators and parentheses an expression may have."""

MAX_DIGITS = 40
MAX_EXPONENT = 30

EPOCH_ORDINAL = date(1970, 1, 1).toordinal()

Children: TypeAlias = list[Any]
"""Tokens of the parser (a str with `type`, `start_pos`, `end_pos`), nodes, and built expressions."""

_ESCAPES = {'"': '"', "\\": "\\", "n": "\n", "t": "\t"}


@dataclass(frozen=True, slots=True)
class _Built:
    """An expression under construction with its height."""

    node: s.Expr
    height: int
    span: Span


class Builder:
    """Builds the nodes of one source. `faults` collects what is wrong with single tokens."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.faults: list[Diagnostic] = []

    # --- tokens ---------------------------------------------------------------------------------------------

    def _of(self, child: Any) -> Span:
        if hasattr(child, "start_pos"):
            return Span(self.source, child.start_pos, child.end_pos)
        return cast(Span, child.span)

    def _span(self, children: Children) -> Span:
        return Span(self.source, self._of(children[0]).start, self._of(children[-1]).end)

    def _fault(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        self.faults.append(Diagnostic(code, message, span, help))

    def _name(self, token: Any) -> s.Name:
        return s.Name(str(token), self._of(token))

    def _names(self, children: Children) -> tuple[s.Name, ...]:
        return tuple(self._name(child) for child in children if _is(child, "NAME"))

    def _word(self, token: Any) -> s.Word:
        if _is(token, "NAME"):
            return s.Word(str(token), False, self._of(token))
        return s.Word(self._unquote(token), True, self._of(token))

    def _unquote(self, token: Any) -> str:
        def replace(match: re.Match[str]) -> str:
            start = token.start_pos + 1 + match.start()
            if match[1] not in _ESCAPES:
                self._fault(
                    "GW107",
                    f"unknown escape `{match[0]}` in a string",
                    Span(self.source, start, start + 2),
                    'the escapes are `\\"`, `\\\\`, `\\n` and `\\t`',
                )
            return _ESCAPES.get(match[1], match[1])

        return re.sub(r"\\(.)", replace, str(token)[1:-1])

    def _quantity(self, children: Children) -> s.Quantity:
        """The number among `-`, a NUMBER and a unit."""
        unit = next((child for child in children if isinstance(child, _Unit)), None)
        number = next(child for child in children if _is(child, "NUMBER"))
        value = self._decimal(number)
        if _is(children[0], "MINUS"):
            value = -value
        return s.Quantity(value, unit.text if unit else "", self._span(children))

    def _decimal(self, token: Any) -> Decimal:
        text = str(token)
        mantissa, _, exponent = text.lower().partition("e")
        if len(mantissa) > MAX_DIGITS or len(exponent) > 4 or abs(int(exponent or 0)) > MAX_EXPONENT:
            self._fault(
                "GW109",
                "this number has too many digits",
                self._of(token),
                f"a number has at most {MAX_DIGITS} digits and an exponent within ±{MAX_EXPONENT}",
            )
            return Decimal(0)
        return Decimal(text)

    def _plain(self, token: Any) -> s.Quantity:
        return s.Quantity(self._decimal(token), "", self._of(token))

    def _plains(self, children: Children) -> list[s.Quantity]:
        return [self._plain(child) for child in children if _is(child, "NUMBER")]

    def _day(self, token: Any) -> s.Day:
        try:
            days = date.fromisoformat(str(token)).toordinal() - EPOCH_ORDINAL
        except ValueError:
            self._fault("GW108", f"there is no day `{token}`", self._of(token), "dates are YYYY-MM-DD")
            days = 0
        return s.Day(days, self._of(token))

    def _members(self, children: Children) -> tuple[s.Member, ...]:
        return tuple(
            self._word(child) if _is(child, "NAME", "STRING") else child
            for child in children
            if _is(child, "NAME", "STRING") or isinstance(child, s.Quantity | s.Day)
        )

    # --- declarations ---------------------------------------------------------------------------------------

    def start(self, children: Children) -> tuple[s.Item, ...]:
        return tuple(children)

    def header(self, children: Children) -> s.Header:
        numbers = self._plains(children)
        language = numbers[1] if len(numbers) > 1 else None
        return s.Header(self._name(children[1]), numbers[0], language, self._span(children))

    def import_(self, children: Children) -> s.Import:
        return s.Import(self._word(children[1]), self._span(children))

    def max_weight(self, children: Children) -> s.MaxWeight:
        return s.MaxWeight(self._plain(children[2]), self._span(children))

    def examples(self, children: Children) -> s.Examples:
        return s.Examples(tuple(c for c in children if isinstance(c, s.Field)), self._span(children))

    def field(self, children: Children) -> s.Field:
        optional = _is(children[-1], "OPTIONAL")
        return s.Field(self._name(children[0]), children[2], optional, self._span(children))

    def text_type(self, children: Children) -> s.SimpleType:
        return s.SimpleType("string", None, None, self._span(children))

    def flag_type(self, children: Children) -> s.SimpleType:
        return s.SimpleType("bool", None, None, self._span(children))

    def date_type(self, children: Children) -> s.SimpleType:
        lo, hi = (self._day(children[1]), self._day(children[3])) if len(children) > 1 else (None, None)
        return s.SimpleType("date", lo, hi, self._span(children))

    def enum_type(self, children: Children) -> s.ChoiceType:
        values = tuple(self._word(c) for c in children[2:] if not _is(c, "COMMA"))
        return s.ChoiceType("enum", values, self._span(children))

    def set_type(self, children: Children) -> s.ChoiceType:
        values = tuple(self._word(c) for c in children[2:] if not _is(c, "COMMA"))
        return s.ChoiceType("set", values, self._span(children))

    def number_type(self, children: Children) -> s.RangeType:
        unit = next((child.text for child in children if isinstance(child, _Unit)), "")
        places = self._plain(children[-1]) if _is(children[-2], "PLACES") else None
        lo, hi = (child for child in children if isinstance(child, s.Quantity))
        return s.RangeType(str(children[0]), lo, hi, unit, places, self._span(children))  # type: ignore[arg-type]  # by the grammar

    def signals(self, children: Children) -> s.Signals:
        return s.Signals(tuple(c for c in children if isinstance(c, s.SignalField)), self._span(children))

    def signal(self, children: Children) -> s.SignalField:
        default = children[-1] if isinstance(children[-1], s.Quantity) else None
        return s.SignalField(self._name(children[0]), children[2], default, self._span(children))

    def model(self, children: Children) -> s.Model:
        return s.Model(tuple(c for c in children if isinstance(c, s.Part)), self._span(children))

    def part(self, children: Children) -> s.Part:
        selectors = tuple(c for c in children if isinstance(c, s.PartSelector))
        return s.Part(self._name(children[0]), selectors, self._span(children))

    def selector(self, children: Children) -> s.PartSelector:
        numbers = self._plains(children)
        pattern = self._word(children[1]) if _is(children[-1], "STRING") else None
        lo, hi = (numbers[0], numbers[-1]) if numbers else (None, None)
        return s.PartSelector(str(children[0]), lo, hi, pattern, self._span(children))  # type: ignore[arg-type]  # by the grammar

    def phases(self, children: Children) -> s.Phases:
        return s.Phases(tuple(c for c in children if isinstance(c, s.Phase)), self._span(children))

    def phase(self, children: Children) -> s.Phase:
        name = self._name(children[0])
        if len(children) == 1:
            return s.Phase(name, None, None, name.span)
        return s.Phase(name, _word_of(children[2]), self._plain(children[3]), self._span(children))

    def let(self, children: Children) -> s.Let:
        return s.Let(self._name(children[1]), children[3].node, self._span(children))

    def band(self, children: Children) -> s.EntropyBand:
        return s.EntropyBand(self._name(children[1]), children[3].node, self._span(children))

    # --- rules ----------------------------------------------------------------------------------------------

    def rule(self, children: Children) -> s.Rule:
        level, rest = _level(children)
        clauses = tuple(rest[3:-1])
        return s.Rule(_word_of(rest[0]), self._name(rest[1]), level, clauses, self._span(children))

    def when(self, children: Children) -> s.When:
        return s.When(children[1].node, self._span(children))

    def because(self, children: Children) -> s.Because:
        return s.Because(self._word(children[1]), self._span(children))

    def reach(self, children: Children) -> s.Targets:
        return s.Targets("reach", tuple(children[1::2]), self._span(children))

    def cap(self, children: Children) -> s.Targets:
        return s.Targets("cap", tuple(children[1::2]), self._span(children))

    def target(self, children: Children) -> s.Target:
        band = self._name(children[0]) if _is(children[0], "NAME") else None
        weight = self._plain(children[2]) if len(children) > 1 else None
        return s.Target(band, weight, self._span(children))

    def route(self, children: Children) -> s.Route:
        return s.Route(self._name(children[2]), self._span(children))

    def refuse(self, children: Children) -> s.Refuse:
        return s.Refuse(self._span(children))

    def moment(self, children: Children) -> s.Moment:
        last = children[-1]
        if _is(last, "DATE"):
            return s.Moment("day", self._day(last), self._of(last))
        if _is(last, "NAME"):
            return s.Moment("name", self._name(last), self._of(last))
        return s.Moment(_word_of(children[0]), self._plain(last), self._span(children))

    def until(self, children: Children) -> s.Timing:
        return s.Timing("until", children[1], self._span(children))

    def from_(self, children: Children) -> s.Timing:
        return s.Timing("from", children[1], self._span(children))

    def before(self, children: Children) -> s.Timing:
        return s.Timing("before", children[1], self._span(children))

    def during(self, children: Children) -> s.During:
        if _is(children[1], "DATE"):
            return s.During("day", self._day(children[1]), self._day(children[3]), self._span(children))
        lo, hi = self._plains(children)
        return s.During(_word_of(children[1]), lo, hi, self._span(children))

    def in_phase(self, children: Children) -> s.InPhase:
        return s.InPhase(self._name(children[1]), self._span(children))

    def at_most(self, children: Children) -> s.AtMost:
        noun = "exposures" if str(children[2]).startswith("exposure") else "epochs"
        return s.AtMost(self._plain(children[1]), noun, self._span(children))  # type: ignore[arg-type]  # one of two

    def within(self, children: Children) -> s.Within:
        return s.Within(self._names(children), self._span(children))

    def epsilon(self, children: Children) -> s.PrivacyNumber:
        return s.PrivacyNumber(_word_of(children[0]), self._plain(children[1]), self._span(children))

    delta = epsilon
    clip = epsilon

    def unit_of(self, children: Children) -> s.UnitOf:
        return s.UnitOf(self._name(children[1]), self._span(children))

    def scale(self, children: Children) -> s.Scale:
        return s.Scale(tuple(children[1::2]), self._span(children))

    def scaling(self, children: Children) -> s.Scaling:
        band, signal = self._names(children)
        at_low, at_high = self._plains(children)
        return s.Scaling(band, signal, at_low, at_high, self._span(children))

    def approved(self, children: Children) -> s.Approved:
        return s.Approved(self._word(children[2]), self._span(children))

    # --- assertions and guards ------------------------------------------------------------------------------

    def assertion(self, children: Children) -> s.Assertion:
        level, rest = _level(children)
        because = next((child for child in rest if isinstance(child, s.Because)), None)
        return s.Assertion(self._name(rest[1]), level, rest[3], because, self._span(children))

    def never_reach(self, children: Children) -> s.Claim:
        return s.Claim(
            "never_reach", _condition(children), self._name(children[2]), None, self._span(children)
        )

    def always(self, children: Children) -> s.Claim:
        form = "always_refuse" if _is(children[1], "REFUSE") else "always_private"
        return s.Claim(form, _condition(children), None, None, self._span(children))  # type: ignore[arg-type]  # one of two

    def bounded(self, children: Children) -> s.Claim:
        band, bound = self._name(children[3]), self._plain(children[1])
        return s.Claim("at_most", _condition(children), band, bound, self._span(children))

    def claim(self, children: Children) -> s.Claim:
        return s.Claim("condition", children[0].node, None, None, self._span(children))

    def starvation(self, children: Children) -> s.Starvation:
        steps, action = self._plain(children[4]), _word_of(children[6])
        return s.Starvation(self._name(children[1]), steps, action, self._span(children))

    def gradient(self, children: Children) -> s.Gradient:
        return s.Gradient(tuple(c for c in children if isinstance(c, s.GradientCap)), self._span(children))

    def gradient_cap(self, children: Children) -> s.GradientCap:
        return s.GradientCap(self._name(children[0]), self._plain(children[2]), self._span(children))

    # --- expressions ----------------------------------------------------------------------------------------

    def _grow(self, children: Children, make: Callable[[Span], s.Expr]) -> _Built:
        """Build an expression over the built ones among `children`, within the limit on nesting."""
        span = self._span(children)
        below = max((child.height for child in children if isinstance(child, _Built)), default=0)
        if below < MAX_NESTING:
            return _Built(make(span), below + 1, span)
        if below == MAX_NESTING:
            self._fault(
                "GW106",
                f"this expression is nested more than {MAX_NESTING} levels deep",
                Span(self.source, span.start, span.start + 1),
                "name parts of it with `let`",
            )
        return _Built(s.Truth(False, span), MAX_NESTING + 1, span)

    def implication(self, children: Children) -> _Built:
        left, right = _terms(children)
        return self._grow(children, lambda span: s.Implication(left, right, span))

    def disjunction(self, children: Children) -> _Built:
        return self._grow(children, lambda span: s.Junction("or", _terms(children), span))

    def conjunction(self, children: Children) -> _Built:
        return self._grow(children, lambda span: s.Junction("and", _terms(children), span))

    def negation(self, children: Children) -> _Built:
        return self._grow(children, lambda span: s.Negation(_terms(children)[0], span))

    def comparison(self, children: Children) -> _Built:
        ops = tuple(str(child) for child in children[1::2])
        if len(ops) > 1:
            self._fault(
                "GW113",
                "comparisons cannot be chained",
                self._of(children[3]),
                "write `x in 0..1`, or join two comparisons with `and`",
            )
        return self._grow(children, lambda span: s.Comparison(_terms(children)[:2], ops[:1], span))

    def in_list(self, children: Children) -> _Built:
        negated, members = _is(children[1], "NOT"), children[-1].members
        return self._grow(children, lambda span: s.InList(_terms(children)[0], members, negated, span))

    def in_range(self, children: Children) -> _Built:
        negated, lo, hi = _is(children[1], "NOT"), children[-3], children[-1]
        return self._grow(children, lambda span: s.InRange(_terms(children)[0], lo, hi, negated, span))

    def text_test(self, children: Children) -> _Built:
        test = " ".join(str(child) for child in children[1:-1])
        operand = self._word(children[-1])
        return self._grow(children, lambda span: s.TextTest(test, _terms(children)[0], operand, span))  # type: ignore[arg-type]  # by the grammar

    def set_test(self, children: Children) -> _Built:
        test, members = _word_of(children[2]), children[3].members
        return self._grow(children, lambda span: s.SetTest(test, _terms(children)[0], members, span))

    def addition(self, children: Children) -> _Built:
        left, right = _terms(children)
        op = "add" if _is(children[1], "PLUS") else "sub"
        return self._grow(children, lambda span: s.Operation(op, left, right, span))  # type: ignore[arg-type]  # one of two

    def multiplication(self, children: Children) -> _Built:
        left, right = _terms(children)
        return self._grow(children, lambda span: s.Operation("mul", left, right, span))

    def negative(self, children: Children) -> _Built:
        term = _terms(children)[0]
        if isinstance(term, s.Quantity):
            return self._grow(children, lambda span: s.Quantity(-term.value, term.unit, span))
        return self._grow(children, lambda span: s.Negative(term, span))

    def group(self, children: Children) -> _Built:
        return self._grow(children, lambda span: cast(s.Expr, children[1].node))

    def number(self, children: Children) -> _Built:
        return self._grow(children, lambda span: self._quantity(children))

    def day(self, children: Children) -> _Built:
        return self._grow(children, lambda span: self._day(children[0]))

    def text(self, children: Children) -> _Built:
        return self._grow(children, lambda span: self._word(children[0]))

    def name(self, children: Children) -> _Built:
        return self._grow(children, lambda span: s.Reference(str(children[0]), span))

    def truth(self, children: Children) -> _Built:
        return self._grow(children, lambda span: s.Truth(str(children[0]) == "true", span))

    def has(self, children: Children) -> _Built:
        return self._grow(children, lambda span: s.Present(self._name(children[1]), span))

    def in_band(self, children: Children) -> _Built:
        return self._grow(children, lambda span: s.InBand(self._name(children[1]), span))

    # --- pieces ---------------------------------------------------------------------------------------------

    def list(self, children: Children) -> _List:
        return _List(self._members(children), self._span(children))

    def bound(self, children: Children) -> s.Bound:
        return self._day(children[0]) if _is(children[0], "DATE") else self._quantity(children)

    def signed(self, children: Children) -> s.Quantity:
        return self._quantity(children)

    def unit(self, children: Children) -> _Unit:
        return _Unit("".join(str(child) for child in children), self._span(children))


@dataclass(frozen=True, slots=True)
class _Unit:
    text: str
    span: Span


@dataclass(frozen=True, slots=True)
class _List:
    members: tuple[s.Member, ...]
    span: Span


def _is(child: Any, *types: str) -> bool:
    return getattr(child, "type", None) in types and hasattr(child, "start_pos")


def _word_of(token: Any) -> Any:
    """A keyword as plain text; the grammar guarantees that it is one of the words its node allows."""
    return str(token)


def _level(children: Children) -> tuple[Any, Children]:
    """Split off the leading `hard` or `advisory`, if any."""
    if _is(children[0], "HARD", "ADVISORY"):
        return str(children[0]), children[1:]
    return None, children


def _terms(children: Sequence[Any]) -> tuple[s.Expr, ...]:
    return tuple(child.node for child in children if isinstance(child, _Built))


def _condition(children: Children) -> s.Expr | None:
    last = children[-1]
    return last.condition if isinstance(last, s.When) else None
