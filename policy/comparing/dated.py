"""A program whose day is an attribute, so that examples can be decided together, each on its own day."""

from __future__ import annotations

from dataclasses import replace

from gradwarden.policy.checking.types import MAX_DAY, MIN_DAY
from gradwarden.policy.comparing.rewriting import rewritten, substituted
from gradwarden.policy.program import AttributeSpec, AttributeValue, ClockValue, Program

DAY = "today"
"""The attribute that holds the day. No policy can declare it: it is a word of the language."""


def dated(program: Program) -> Program:
    """Return a program that decides as this one does on the day in the attribute `DAY`.

    It is made for evaluation only: its attributes are not sorted.
    """
    today, day = ClockValue("today"), AttributeValue(DAY)
    return replace(
        rewritten(program, lambda _, condition: substituted(condition, today, day)),
        attributes=(*program.attributes, AttributeSpec(DAY, "date", lo=MIN_DAY, hi=MAX_DAY)),
    )
