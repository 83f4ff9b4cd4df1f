"""Lints of how conditions are written: double negations, comparisons with `true`, needless `has`."""

from __future__ import annotations

import re

from gradwarden.policy.linting.edits import operand_extents, removed, removed_term
from gradwarden.policy.linting.subject import Edit, Finding, Report, Subject, expressions, walk
from gradwarden.policy.syntax import tree as s

_TWICE = re.compile(r"not[\s(]+not\b")
_TRUTH = re.compile(r"[=!]=[\s(]*(?:true|false)\b")
"""What every text with one of these wordings holds, so that most need not be walked through."""


def lint_wording(subject: Subject, report: Report) -> None:
    """Report conditions of the main file that can be said more plainly."""
    text = subject.main.source.text
    truths = ("true" in text or "false" in text) and _TRUTH.search(text)
    if not truths and not _TWICE.search(text):
        return

    def visit(expr: s.Expr, parent: s.Expr | None) -> None:
        match expr:
            case s.Negation(s.Negation() as inner) if not isinstance(parent, s.Negation):
                _double(report, expr, inner)
            case s.Comparison(operands=(left, s.Truth(value)), ops=("==" | "!=" as op,)) if not isinstance(
                left, s.Truth
            ):
                _compared(report, expr, value == (op == "=="))
            case _:
                pass

    for item in subject.main.items:
        for expr in expressions(item):
            walk(expr, visit)


def _double(report: Report, expr: s.Negation, inner: s.Negation) -> None:
    edits = []
    if "#" not in expr.span.text and inner.span.text.startswith("not"):
        edits = [Edit(expr.span, inner.span.text.removeprefix("not").strip())]
    report.add("GW537", "this is negated twice", expr.span, "leave out both `not`", edits)


def _compared(report: Report, expr: s.Comparison, positive: bool) -> None:
    extents = operand_extents(expr)
    edits, help = [], "write the condition itself" if positive else "write `not` before the condition"
    if extents is not None and "#" not in expr.span.text:
        shorter = extents[0].text if positive else f"not {extents[0].text}"
        edits, help = [Edit(expr.span, shorter)], f"write `{shorter}`"
    report.add("GW537", "a condition is not compared with `true` or `false`", expr.span, help, edits)


def mended_has(subject: Subject) -> list[Finding]:
    """Return what the checker said of needless `has` tests (GW505), with the edits that take them out."""
    found = {f.span.start: f for f in subject.early if f.code == "GW505" and f.span is not None}
    if not found:
        return []
    mended: list[Finding] = []

    def visit(expr: s.Expr, parent: s.Expr | None) -> None:
        if not isinstance(expr, s.Present):
            return
        diagnostic = found.get(expr.name.span.start)
        if diagnostic is None or diagnostic.span is None or diagnostic.span.source is not expr.span.source:
            return
        edit = Edit(expr.span, "true")
        if isinstance(parent, s.Junction) and parent.op == "and":
            edit = removed_term(parent, _index(parent, expr)) or edit
        mended.append(Finding(diagnostic, (edit,)))

    for item in subject.items:
        for expr in expressions(item):
            clause = _clause_of(item, expr)
            if isinstance(expr, s.Present) and clause is not None:
                diagnostic = found.get(expr.name.span.start)
                if diagnostic is not None:
                    mended.append(Finding(diagnostic, removed(clause.span)))
            else:
                walk(expr, visit)
    return mended


def _index(junction: s.Junction, expr: s.Expr) -> int:
    return next(index for index, term in enumerate(junction.terms) if term is expr)


def _clause_of(item: s.Item, expr: s.Expr) -> s.When | None:
    """Return the clause that a condition makes up, where the rule can do without."""
    if not isinstance(item, s.Rule) or item.kind == "memorization":
        return None
    return next((c for c in item.clauses if isinstance(c, s.When) and c.condition is expr), None)
