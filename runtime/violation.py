"""What the replay of a run says of an entry that the program does not allow."""

from __future__ import annotations

from collections.abc import Iterable


class ViolationError(Exception):
    """An entry that the program does not allow. Internal: becomes a finding with this code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def number(text: str) -> float:
    """Return a recorded decimal as a number. Raises ViolationError where it is none."""
    try:
        return float(text)
    except ValueError:
        raise ViolationError("wrong_outcome", f"`{text}` is recorded where a number belongs") from None


def names(listed: Iterable[str]) -> str:
    """Return names as messages show them."""
    return ", ".join(f"`{name}`" for name in listed) or "none"
