"""Builds expressions, bottom-up, one method per grammar rule.

Building as rules complete bounds nesting without recursion: an expression taller than `MAX_NESTING` is
reported once and replaced by a leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from gradwarden.policy.frozen import frozen
from gradwarden.policy.source import Span
from gradwarden.policy.syntax import tree as s
from gradwarden.policy.syntax.build_tokens import Children, ListText, TokenReader, UnitText, is_token, word_of

MAX_NESTING = 64
"""How many levels of operators and parentheses an expression may have."""


@frozen
class Built:
    """An expression under construction with its height."""

    node: s.Expr
    height: int
    span: Span


class ExpressionBuilder(TokenReader):
    """Builds the expressions of one source."""

    def _grow(self, children: Children, make: Callable[[Span], s.Expr]) -> Built:
        """Build an expression over the built ones among `children`, within the limit on nesting."""
        span = self._span(children)
        below = max((child.height for child in children if isinstance(child, Built)), default=0)
        if below < MAX_NESTING:
            return Built(make(span), below + 1, span)
        if below == MAX_NESTING:
            self._fault(
                "GW106",
                f"this expression is nested more than {MAX_NESTING} levels deep",
                Span(self.source, span.start, span.start + 1),
                "name parts of it with `let`",
            )
        return Built(s.Truth(False, span), MAX_NESTING + 1, span)

    def _leaf(self, node: s.Expr) -> Built:
        return Built(node, 1, node.span)

    def implication(self, children: Children) -> Built:
        left, right = _terms(children)
        return self._grow(children, lambda span: s.Implication(left, right, span))

    def disjunction(self, children: Children) -> Built:
        return self._grow(children, lambda span: s.Junction("or", _terms(children), span))

    def conjunction(self, children: Children) -> Built:
        return self._grow(children, lambda span: s.Junction("and", _terms(children), span))

    def negation(self, children: Children) -> Built:
        return self._grow(children, lambda span: s.Negation(_terms(children)[0], span))

    def comparison(self, children: Children) -> Built:
        ops = tuple(str(child) for child in children[1::2])
        if len(ops) > 1:
            self._fault(
                "GW113",
                "comparisons cannot be chained",
                self._of(children[3]),
                "write `x in 0..1`, or join two comparisons with `and`",
            )
        return self._grow(children, lambda span: s.Comparison(_terms(children)[:2], ops[:1], span))

    def in_list(self, children: Children) -> Built:
        negated, members = is_token(children[1], "NOT"), children[-1].members
        return self._grow(children, lambda span: s.InList(_terms(children)[0], members, negated, span))

    def in_range(self, children: Children) -> Built:
        negated, lo, hi = is_token(children[1], "NOT"), children[-3], children[-1]
        return self._grow(children, lambda span: s.InRange(_terms(children)[0], lo, hi, negated, span))

    def text_test(self, children: Children) -> Built:
        test = " ".join(str(child) for child in children[1:-1])
        operand = self._word(children[-1])
        return self._grow(children, lambda span: s.TextTest(test, _terms(children)[0], operand, span))  # type: ignore[arg-type]  # by the grammar

    def set_test(self, children: Children) -> Built:
        test, members = word_of(children[2]), children[3].members
        return self._grow(children, lambda span: s.SetTest(test, _terms(children)[0], members, span))

    def addition(self, children: Children) -> Built:
        left, right = _terms(children)
        op = "add" if is_token(children[1], "PLUS") else "sub"
        return self._grow(children, lambda span: s.Operation(op, left, right, span))  # type: ignore[arg-type]  # one of two

    def multiplication(self, children: Children) -> Built:
        left, right = _terms(children)
        return self._grow(children, lambda span: s.Operation("mul", left, right, span))

    def negative(self, children: Children) -> Built:
        term = _terms(children)[0]
        if isinstance(term, s.Quantity):
            return self._grow(children, lambda span: s.Quantity(term.value.copy_negate(), term.unit, span))
        return self._grow(children, lambda span: s.Negative(term, span))

    def group(self, children: Children) -> Built:
        return self._grow(children, lambda span: cast(s.Expr, children[1].node))

    def number(self, children: Children) -> Built:
        return self._leaf(self._quantity(children))

    def day(self, children: Children) -> Built:
        return self._leaf(self._day(children[0]))

    def text(self, children: Children) -> Built:
        return self._leaf(self._word(children[0]))

    def name(self, children: Children) -> Built:
        return self._leaf(s.Reference(str(children[0]), self._span(children)))

    def truth(self, children: Children) -> Built:
        return self._leaf(s.Truth(str(children[0]) == "true", self._span(children)))

    def has(self, children: Children) -> Built:
        return self._leaf(s.Present(self._name(children[1]), self._span(children)))

    def in_band(self, children: Children) -> Built:
        return self._leaf(s.InBand(self._name(children[1]), self._span(children)))

    def list(self, children: Children) -> ListText:
        return ListText(self._members(children), self._span(children))

    def bound(self, children: Children) -> s.Bound:
        return self._day(children[0]) if is_token(children[0], "DATE") else self._quantity(children)

    def signed(self, children: Children) -> s.Quantity:
        return self._quantity(children)

    def unit(self, children: Children) -> UnitText:
        return UnitText("".join(str(child) for child in children), self._span(children))


def _terms(children: Sequence[Any]) -> tuple[s.Expr, ...]:
    return tuple(child.node for child in children if isinstance(child, Built))
