"""The canonical layout of a policy text. Only spacing changes: lexemes and comments keep their order.

- A declaration starts a line. `examples`, `signals`, `model`, `phases` and `gradient` have one entry a line,
  with their colons or equals signs aligned; other blocks stay on one line where they were written so and fit
  in `WIDTH` columns, clauses two spaces apart.
- Long lines are continued before `and`, `or`, `implies` and after commas.
- At most one blank line is kept; one stands around every block of several lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from gradwarden.policy.errors import PolicyError
from gradwarden.policy.source import Source
from gradwarden.policy.syntax import tree as s
from gradwarden.policy.syntax.lexemes import Lexeme, lexemes, space_between
from gradwarden.policy.syntax.parse import parse

WIDTH = 100
INDENT = "  "
CONTINUED = "    "

_TABLES = (s.Examples, s.Signals, s.Model, s.Phases, s.Gradient)


@dataclass(slots=True)
class _Entry:
    """Lexemes that belong on one line, the comment that ends it, and the comments on lines above it."""

    lexemes: list[Lexeme] = field(default_factory=list)
    above: list[Lexeme] = field(default_factory=list)
    trailing: list[Lexeme] = field(default_factory=list)


@dataclass(slots=True)
class _Element:
    """A declaration, or a comment that stands on its own lines between declarations."""

    lines: list[str]
    breaks: int
    is_comment: bool = False
    stands_apart: bool = False


def format_policy(text: str, name: str = "<string>") -> str:
    """Return a policy text in the canonical layout. Raises PolicyError where it does not parse."""
    source = Source(name, text.removeprefix("\ufeff"))
    file, faults = parse(source)
    if faults:
        raise PolicyError(faults)
    elements = list(_elements(lexemes(source.text), file.items))
    lines: list[str] = []
    for before, element in zip([None, *elements], elements, strict=False):
        if before is not None and _apart(before, element):
            lines.append("")
        lines += element.lines
    return "".join(f"{line}\n" for line in lines)


def _apart(before: _Element, element: _Element) -> bool:
    """Whether a blank line stands between two elements."""
    if element.breaks > 1:
        return True
    if before.is_comment:
        return False
    return before.stands_apart or element.stands_apart


def _elements(stream: Sequence[Lexeme], items: Sequence[s.Item]) -> Iterator[_Element]:
    """Cut the lexemes of a text into declarations and the comments between them."""
    at = 0
    previous: _Element | None = None
    for item in [*items, None]:
        start = item.span.start if item else len(stream) and stream[-1].start + 1
        while at < len(stream) and stream[at].start < start:
            comment = stream[at]
            if previous is not None and comment.breaks == 0:
                previous.lines[-1] += f"  {comment.text}"
            else:
                if previous is not None:
                    yield previous
                previous = _Element([comment.text], comment.breaks, is_comment=True)
            at += 1
        if previous is not None:
            yield previous
        if item is None:
            return
        end = at
        while end < len(stream) and stream[end].start < item.span.end:
            end += 1
        previous = _declaration(item, stream[at:end])
        at = end


def _declaration(item: s.Item, own: Sequence[Lexeme]) -> _Element:
    """Lay one declaration out."""
    brace = next((i for i, x in enumerate(own) if x.text == "{" and x.kind == "sign"), None)
    if brace is None:
        lines = _lines(own, "")
        return _Element(lines, own[0].breaks, stands_apart=isinstance(item, s.Header) or len(lines) > 1)
    head, body = own[: brace + 1], own[brace + 1 : -1]
    if not body:
        return _Element([*_lines(head, "")[:-1], _lines(head, "")[-1] + "}"], own[0].breaks)
    entries, below = _entries(body, set(_entry_starts(item)))
    if not isinstance(item, _TABLES) and body[0].breaks == 0:
        line = _one_line(own, head, entries)
        if line is not None:
            return _Element([line], own[0].breaks)
    lines = [*_lines(head, ""), *_block(item, entries, below), "}"]
    if body[0].kind == "comment" and body[0].breaks == 0:
        lines = _lines([*head, body[0]], "") + lines[len(_lines(head, "")) :]
    return _Element(lines, own[0].breaks, stands_apart=True)


def _entry_starts(item: s.Item) -> Iterator[int]:
    """Yield where the entries of a declaration's block begin."""
    parts: Sequence[
        s.Field
        | s.SignalField
        | s.Part
        | s.Semantics
        | s.Phase
        | s.GradientCap
        | s.Pace
        | s.Recorded
        | s.Clause
        | s.Claim
    ] = ()
    match item:
        case s.Examples(fields):
            parts = fields
        case s.Signals(signals):
            parts = signals
        case s.Model(bands, semantics):
            parts = [*bands, *semantics]
        case s.Phases(phases):
            parts = phases
        case s.Gradient(caps, paces, recorded):
            parts = [*caps, *paces, *recorded]
        case s.Rule(kind="curriculum"):
            parts = _stages(item.clauses)
        case s.Rule():
            parts = item.clauses
        case s.Assertion(claim=claim, because=because):
            parts = [claim, because] if because else [claim]
        case _:
            pass
    for part in parts:
        yield part.span.start


