"""Declares frozen values: classes that are made, compared, hashed and shown by their fields.

They are dataclasses to whatever asks (`fields`, `replace`, `asdict`, `match`, `copy`, `pickle`), and behave
as those of `@dataclass(frozen=True, slots=True)`. Two things differ. That a value does not change is held by
type checkers, not by the interpreter: to set fields past a guard would take most of the time of making the
nodes of a policy. And a class is declared in a fifth of the time; the command declares some hundred.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from operator import attrgetter
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def frozen(cls: type[T]) -> type[T]:
    """Make a class of annotated fields a frozen value; it has no bases, and no default is a `field(…)`."""
    # Where there is no text, dataclasses would work one out from the signature, which takes long.
    cls.__doc__ = cls.__doc__ or cls.__name__
    made: Any = dataclass(init=False, repr=False, eq=False, slots=True)(cls)
    parts = fields(made)
    names = [part.name for part in parts]
    made.__init__ = _init(names)
    made.__init__.__defaults__ = tuple(part.default for part in parts if part.default is not MISSING)
    made.__init__.__qualname__ = f"{cls.__qualname__}.__init__"
    made.__eq__, made.__hash__ = _comparison(names)
    made.__repr__ = _repr
    return made  # type: ignore[no-any-return]  # the class that was given, with slots


def _init(names: list[str]) -> Callable[..., None]:
    """Return a function that sets each field to the argument of its name."""
    body = "".join(f"\n self.{name} = {name}" for name in names) or " pass"
    made: dict[str, Any] = {}
    exec(f"def __init__({', '.join(['self', *names])}):{body}", made)
    function: Callable[..., None] = made["__init__"]
    return function


def _comparison(names: list[str]) -> tuple[Callable[[Any, object], bool], Callable[[Any], int]]:
    """Return what tells whether two values of one class are equal, and what hashes one."""
    read: Callable[[Any], Any] = attrgetter(*names) if names else lambda _: ()

    def equal(self: Any, other: object) -> bool:
        return read(self) == read(other) if other.__class__ is self.__class__ else NotImplemented

    def hashed(self: Any) -> int:
        return hash(read(self))

    return equal, hashed


def _repr(self: Any) -> str:
    shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__match_args__)
    return f"{self.__class__.__qualname__}({shown})"
