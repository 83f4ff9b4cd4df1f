"""Builds expressions, bottom-up, one method per grammar rule.

Building as rules complete bounds nesting without recursion: an expression taller than `MAX_NESTING` is
reported once and replaced by a leaf.
"""

from __future__ import annotations

from typing import Any

from gradwarden.policy.source import Source, Span
from gradwarden.policy.syntax import tree as s
from gradwarden.policy.syntax.build_tokens import Children, TokenReader, is_token, word_of

MAX_NESTING = 64
"""How many levels of operators and parentheses an expression may have."""


class ExpressionBuilder(TokenReader):
    """Builds the expressions of one source."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        # The heights of expressions that are not leaves, by id; each with its expression, which so lives on.
        self._heights: dict[int, tuple[int, s.Expr]] = {}

    def _grown(self, node: s.Expr, span: Span, *below: s.Expr) -> s.Expr:
        """Return an expression over others, or a leaf in its place where it is nested too deep."""
        known, height = self._heights, 1
        for part in below:
            if (found := known.get(id(part))) and found[0] > height:
                height = found[0]
        if height >= MAX_NESTING:
            if height == MAX_NESTING:
                self._fault(
                    "GW106",
                    f"this expression is nested more than {MAX_NESTING} levels deep",
                    Span(self.source, span.start, span.start + 1),
                    "name parts of it with `let`",
                )
            node, height = s.Truth(False, span), MAX_NESTING
        known[id(node)] = height + 1, node
        return node

    def implication(self, children: Children, span: Span) -> s.Expr:
        left, _, right = children
        return self._grown(s.Implication(left, right, span), span, left, right)

    def disjunction(self, children: Children, span: Span) -> s.Expr:
        terms = tuple(children[::2])
        return self._grown(s.Junction("or", terms, span), span, *terms)

    def conjunction(self, children: Children, span: Span) -> s.Expr:
        terms = tuple(children[::2])
        return self._grown(s.Junction("and", terms, span), span, *terms)

    def negation(self, children: Children, span: Span) -> s.Expr:
        term = children[1]
        return self._grown(s.Negation(term, span), span, term)

    def comparison(self, children: Children, span: Span) -> s.Expr:
        if len(children) > 3:
            self._fault(
                "GW113",
                "comparisons cannot be chained",
                self._of(children[3]),
                "write `x in 0..1`, or join two comparisons with `and`",
            )
        left, op, right = children[:3]
        return self._grown(s.Comparison((left, right), (op[1],), span), span, *children[::2])

    def in_list(self, children: Children, span: Span) -> s.Expr:
        term, negated = children[0], is_token(children[1], "NOT")
        return self._grown(s.InList(term, tuple(children[-1]), negated, span), span, term)

    def in_range(self, children: Children, span: Span) -> s.Expr:
        term, negated = children[0], is_token(children[1], "NOT")
        return self._grown(s.InRange(term, children[-3], children[-1], negated, span), span, term)

    def text_test(self, children: Children, span: Span) -> s.Expr:
        term, *words, operand = children
        test: Any = " ".join([word_of(word) for word in words])
        return self._grown(s.TextTest(test, term, self._word(operand), span), span, term)

    def set_test(self, children: Children, span: Span) -> s.Expr:
        term, _, test, members = children
        return self._grown(s.SetTest(word_of(test), term, tuple(members), span), span, term)

    def addition(self, children: Children, span: Span) -> s.Expr:
        left, sign, right = children
        op: Any = "add" if is_token(sign, "PLUS") else "sub"
        return self._grown(s.Operation(op, left, right, span), span, left, right)

    def multiplication(self, children: Children, span: Span) -> s.Expr:
        left, _, right = children
        return self._grown(s.Operation("mul", left, right, span), span, left, right)

    def negative(self, children: Children, span: Span) -> s.Expr:
        term = children[1]
        if isinstance(term, s.Quantity):
            return self._grown(s.Quantity(term.value.copy_negate(), term.unit, span), span, term)
        return self._grown(s.Negative(term, span), span, term)

    def group(self, children: Children, span: Span) -> s.Expr:
        return self._grown(children[1], span, children[1])

    def number(self, children: Children, span: Span) -> s.Expr:
        return self._quantity(children, span)

    def day(self, children: Children, span: Span) -> s.Expr:
        return self._day(children[0])

    def text(self, children: Children, span: Span) -> s.Expr:
        return self._word(children[0])

    def name(self, children: Children, span: Span) -> s.Expr:
        return s.Reference(children[0][1], span)

    def truth(self, children: Children, span: Span) -> s.Expr:
        return s.Truth(word_of(children[0]) == "true", span)

    def has(self, children: Children, span: Span) -> s.Expr:
        return s.Present(self._name(children[1]), span)

    def in_band(self, children: Children, span: Span) -> s.Expr:
        return s.InBand(self._name(children[1]), span)

    def list(self, children: Children, span: Span) -> list[s.Member]:
        return list(self._members(children))

    def bound(self, children: Children, span: Span) -> s.Bound:
        return self._day(children[0]) if is_token(children[0], "DATE") else self._quantity(children, span)

    def signed(self, children: Children, span: Span) -> s.Quantity:
        return self._quantity(children, span)

    def unit(self, children: Children, span: Span) -> str:
        return "".join([text for _, text, _, _ in children])
