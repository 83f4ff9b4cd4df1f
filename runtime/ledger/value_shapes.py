"""Shapes of values read from JSON. Types are exact: a bool is no int."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Shape: TypeAlias = Callable[[Any], bool]

_DIGEST = re.compile(r"[0-9a-f]{64}")
_TEXT = frozenset({str})


def is_text(value: Any) -> bool:
    """Whether a value is a string."""
    return type(value) is str


def is_digest(value: Any) -> bool:
    """Whether a value is a SHA-256 in hex."""
    return type(value) is str and _DIGEST.fullmatch(value) is not None


def is_none_or(shape: Shape, value: Any) -> bool:
    """Whether a value is None, or has a shape."""
    return value is None or shape(value)


def are_texts(value: Any) -> bool:
    """Whether a value is a list of strings."""
    return type(value) is list and _TEXT.issuperset(map(type, value))


def is_list_of(shape: Shape, value: Any) -> bool:
    """Whether a value is a list of values of one shape."""
    return type(value) is list and all(map(shape, value))


def is_record(fields: Mapping[str, Shape], value: Any) -> bool:
    """Whether a value is a mapping with these keys, and no others, each with a value of its shape."""
    return (
        type(value) is dict
        and value.keys() == fields.keys()
        and all(shape(value[name]) for name, shape in fields.items())
    )