def _stages(clauses: Sequence[s.Clause]) -> list[s.Clause]:
    """Return the clauses of a curriculum that begin an entry: a stage is its times and what they open."""
    timing = (s.Timing, s.During, s.InPhase)
    return [
        clause
        for before, clause in zip([None, *clauses], clauses, strict=False)
        if not (isinstance(before, timing) and isinstance(clause, (*timing, s.Targets)))
    ]


def _entries(body: Sequence[Lexeme], starts: set[int]) -> tuple[list[_Entry], list[Lexeme]]:
    """Cut the inside of a block into entries; returns them and the comments below the last."""
    entries: list[_Entry] = []
    waiting: list[Lexeme] = []
    for index, lexeme in enumerate(body):
        if lexeme.kind == "comment" and (not entries or _ends(body, index, starts)):
            if entries and lexeme.breaks == 0 and not waiting:
                entries[-1].trailing.append(lexeme)
            elif index > 0 or lexeme.breaks > 0:
                waiting.append(lexeme)
        elif lexeme.start in starts or not entries:
            entries.append(_Entry([lexeme], waiting))
            waiting = []
        else:
            entries[-1].lexemes.append(lexeme)
    return entries, waiting


def _ends(body: Sequence[Lexeme], index: int, starts: set[int]) -> bool:
    """Whether only comments follow before the next entry."""
    following = next((x for x in body[index:] if x.kind != "comment"), None)
    return following is None or following.start in starts


def _one_line(own: Sequence[Lexeme], head: Sequence[Lexeme], entries: Sequence[_Entry]) -> str | None:
    """Return a block on one line, or None where that is too long or a comment is in the way."""
    if any(lexeme.kind == "comment" for lexeme in own):
        return None
    inside = "  ".join(_joined(entry.lexemes) for entry in entries)
    line = f"{_joined(head)} {inside} }}"
    return line if len(line) <= WIDTH else None


def _block(item: s.Item, entries: Sequence[_Entry], below: Sequence[Lexeme]) -> Iterator[str]:
    """Yield the lines inside a block of several lines."""
    column = 0
    if isinstance(item, s.Examples | s.Signals | s.Model):
        column = max((len(entry.lexemes[0].text) for entry in entries if _is_assigned(entry)), default=0)
    first = True
    for entry in entries:
        for lexeme in [*entry.above, entry.lexemes[0]]:
            if lexeme.breaks > 1 and not first:
                yield ""
            first = False
            if lexeme.kind == "comment":
                yield INDENT + lexeme.text
        lines = _lines(entry.lexemes, INDENT, column if _is_assigned(entry) else 0)
        lines[-1] += "".join(f"  {comment.text}" for comment in entry.trailing)
        yield from lines
    for lexeme in below:
        if lexeme.breaks > 1 and not first:
            yield ""
        first = False
        yield INDENT + lexeme.text


def _is_assigned(entry: _Entry) -> bool:
    """Whether an entry is a name and what it stands for, rather than a setting such as `semantics detach`."""
    return any(lexeme.text in ("=", ":") for lexeme in entry.lexemes[1:] if lexeme.kind == "sign")


def _joined(line: Sequence[Lexeme], column: int = 0) -> str:
    """Return lexemes as one line; the first is padded to `column`."""
    text = ""
    for index, lexeme in enumerate(line):
        if index:
            before = line[index - 2] if index > 1 else None
            text += space_between(before, line[index - 1], lexeme)
        text += lexeme.text
        if index == 0:
            text = text.ljust(column)
    return text


def _lines(line: Sequence[Lexeme], indent: str, column: int = 0) -> list[str]:
    """Return lexemes as lines: broken after comments, and where they would be too long."""
    lines: list[str] = []
    text = indent
    filled = False
    for index, lexeme in enumerate(line):
        if filled:
            before = line[index - 2] if index > 1 else None
            gap = "  " if lexeme.kind == "comment" else space_between(before, line[index - 1], lexeme)
        else:
            gap = ""
        own_line = lexeme.kind == "comment" and lexeme.breaks > 0
        too_long = _may_break(line, index) and len(text + gap) + _reach(line, index) > WIDTH
        if filled and (own_line or too_long):
            lines.append(text.rstrip())
            text, gap = indent + CONTINUED, ""
        text += gap + (lexeme.text.ljust(column) if index == 0 else lexeme.text)
        filled = True
        if lexeme.kind == "comment" and index + 1 < len(line):
            lines.append(text)
            text, filled = indent + CONTINUED, False
    return [*lines, text]


def _may_break(line: Sequence[Lexeme], index: int) -> bool:
    lexeme = line[index]
    if lexeme.kind == "word" and lexeme.text in ("and", "or", "implies"):
        return True
    return line[index - 1].text == "," and line[index - 1].kind == "sign"


def _reach(line: Sequence[Lexeme], index: int) -> int:
    """Return how many columns the lexemes take from here to the next place where the line may break."""
    end = index + 1
    while end < len(line) and not _may_break(line, end) and line[end].kind != "comment":
        end += 1
    return len(_joined(line[index:end]))
