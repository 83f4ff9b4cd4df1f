"""Offsets and the protocol's positions, in every encoding."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lsprotocol.types import Position

from gradwarden.cli.language_server.positions import Lines

TEXTS = st.text(st.sampled_from("ab é𝄞\r\n\t"), max_size=30)
UNITS = {"utf-8": ("utf-8", 1), "utf-16": ("utf-16-le", 2), "utf-32": ("utf-32-le", 4)}


@pytest.mark.parametrize("encoding", UNITS)
@given(text=TEXTS)
def test_positions_count_code_units_of_a_line(encoding: str, text: str) -> None:
    lines = Lines(text, encoding)
    codec, width = UNITS[encoding]
    for offset in range(len(text) + 1):
        before = text[:offset]
        if before.endswith("\r") and text[offset : offset + 1] == "\n":
            continue  # inside a line end
        parts = before.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        expected = Position(len(parts) - 1, len(parts[-1].encode(codec)) // width)
        assert lines.position(offset) == expected
        assert lines.offset(expected) == offset


def test_positions_outside_the_text_are_clamped() -> None:
    lines = Lines("ab\ncd")
    assert lines.offset(Position(0, 99)) == 2
    assert lines.offset(Position(9, 0)) == 5
    assert lines.position(99) == Position(1, 2)


def test_a_position_inside_a_surrogate_pair_is_before_the_character() -> None:
    assert Lines("a𝄞b").offset(Position(0, 2)) == 1
