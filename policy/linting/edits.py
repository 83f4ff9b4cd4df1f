"""Edits of policy texts that keep what a reader needs: comments stay, and so do parentheses that count.

An edit that cannot be made so is not made at all (None).
"""

from __future__ import annotations

from gradwarden.policy.linting.subject import Edit
from gradwarden.policy.source import Span
from gradwarden.policy.syntax import tree as s
from gradwarden.policy.syntax.lexemes import lexemes


def removed_term(junction: s.Junction, index: int) -> Edit | None:
    """Return the edit that takes one term, and the `and` or `or` beside it, out of a junction."""
    extents = term_extents(junction)
    if extents is None or len(extents) < 2:
        return None
    source = junction.span.source
    if index > 0:
        span = Span(source, extents[index - 1].end, extents[index].end)
    else:
        span = Span(source, extents[0].start, extents[1].start)
    return None if "#" in span.text else Edit(span, "")


def term_extents(junction: s.Junction) -> list[Span] | None:
    """Return where each term of a junction stands, its parentheses included."""
    return _split(junction.span, junction.op, len(junction.terms))


def operand_extents(comparison: s.Comparison) -> list[Span] | None:
    """Return where the operands of a comparison stand, their parentheses included."""
    return _split(comparison.span, comparison.ops[0], 2)


def _split(span: Span, separator: str, count: int) -> list[Span] | None:
    """Cut a span at the words or signs that stand in no parentheses of its own."""
    found: list[Span] = []
    depth, begins, end = 0, span.start, span.start
    for lexeme in lexemes(span.text):
        start = span.start + lexeme.start
        if lexeme.kind == "comment":
            continue
        if lexeme.kind == "sign" and lexeme.text in "([":
            depth += 1
        elif lexeme.kind == "sign" and lexeme.text in ")]":
            depth -= 1
        elif depth == 0 and lexeme.text == separator and lexeme.kind in ("word", "sign"):
            found.append(Span(span.source, begins, end))
            begins = -1
            continue
        if begins < 0:
            begins = start
        end = start + len(lexeme.text)
    found.append(Span(span.source, begins, end))
    return found if len(found) == count else None


def removed(span: Span) -> tuple[Edit, ...]:
    """Return the edit that takes a declaration, a clause or a comment out, with lines that it leaves empty.

    There is none where a comment stands inside.
    """
    if any(lexeme.kind == "comment" and lexeme.start > 0 for lexeme in lexemes(span.text)):
        return ()
    text = span.source.text
    start = text.rfind("\n", 0, span.start) + 1
    end = text.find("\n", span.end)
    end = len(text) if end < 0 else end + 1
    before, after = text[start : span.start], text[span.end : end]
    if before.strip():
        return (Edit(Span(span.source, start + len(before.rstrip()), span.end), ""),)
    whole = span if after.strip() else Span(span.source, start, end)
    return (Edit(whole, ""),)
