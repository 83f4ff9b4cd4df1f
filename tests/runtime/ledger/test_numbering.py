"""Commitments are numbered in the order in which they first appear, however many are looked up together."""

from __future__ import annotations

from base64 import b64encode
from binascii import a2b_base64

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden.runtime.ledger import numbering
from gradwarden.runtime.ledger.numbering import Numbering, unpack

few = st.sampled_from([bytes([first]) * 8 + bytes([last]) * 24 for first in range(4) for last in range(9)])
"""Commitments of which many want the same slot of a table."""

steps = st.lists(st.one_of(few, st.binary(min_size=32, max_size=32)), min_size=1, max_size=12)


def packed(step: list[bytes]) -> bytes:
    return b64encode(b"".join(step))


@given(st.lists(st.lists(steps, min_size=1, max_size=6), max_size=8))
@settings(max_examples=40, deadline=None)
def test_numbers_are_those_of_a_dictionary(blocks: list[list[list[bytes]]]) -> None:
    given, expected = Numbering(), dict[bytes, int]()
    for block in blocks:
        known = list(expected)
        numbers = [expected.setdefault(name, len(expected)) for step in block for name in step]
        found = given.number([packed(step) for step in block])
        assert found.numbers.tolist() == numbers
        assert (found.known, found.fresh) == (len(known), b"".join(list(expected)[len(known) :]))


def test_a_table_that_grows_keeps_the_numbers() -> None:
    names = [bytes(31 - place % 2) + bytes([place % 251]) + bytes(place % 2) for place in range(500)]
    names = [*dict.fromkeys(names)]
    given = Numbering()
    for name in names:
        given.number([packed([name])])
    assert given.number([packed(names)]).numbers.tolist() == list(range(len(names)))


def test_numbers_begin_anew_where_too_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbering, "MOST", 2)
    given = Numbering()
    first = given.number([packed([bytes([name]) * 32 for name in range(3)])])
    again = given.number([packed([bytes([2]) * 32])])
    assert (first.known, first.numbers.tolist()) == (0, [0, 1, 2])
    assert (again.known, again.numbers.tolist(), again.fresh) == (0, [0], bytes([2]) * 32)


@given(st.lists(steps, max_size=5), st.booleans())
@settings(max_examples=40, deadline=None)
def test_base64_is_unpacked_as_binascii_does(texts: list[list[bytes]], long: bool) -> None:
    """Of texts of one length and of several, one of them much longer than the others."""
    if texts and long:
        texts[0] = texts[0] * 40
    packed_texts = [packed(step) for step in texts]
    found = unpack(packed_texts).view(np.uint32).astype(">u4").tobytes()
    assert found == b"".join(map(a2b_base64, packed_texts))
