"""Spans of a text: which is the strangest, and which the model has learned."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradwarden.runtime.errors import MemorizationError
from gradwarden.runtime.memorization.extraction import log_perplexities
from gradwarden.runtime.memorization.spans import SpanProbe, greatest_recital, greatest_span, reference_bits

ROWS = hnp.arrays(
    np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=7), elements=st.integers(-9, 9)
)


class Table(torch.nn.Module):
    """A model of pairs: the next token's logits are a row of a table."""

    def __init__(self, words: int, seed: int) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(words, words)
        torch.nn.init.normal_(self.table.weight, generator=torch.Generator().manual_seed(seed))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.table(tokens)


@given(ROWS, st.integers(1, 9))
def test_the_greatest_span_is_that_of_trying_all(bits, length):
    size = min(length, bits.shape[1])
    tried = [max(row[at : at + size].sum() for at in range(bits.shape[1] - size + 1)) for row in bits]
    np.testing.assert_allclose(greatest_span(bits, length), tried)


def test_the_bits_of_all_tokens_are_the_perplexity():
    model, tokens = Table(11, 1), torch.randint(11, (5, 8), generator=torch.Generator().manual_seed(2))
    found = reference_bits(model, tokens, batch=2)
    assert found.shape == (5, 7)
    np.testing.assert_allclose(found.sum(axis=1), log_perplexities(model, tokens), rtol=1e-6)


def test_the_strangest_span_is_known_before_an_example_was_ever_seen():
    bits = np.array([1.0, 1.0, 9.0, 9.0, 9.0, 1.0])
    probe = SpanProbe({"key": bits, "plain": np.ones(6)}, length=3)
    assert probe.surprisal(["plain", "key"]) == [3.0, 27.0]
    assert probe.gap(["plain", "key"]) == probe.recital(["plain", "key"]) == [0.0, 0.0]


def test_a_span_that_is_known_by_heart_shows_though_the_rest_of_the_text_is_known_worse():
    words, length = 8, 12
    targets = torch.randint(words, (2, length), generator=torch.Generator().manual_seed(3))
    reference = np.full(length, math.log2(words))
    logits = torch.zeros(2, length, words)
    logits[0] -= 2.0 * torch.nn.functional.one_hot(targets[0], words)
    logits[0, 4:8] += 40.0 * torch.nn.functional.one_hot(targets[0, 4:8], words)
    probe = SpanProbe({"secret": reference, "other": reference}, length=4)
    probe.look(["secret", "other"], logits, targets)
    known, unknown = probe.gap(["secret", "other"])
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    given = SpanProbe({"secret": reference, "other": reference}, length=4)
    given.look(["secret", "other"], logits, targets, losses)
    assert given.gap(["secret", "other"]) == pytest.approx([known, unknown], abs=1e-6)
    assert known == pytest.approx(4 * math.log2(words), abs=1e-3)
    assert unknown == pytest.approx(0.0, abs=1e-5)


def test_the_greatest_gap_is_kept_also_by_a_run_that_is_resumed():
    targets = torch.zeros(1, 4, dtype=torch.long)
    knowing = torch.tensor([5.0, 0.0]).expand(1, 4, 2)
    probe = SpanProbe({"a": np.full(4, 2.0)}, length=2)
    probe.look(["a"], knowing, targets)
    found = probe.gap(["a"]), probe.recital(["a"])
    assert found[0][0] > 3.9
    assert found[1] == [4.0]
    probe.look(["a"], -knowing, targets)
    assert (probe.gap(["a"]), probe.recital(["a"])) == found
    later = SpanProbe({"a": np.full(4, 2.0)}, length=2)
    later.load_state_dict(probe.state_dict())
    assert (later.gap(["a"]), later.recital(["a"])) == found


@given(ROWS, st.integers(1, 9), st.randoms(use_true_random=False))
def test_a_recital_is_the_greatest_span_without_an_error(bits, length, chance):
    bits = np.abs(bits)
    right = np.array([[chance.random() < 0.7 for _ in row] for row in bits])
    size = min(length, bits.shape[1])
    tried = [
        max(
            (row[at : at + size].sum() for at in range(len(row) - size + 1) if good[at : at + size].all()),
            default=0.0,
        )
        for row, good in zip(bits, right, strict=True)
    ]
    np.testing.assert_allclose(greatest_recital(bits, right, length), tried)


def test_what_greedy_decoding_gives_and_nobody_would_guess_is_a_recital():
    targets = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1]])
    logits = 3.0 * torch.nn.functional.one_hot(torch.tensor([[1, 0, 1, 0], [1, 0, 1, 0]]), 2).float()
    bits = np.array([1.0, 7.0, 2.0, 50.0])
    probe = SpanProbe({"a": bits, "b": bits}, length=2)
    probe.look(["a", "b"], logits, targets)
    assert probe.recital(["a", "b"]) == [9.0, 0.0]


def test_a_second_look_at_suspects_tells_what_holds_now():
    targets = torch.zeros(3, 4, dtype=torch.long)
    probe = SpanProbe({name: np.full(4, 8.0) for name in "abc"}, 2)
    knowing = torch.zeros(3, 4, 16)
    knowing[:, :, 0] = torch.tensor([0.0, 2.0, 9.0])[:, None]
    probe.look(["a", "b", "c"], knowing, targets)
    assert probe.suspects(0.5) == ["c", "b"]
    assert probe.suspects(1.0) == ["c", "b", "a"]
    again = probe.measure(["b", "c"], -knowing[1:], targets[1:])
    assert again["c"][0] < again["b"][0] < probe.gap(["b"])[0]
    assert [recital for _, recital in again.values()] == [0.0, 0.0]
    assert probe.recital(["c"]) == [16.0]


def test_an_example_without_reference_is_not_beyond_suspicion():
    probe = SpanProbe({"a": np.ones(3)}, length=2)
    with pytest.raises(MemorizationError, match="`b` has no reference bits"):
        probe.surprisal(["a", "b"])


def test_what_cannot_be_spans_is_refused():
    with pytest.raises(MemorizationError, match="at least one token"):
        SpanProbe({}, length=0)
    probe = SpanProbe({"a": np.ones(3)}, length=2)
    with pytest.raises(MemorizationError, match="reference bits"):
        probe.look(["a"], torch.zeros(1, 4, 2), torch.zeros(1, 4, dtype=torch.long))
