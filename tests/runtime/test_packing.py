"""What packs sequences, and what keeps them apart."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden.runtime.batching.packing import attention_within, pack, positions_within
from gradwarden.runtime.errors import MaskError


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(0, 7), max_size=9), width=st.integers(7, 12))
def test_packing_loses_nothing(lengths: list[int], width: int) -> None:
    batch = [torch.randint(1, 9, (length,)) for length in lengths]
    tokens, documents = pack(batch, width)
    places = positions_within(documents)
    mask = attention_within(documents)
    assert tokens.shape == documents.shape == (len(tokens), width)
    for number, sequence in enumerate(batch):
        held = documents == number
        assert torch.equal(tokens[held], sequence)
        assert torch.equal(places[held], torch.arange(len(sequence)))
    assert bool((tokens[documents < 0] == 0).all())
    for row in range(len(tokens)):
        for query in range(width):
            allowed = mask[row, 0, query].nonzero().flatten().tolist()
            assert allowed == [
                key for key in range(query + 1) if documents[row, key] == documents[row, query]
            ]


def test_a_sequence_that_is_too_long_is_refused() -> None:
    with pytest.raises(MaskError, match="sequence 1 has 5 tokens"):
        pack([torch.zeros(2), torch.zeros(5)], 4)
