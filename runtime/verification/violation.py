"""What the replay of a run says of an entry that the program does not allow."""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import inf, isinf


class ViolationError(Exception):
    """An entry that the program does not allow. Internal: becomes a finding with this code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


_DECIMAL = re.compile(r"-?[0-9]{1,400}(\.[0-9]{1,400})?(e[+-]?[0-9]{1,3})?")


def number(text: str) -> float:
    """Return a recorded decimal as a number. Raises ViolationError where it is none, or too large for one."""
    value = float(text) if _DECIMAL.fullmatch(text) else inf
    if isinf(value):
        raise ViolationError("wrong_outcome", f"`{text[:40]}` is recorded where a number belongs")
    return value


def names(listed: Iterable[str]) -> str:
    """Return names as messages show them."""
    return ", ".join(f"`{name}`" for name in listed) or "none"
