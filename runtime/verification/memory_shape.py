"""The shape of a memory, but for the state of its replay, which is read object by object (`plain_data`)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any

from gradwarden.runtime.ledger.entries import OPENINGS
from gradwarden.runtime.ledger.links import Stage
from gradwarden.runtime.ledger.shapes import SHAPES
from gradwarden.runtime.ledger.value_shapes import (
    Shape,
    are_texts,
    is_digest,
    is_list_of,
    is_none_or,
    is_record,
    is_text,
)


def fits(value: Any) -> bool:
    """Whether a value has the fields of a memory, each of its type and within its range."""
    return is_record(_MEMORY, value)


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _moment(value: Any) -> bool:
    try:
        return type(value) is str and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def _change(value: Any) -> bool:
    return type(value) is list and len(value) == 2 and _count(value[0]) and is_text(value[1])


_FAULT: Mapping[str, Shape] = {"code": is_text, "index": _count, "offset": _count, "message": is_text}
_TERMS: Mapping[str, Shape] = {
    "keys": are_texts,
    "programs": partial(is_list_of, is_digest),
    "approvers": are_texts,
    "needed": _count,
    "only": lambda value: value in (None, "chain", "entries"),
}
_LINKS: Mapping[str, Shape] = {
    "size": _count,
    "peaks": partial(is_list_of, is_digest),
    "prev": is_digest,
    "offset": _count,
    "line_before": _count,
    "stage": lambda value: is_text(value) and value in Stage.__members__,
    "opened": partial(is_none_or, lambda value: any(SHAPES[kind](value) for kind in OPENINGS)),
    "signed_size": _count,
    "last_head": partial(is_none_or, _count),
    "last_root": is_digest,
    "keys_used": are_texts,
    "unknown_head": partial(is_none_or, partial(is_record, _FAULT)),
    "changes": partial(is_list_of, _change),
}
_MEMORY: Mapping[str, Shape] = {
    "terms": partial(is_record, _TERMS),
    "at": _moment,
    "by": partial(is_none_or, is_text),
    "root": is_digest,
    "steps": _count,
    "decisions": _count,
    "links": partial(is_record, _LINKS),
    "replay": partial(is_none_or, lambda value: type(value) is dict),
}
