"""Canaries: random fillings of a format, the same for the same seed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.runtime.errors import MemorizationError
from gradwarden.runtime.memorization.canaries import BLANK, CanaryFormat

FORMAT = CanaryFormat(f'key = "{BLANK * 6}-{BLANK * 2}"\n', "0123456789")


def test_a_format_says_how_much_chance_is_in_it():
    assert pytest.approx(8 * math.log2(10)) == FORMAT.bits


@given(seed=st.integers(0, 2**32), count=st.integers(0, 50), fewer=st.integers(0, 50))
def test_fillings_differ_and_depend_on_the_seed_alone(seed, count, fewer):
    found = FORMAT.fill(count, seed)
    assert len(set(found)) == count
    assert all(text.startswith('key = "') and text.endswith('"\n') and text[13] == "-" for text in found)
    assert all(set(text[7:13] + text[14:16]) <= set("0123456789") for text in found)
    assert FORMAT.fill(min(fewer, count), seed) == found[: min(fewer, count)]


def test_another_seed_gives_other_fillings():
    assert not set(FORMAT.fill(50, 1)) & set(FORMAT.fill(50, 2))


def test_every_filling_of_a_small_format_can_be_had_and_no_more():
    small = CanaryFormat(f"{BLANK}{BLANK}", "ab")
    assert sorted(small.fill(4, 0)) == ["aa", "ab", "ba", "bb"]
    with pytest.raises(MemorizationError, match="cannot be filled in 5 ways"):
        small.fill(5, 0)


def test_letters_that_are_likelier_than_others_are_refused():
    with pytest.raises(MemorizationError, match="repeats a letter"):
        CanaryFormat(BLANK, "aab").fill(1, 0)
    with pytest.raises(MemorizationError, match="several lengths"):
        CanaryFormat(BLANK, ("a", "b", "ab")).fill(1, 0)


def test_blanks_are_filled_with_words_too():
    words = CanaryFormat(f"{BLANK}{BLANK};", ("get_", "set_"))
    assert sorted(words.fill(4, 0)) == ["get_get_;", "get_set_;", "set_get_;", "set_set_;"]
    assert words.bits == 2.0
