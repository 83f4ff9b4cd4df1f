"""Near duplicates come into one cluster, and nothing else does."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden.runtime.memorization.duplicates import clusters, jaccard, lines, pieces


def test_copies_with_small_changes_are_one_cluster_named_by_the_first():
    text = bytes(random.Random(0).choices(range(97, 123), k=400))
    copies = [text, text[:200] + b"-" + text[200:], text[:-3], b"## " + text]
    other = bytes(random.Random(1).choices(range(97, 123), k=400))
    found = clusters((name, pieces(content)) for name, content in zip("abcdz", [*copies, other], strict=True))
    assert found == {"a": "a", "b": "a", "c": "a", "d": "a", "z": "z"}


feature_sets = st.lists(st.frozensets(st.sampled_from([b"a", b"b", b"c", b"d", b"e"])), max_size=12)


@settings(max_examples=25)
@given(feature_sets)
def test_whoever_is_in_a_cluster_is_near_its_first_and_the_same_set_is_never_in_two(sets):
    named = {f"t{number:02}": features for number, features in enumerate(sets)}
    found = clusters(named.items())
    assert list(found) == list(named)
    for name, first in found.items():
        assert first <= name
        assert found[first] == first
        assert name == first or jaccard(named[name], named[first]) >= 0.8
    whole = [features for features in set(sets) if features]
    assert all(len({found[name] for name in named if named[name] == same}) == 1 for same in whole)


def test_what_shares_three_quarters_is_not_near():
    shared = [f"{number}".encode() for number in range(85)]
    sets = [frozenset([*shared, *(f"{name}{number}".encode() for number in range(15))]) for name in "ab"]
    assert clusters(zip("ab", sets, strict=True), threshold=0.75) == {"a": "a", "b": "b"}
    assert clusters(zip("ab", sets, strict=True), threshold=0.7) == {"a": "a", "b": "a"}


def test_features():
    assert lines(b" x = 1 \n\n\ny") == {b"x = 1", b"y"}
    assert pieces(b"abcd", 3) == {b"abc", b"bcd"}
    assert pieces(b"ab", 3) == {b"ab"}
    assert pieces(b"", 3) == frozenset()
    assert jaccard(lines(b"x = 1\ny = 2"), lines(b"  y = 2\n\nz = 3")) == pytest.approx(1 / 3)


def test_texts_without_features_are_nobodys_duplicates():
    assert clusters([("a", frozenset()), ("b", frozenset())]) == {"a": "a", "b": "b"}
