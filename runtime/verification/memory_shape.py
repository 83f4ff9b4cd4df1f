"""The shape of a memory, but for the state of its replay, which is read object by object (`plain_data`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeAlias

from gradwarden.runtime.ledger.entries import OPENINGS
from gradwarden.runtime.ledger.links import Stage
from gradwarden.runtime.ledger.shapes import SHAPES

Shape: TypeAlias = Callable[[Any], bool]


def fits(value: Any) -> bool:
    """Whether a value has the fields of a memory, each of its type and within its range."""
    return _record(_MEMORY, value)


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _text(value: Any) -> bool:
    return type(value) is str


def _texts(value: Any) -> bool:
    return type(value) is list and all(map(_text, value))


def _digest(value: Any) -> bool:
    return type(value) is str and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _digests(value: Any) -> bool:
    return type(value) is list and all(map(_digest, value))


def _moment(value: Any) -> bool:
    try:
        return type(value) is str and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def _record(fields: Mapping[str, Shape], value: Any) -> bool:
    return (
        type(value) is dict
        and value.keys() == fields.keys()
        and all(shape(value[name]) for name, shape in fields.items())
    )


def _maybe(shape: Shape) -> Shape:
    return lambda value: value is None or shape(value)


def _change(value: Any) -> bool:
    return type(value) is list and len(value) == 2 and _count(value[0]) and _text(value[1])


_FAULT: Mapping[str, Shape] = {"code": _text, "index": _count, "offset": _count, "message": _text}
_TERMS: Mapping[str, Shape] = {
    "keys": _texts,
    "programs": _digests,
    "approvers": _texts,
    "needed": _count,
    "only": lambda value: value in (None, "chain", "entries"),
}
_LINKS: Mapping[str, Shape] = {
    "size": _count,
    "peaks": _digests,
    "prev": _digest,
    "offset": _count,
    "line_before": _count,
    "stage": lambda value: _text(value) and value in Stage.__members__,
    "opened": _maybe(lambda value: any(SHAPES[kind](value) for kind in OPENINGS)),
    "signed_size": _count,
    "last_head": _maybe(_count),
    "last_root": _digest,
    "keys_used": _texts,
    "unknown_head": _maybe(lambda value: _record(_FAULT, value)),
    "changes": lambda value: type(value) is list and all(map(_change, value)),
}
_MEMORY: Mapping[str, Shape] = {
    "terms": lambda value: _record(_TERMS, value),
    "at": _moment,
    "by": _maybe(_text),
    "root": _digest,
    "steps": _count,
    "decisions": _count,
    "links": lambda value: _record(_LINKS, value),
    "replay": _maybe(lambda value: type(value) is dict),
}
