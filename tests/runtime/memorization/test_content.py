"""A text is found by its content, however it is wrapped, and no other text is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.runtime.errors import MemorizationError
from gradwarden.runtime.memorization.content import ContentIndex, content_digest, content_id

words = st.lists(st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1), max_size=6)
space = st.text(" \t\n\r\u2003", min_size=1, max_size=3)


@given(words, st.data())
def test_white_space_does_not_count(parts, data):
    drawn = [data.draw(space) for _ in range(len(parts) + 1)]
    spaced = drawn[0] + "".join(part + gap for part, gap in zip(parts, drawn[1:], strict=True))
    assert content_id(spaced) == content_id(" ".join(parts))


def test_composed_and_decomposed_letters_are_the_same_and_others_are_not():
    assert content_digest("caf\u00e9") == content_digest("cafe\u0301")
    assert len({content_digest(text) for text in ("cafe", "café", "Café", "caf é")}) == 4


def test_an_index_is_read_as_it_was_written(tmp_path):
    index = ContentIndex.of([("a", "one  text"), ("b", "another"), ("c", "one text\n")])
    index.save(tmp_path / "index.jsonl")
    again = ContentIndex.load(tmp_path / "index.jsonl")
    assert again.ids(" one text") == ["a", "c"]
    assert again.ids("another") == ["b"]
    assert again.ids("a third") == []


@pytest.mark.parametrize(
    "line",
    ["", "{}", "[]", "nonsense", '{"id": "a"}', '{"id": "a", "sha256": "ab"}', '{"id": 1, "sha256": "%s"}',
     '{"id": "a", "sha256": "%s", "more": 1}', '"\xff"', "[" * 10_000],
)  # fmt: skip
def test_what_is_no_index_is_refused_with_its_place(tmp_path, line):
    path = tmp_path / "index.jsonl"
    path.write_text(f'{{"id": "a", "sha256": "{"0" * 64}"}}\n{line.replace("%s", "0" * 64)}\n', "latin-1")
    with pytest.raises(MemorizationError, match=r"index\.jsonl:2"):
        ContentIndex.load(path)
