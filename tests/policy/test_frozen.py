"""Frozen values behave as dataclasses that are frozen and have slots."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.policy.frozen import frozen


@frozen
class Point:
    x: int
    y: object = "none"


@frozen
class Place:
    """Another class of the same fields."""

    x: int
    y: object = "none"


@frozen
class Nothing:
    pass


@dataclasses.dataclass(frozen=True, slots=True)
class Peer:
    x: int
    y: object = "none"


VALUES = st.one_of(st.integers(-2, 2), st.text(max_size=2), st.tuples(st.booleans()))


@given(st.integers(-2, 2), VALUES, st.integers(-2, 2), VALUES)
def test_values_are_equal_hashed_and_shown_as_dataclasses_are(x: int, y: Any, u: int, v: Any) -> None:
    assert (Point(x, y) == Point(u, v)) == (Peer(x, y) == Peer(u, v))
    assert repr(Point(x, y)) == repr(Peer(x, y)).replace("Peer", "Point")
    assert len({Point(x, y), Point(u, v)}) == len({Peer(x, y), Peer(u, v)})
    assert dataclasses.astuple(Point(x, y)) == dataclasses.astuple(Peer(x, y))
    assert Point(x, y) != Place(x, y)


def test_defaults_keywords_and_patterns_are_those_of_the_fields() -> None:
    assert Point(1) == Point(x=1, y="none")
    match Point(3, 4):
        case Point(x, y):
            assert (x, y) == (3, 4)
    assert Nothing() == Nothing()
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        Point()  # type: ignore[call-arg]  # the fault under test


def test_the_tools_of_dataclasses_take_values() -> None:
    point = Point(1, (Point(2),))
    assert dataclasses.replace(point, x=5) == Point(5, (Point(2),))
    assert dataclasses.asdict(point) == {"x": 1, "y": ({"x": 2, "y": "none"},)}
    assert [field.name for field in dataclasses.fields(point)] == ["x", "y"]


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_are_equal(again: Any) -> None:
    assert again(Point(1, Point(2))) == Point(1, Point(2))


def test_values_hold_nothing_but_their_fields() -> None:
    assert not hasattr(Point(1), "__dict__")
