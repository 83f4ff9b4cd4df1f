"""The string tests of the language: equality, prefix, suffix, containment and glob patterns.

All take time linear in the length of the text for a given pattern; there is nothing to backtrack.
"""

from __future__ import annotations

from typing import assert_never

from gradwarden.policy.program import Text, TextTest


def text_holds(condition: Text, value: str) -> bool:
    """Return whether a present value passes the test against any of the operands."""
    return any(_passes(condition.test, value, operand) for operand in condition.operands)


def _passes(test: TextTest, value: str, operand: str) -> bool:
    match test:
        case "equals":
            return value == operand
        case "prefix":
            return value.startswith(operand)
        case "suffix":
            return value.endswith(operand)
        case "contains":
            return operand in value
        case "glob":
            return glob_matches(operand, value)
        case _:
            assert_never(test)


def glob_matches(pattern: str, value: str) -> bool:
    """Match a whole text against a pattern: `*` is any run of characters, `?` any one, all else itself.

    The parts between stars are placed leftmost one after another, which is enough: a match that places a
    part later leaves less room for those that follow.
    """
    first, *rest = pattern.split("*")
    if not rest:
        return len(first) == len(value) and _fits(first, value, 0)
    *middle, last = rest
    end = len(value) - len(last)
    if end < len(first) or not _fits(first, value, 0) or not _fits(last, value, end):
        return False
    at = len(first)
    for part in middle:
        at = _find(part, value, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


def _find(part: str, value: str, start: int, end: int) -> int:
    """Return where `part` first fits within value[start:end], or -1."""
    if "?" not in part:
        return value.find(part, start, end)
    return next((at for at in range(start, end - len(part) + 1) if _fits(part, value, at)), -1)


def _fits(part: str, value: str, at: int) -> bool:
    if "?" not in part:
        return value.startswith(part, at)
    return all(p in ("?", c) for p, c in zip(part, value[at : at + len(part)], strict=True))
