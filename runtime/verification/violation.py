"""What the replay of a run says of an entry that the program does not allow."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from math import inf, isinf

import orjson


class ViolationError(Exception):
    """An entry that the program does not allow. Internal: becomes a finding with this code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


_DECIMAL = re.compile(r"-?[0-9]{1,400}(\.[0-9]{1,400})?(e[+-]?[0-9]{1,3})?")

_PLAIN = re.compile(r"[0-9.,e+-]*")
_MOST = 40
"""Characters of a decimal that is read together with others."""

_LONG_EXPONENT = re.compile(r"e[+-]?[0-9]{4}")


def number(text: str) -> float:
    """Return a recorded decimal as a number. Raises ViolationError where it is none, or too large for one."""
    value = float(text) if _DECIMAL.fullmatch(text) else inf
    if isinf(value):
        raise ViolationError("wrong_outcome", f"`{text[:40]}` is recorded where a number belongs")
    return value


def decimals(texts: Sequence[str]) -> list[float] | None:
    """Return recorded decimals as numbers, None where `number` would refuse one."""
    values = _read_together(texts)
    if values is None:
        if not all(map(_DECIMAL.fullmatch, texts)):
            return None
        values = list(map(float, texts))
    return None if any(map(isinf, values)) else values


def _read_together(texts: Sequence[str]) -> list[float] | None:
    """Return decimals that JSON writes alike, in a fraction of the time; None where there may be others.

    JSON has no limit on the length of numbers and exponents, and refuses leading zeros.
    """
    joined = ",".join(texts)
    if not _PLAIN.fullmatch(joined) or max(map(len, texts), default=0) > _MOST:
        return None
    if "e" in joined and _LONG_EXPONENT.search(joined):
        return None
    try:
        values = list(map(float, orjson.loads(f"[{joined}]")))
    except orjson.JSONDecodeError:
        return None
    return values if len(values) == len(texts) else None


def names(listed: Iterable[str]) -> str:
    """Return names as messages show them."""
    return ", ".join(f"`{name}`" for name in listed) or "none"
