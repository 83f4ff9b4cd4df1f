"""YAML with a position for every value, read strictly.

The subset is that of JSON plus dates: mappings with unique string keys, sequences and scalars. Scalars are
resolved by the YAML 1.2 core schema (`null`, `true`, `false`, integers, floats), so that `no` is a word and
not a truth value; plain `YYYY-MM-DD` is a date. Anchors, aliases, tags and several documents are refused.
Sizes are bounded: MAX_CHARACTERS of text, MAX_DEPTH levels of nesting, MAX_FAULTS of one text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, TypeAlias

import yaml

from gradwarden.policy.errors import Diagnostic, PolicyError
from gradwarden.policy.frozen import frozen
from gradwarden.policy.source import Source, Span

MAX_CHARACTERS = 1 << 20
MAX_DEPTH = 64
MAX_FAULTS = 100
"""How many faults of one text are kept."""

Scalar: TypeAlias = bool | int | float | date | str | None

_INTEGER = re.compile(r"[-+]?[0-9]{1,400}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


_NUMERIC = frozenset("0123456789+-.")
"""What a number or a date begins with."""

_STARTS = (yaml.MappingStartEvent, yaml.SequenceStartEvent)
_ENDS = (yaml.MappingEndEvent, yaml.SequenceEndEvent)


@frozen
class Node:
    """A value and where it stands. Mappings keep the node of each key beside the node of its value."""

    value: Scalar | tuple[Node, ...] | dict[str, tuple[Node, Node]]
    span: Span

    def plain(self) -> Any:
        """Return the value as plain Python data."""
        match self.value:
            case dict():
                return {key: node.plain() for key, (_, node) in self.value.items()}
            case tuple():
                return [node.plain() for node in self.value]
            case scalar:
                return scalar

    def describe(self) -> str:
        """Name the kind of value, for messages."""
        match self.value:
            case None:
                return "nothing"
            case bool():
                return "a truth value"
            case int() | float():
                return "a number"
            case date():
                return "a date"
            case str():
                return "a text"
            case tuple():
                return "a list"
            case _:
                return "a mapping"


@dataclass(slots=True)
class _Open:
    """A collection whose end has not been read."""

    start: int
    items: list[Node]
    is_mapping: bool


def read_yaml(source: Source) -> Node:
    """Return the document that a text holds. Raises PolicyError with the positions of all faults."""
    if len(source.text) > MAX_CHARACTERS:
        raise PolicyError(
            [Diagnostic("GW410", f"`{source.name}` is longer than {MAX_CHARACTERS} characters")]
        )
    faults: list[Diagnostic] = []
    try:
        root = _compose(source, _events(source.text), faults)
    except yaml.YAMLError as error:
        faults.append(_syntax_fault(source, error))
        root = None
    except UnicodeEncodeError as error:
        where = Span(source, error.start, error.start + 1)
        faults.append(Diagnostic("GW410", "not valid YAML: the text holds half a character", where))
        root = None
    if faults:
        raise PolicyError(faults[:MAX_FAULTS])
    return root or Node(None, Span(source, 0, 0))


def _events(text: str) -> Iterator[Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return iter(yaml.parse(text, Loader=loader))


def _compose(source: Source, events: Iterator[Any], faults: list[Diagnostic]) -> Node | None:
    """Build the tree with a stack of our own: nesting is bounded before anything recurses over it."""
    stack: list[_Open] = []
    root: Node | None = None
    for event in events:
        if len(faults) >= MAX_FAULTS:
            return None
        kind = type(event)
        span = Span(source, event.start_mark.index, event.end_mark.index)
        if refusal := _refusal(event):
            faults.append(Diagnostic("GW411", f"{refusal} are not allowed here", span))
        if kind is yaml.ScalarEvent:
            node = Node(_resolve(event), span)
        elif kind in _STARTS:
            if len(stack) == MAX_DEPTH:
                faults.append(Diagnostic("GW411", f"nested more than {MAX_DEPTH} levels deep", span))
                return None
            stack.append(_Open(span.start, [], kind is yaml.MappingStartEvent))
            continue
        elif kind in _ENDS:
            node = _close(source, stack.pop(), span.end, faults)
        elif kind is yaml.AliasEvent:
            node = Node(None, span)
        elif kind is yaml.DocumentStartEvent and root is not None:
            faults.append(Diagnostic("GW411", "only one document is allowed", span))
            return None
        else:
            continue
        if stack:
            stack[-1].items.append(node)
        else:
            root = node
    return root


def _refusal(event: Any) -> str | None:
    if isinstance(event, yaml.AliasEvent):
        return "aliases"
    if getattr(event, "anchor", None) is not None:
        return "anchors"
    return "tags" if getattr(event, "tag", None) is not None else None


def _close(source: Source, collection: _Open, end: int, faults: list[Diagnostic]) -> Node:
    last = collection.items[-1].span.end if collection.items else end
    span = Span(source, collection.start, max(last, collection.start))
    if not collection.is_mapping:
        return Node(tuple(collection.items), span)
    entries: dict[str, tuple[Node, Node]] = {}
    for key, value in zip(collection.items[::2], collection.items[1::2], strict=True):
        if len(faults) >= MAX_FAULTS:
            break
        name = key.value if isinstance(key.value, str) else key.span.text
        if not isinstance(key.value, str | int | float | bool | date):
            faults.append(Diagnostic("GW412", f"a key must be a word, not {key.describe()}", key.span))
        elif name in entries:
            line = entries[name][0].span.line
            faults.append(Diagnostic("GW413", f"key `{name}` is repeated; line {line} has it too", key.span))
        else:
            entries[name] = (key, value)
    return Node(entries, span)


def _resolve(event: Any) -> Scalar:
    text: str = event.value
    if event.style not in (None, ""):
        return text
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in _NUMERIC:
        return text
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _SPECIAL.fullmatch(text):
        return float(text.replace(".", ""))
    if _DATE.fullmatch(text):
        try:
            return date.fromisoformat(text)
        except ValueError:
            return text
    return text


def _syntax_fault(source: Source, error: yaml.YAMLError) -> Diagnostic:
    problem = " ".join(
        str(getattr(error, "problem", None) or getattr(error, "reason", None) or error).split()
    )
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    index = getattr(mark, "index", None)
    if index is None:
        position = getattr(error, "position", 0)
        index = position if isinstance(position, int) else 0
    where = Span(source, index, index + 1)
    if "nesting depth" in problem:  # libyaml has a bound of its own, and may look far ahead
        return Diagnostic("GW411", f"nested more than {MAX_DEPTH} levels deep", where)
    return Diagnostic("GW410", f"not valid YAML: {problem}", where)


def entries(node: Node) -> Mapping[str, tuple[Node, Node]]:
    """Return the entries of a mapping node; none where it is something else."""
    return node.value if isinstance(node.value, dict) else {}
