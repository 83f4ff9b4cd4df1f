"""From text to syntax tree.

A text without faults is read by the automaton of the grammar. Any other is parsed again, piece by piece, to
say what is wrong with it (`recovery`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from gradwarden.policy.errors import Diagnostic
from gradwarden.policy.source import Source, Span
from gradwarden.policy.syntax.automaton import Automaton, StuckError
from gradwarden.policy.syntax.build import Builder
from gradwarden.policy.syntax.parse_table import grammar_text, load_table
from gradwarden.policy.syntax.tree import File

if TYPE_CHECKING:
    from gradwarden.policy.syntax.recovery import Recovery

MAX_TEXT = 1 << 20
"""The longest policy text, in characters (files: in bytes)."""

MAX_FAULTS = 100
"""How many faults of one text are reported."""

_FORBIDDEN = re.compile(
    # control characters, lone surrogates, and characters that reorder or hide the text around them
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def parse(source: Source) -> tuple[File, list[Diagnostic]]:
    """Return the items of a text that could be read, and every syntax fault found. Never raises."""
    faults = list(_text_faults(source))
    if faults:
        return File(source, (), complete=False), faults
    builder = Builder(source)
    try:
        file, faults = File(source, automaton().run(source, builder)), builder.faults
    except StuckError:
        file, faults = recovery().parse(source, MAX_FAULTS)
    if len(faults) <= MAX_FAULTS:
        return file, faults
    return replace(file, complete=False), [*faults[:MAX_FAULTS], _too_many(source, faults[MAX_FAULTS])]


def _too_many(source: Source, following: Diagnostic) -> Diagnostic:
    stop = following.span or Span(source, 0, 1)
    return Diagnostic("GW114", "too many faults to go on", stop)


def _text_faults(source: Source) -> Iterator[Diagnostic]:
    """Refuse texts that are too long or hold characters that do not show."""
    if len(source.text) > MAX_TEXT:
        start = Span(source, 0, 1)
        yield Diagnostic("GW105", f"the text is longer than {MAX_TEXT} characters", start, "use `import`")
        return
    for match, _ in zip(_FORBIDDEN.finditer(source.text), range(MAX_FAULTS), strict=False):
        character = f"U+{ord(match[0]):04X}"
        span = Span(source, match.start(), match.end())
        yield Diagnostic("GW111", f"the text holds the invisible character {character}", span, "remove it")


@cache
def automaton() -> Automaton:
    """Return the parser of texts without faults."""
    return Automaton(load_table(), Builder)


@cache
def recovery() -> Recovery:
    """Return the parser of texts with faults, which is made when the first one comes."""
    from gradwarden.policy.syntax.recovery import Recovery

    return Recovery(grammar_text())
