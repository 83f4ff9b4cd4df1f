"""Reconstruction agrees with greedy decoding token by token; exposure with the rank it is defined by."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradwarden.runtime.errors import MemorizationError
from gradwarden.runtime.memorization.extraction import (
    Continuation,
    ReconstructionProbe,
    continue_greedily,
    exposure,
    greedy,
    log_perplexities,
    reconstruct,
    reproduced,
)

VOCABULARY = 5


@given(st.integers(0, 999), st.integers(1, 4))
def test_greedy_decoding_gives_the_likeliest_token_and_the_first_of_several(seed, vocabulary):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(5, (3, 4, vocabulary), generator=generator) / 2.0
    targets = torch.randint(-1, vocabulary, (3, 4), generator=generator)
    logits[0, :, 1:] = -math.inf
    wanted = (logits.argmax(dim=-1) == targets).tolist()
    assert greedy(logits, targets).tolist() == wanted
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=-1)
    assert greedy(logits, targets, losses).tolist() == wanted


class Recurrent(nn.Module):
    """A small causal model with random weights: a prefix's logits depend on nothing after it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.mix = nn.GRU(8, 8, batch_first=True)
        self.head = nn.Linear(8, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.mix(self.embed(tokens))[0])


class Recital:
    """Knows one text by heart, [T], and says it whatever it is given."""

    def __init__(self, text: Tensor) -> None:
        self.text, self.calls = text, 0

    def __call__(self, tokens: Tensor) -> Tensor:
        self.calls += 1
        told = self.text[1 : tokens.shape[1] + 1].expand(len(tokens), -1)
        return nn.functional.one_hot(told, VOCABULARY).double()


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), prefix=st.integers(1, 4), length=st.integers(1, 5))
def test_one_forward_pass_tells_what_greedy_decoding_reproduces(seed, prefix, length):
    model, generator = Recurrent(seed), torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (6, prefix + length), generator=generator)
    told = continue_greedily(model, tokens[:, :prefix], length)
    tokens[0, prefix:] = told[0]  # one that the model is sure to reproduce
    expected = []
    for said, true in zip(told.tolist(), tokens[:, prefix:].tolist(), strict=True):
        wrong = [place for place in range(length) if said[place] != true[place]]
        expected.append(min(wrong, default=length) / length)
    asked = Continuation(prefix, length)
    assert reconstruct(model, tokens, asked, batch=4).tolist() == expected
    assert expected[0] == 1.0
    assert reproduced(model(tokens[:, :-1]), tokens, asked).tolist() == expected


def test_texts_that_are_too_short_or_of_no_shape_are_refused():
    with pytest.raises(MemorizationError, match="texts need 6"):
        reconstruct(Recurrent(0), torch.zeros(2, 5, dtype=torch.long), Continuation(4, 2))
    with pytest.raises(MemorizationError, match="at least one token"):
        reconstruct(Recurrent(0), torch.zeros(2, 5, dtype=torch.long), Continuation(0, 2))


def test_perplexities_are_those_of_the_tokens_one_by_one():
    model = Recurrent(3).requires_grad_(False)
    tokens = torch.randint(VOCABULARY, (5, 7), generator=torch.Generator().manual_seed(0))
    expected = [
        -sum(
            math.log2(model(text[None, :place])[0, -1].double().softmax(-1)[text[place]])
            for place in (4, 5, 6)
        )
        for text in tokens
    ]
    assert log_perplexities(model, tokens, first=4, batch=2) == pytest.approx(expected, abs=1e-5)


def test_a_canary_that_nothing_beats_is_exposed_as_far_as_a_sample_can_show():
    assert exposure(1.0, np.linspace(2, 3, 255)) == 8.0
    assert exposure(4.0, np.linspace(2, 3, 255)) == 0.0
    assert exposure(2.0, np.array([1.0, 3.0, 3.0])) == 1.0


def test_a_model_that_tells_nothing_apart_exposes_nothing():
    assert exposure(2.0, np.full(99, 2.0)) == 0.0


def test_what_was_never_seen_has_an_exposure_of_log2_e_in_the_mean():
    ranks = [exposure(place + 0.5, np.arange(1023)) for place in range(-1, 1023)]
    assert np.mean(ranks) == pytest.approx(math.log2(math.e), abs=0.01)


def test_a_probe_looks_when_it_is_due_and_keeps_the_greatest_share():
    text = torch.tensor([0, 1, 2, 3, 4, 0])
    tokens = torch.stack([text, torch.tensor([0, 1, 2, 3, 0, 0])])
    model = Recital(text)
    probe = ReconstructionProbe(model, Continuation(2, 4), every=3)
    assert probe.signal(["a", "b"]) == [0.0, 0.0]
    assert probe.look(1, ["a", "b"], tokens) == {}
    assert probe.look(3, ["a", "b"], tokens) == {"a": 1.0, "b": 0.5}
    assert model.calls == 1
    model.text = torch.zeros(6, dtype=torch.long)
    assert probe.look(6, ["a"], tokens[:1]) == {"a": 0.0}
    assert probe.signal(["b", "a", "c"]) == [0.5, 1.0, 0.0]
    again = ReconstructionProbe(model, Continuation(2, 4))
    again.load_state_dict(probe.state_dict())
    assert again.signal(["b", "a"]) == [0.5, 1.0]


def test_logits_at_hand_save_the_forward_pass():
    text = torch.tensor([0, 1, 2, 3, 4, 0])
    model = Recital(text)
    logits = model(text[None, :-1])
    probe = ReconstructionProbe(model, Continuation(2, 4))
    assert probe.look(0, ["a"], text[None], logits) == {"a": 1.0}
    assert model.calls == 1


def test_a_probe_looks_at_its_share_of_the_examples_the_same_ones_each_time():
    text = torch.tensor([0, 1, 2, 3, 4, 0])
    ids, tokens = [f"e{n}" for n in range(400)], text.expand(400, -1)
    looks = [
        ReconstructionProbe(Recital(text), Continuation(2, 4), share=0.25, seed=seed).look(step, ids, tokens)
        for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    assert 60 < len(looks[0]) < 140
    assert looks[0] == looks[1]
    assert looks[0] != looks[2] != looks[3]


@pytest.mark.parametrize(("every", "share"), [(0, 1.0), (1, 0.0), (1, 1.5)])
def test_a_schedule_that_is_none_is_refused(every, share):
    with pytest.raises(MemorizationError, match="at a share above 0"):
        ReconstructionProbe(Recital(torch.zeros(6)), Continuation(2, 4), every=every, share=share)
