"""BERT: learned positions and segments, a head that is tied by its weight and its bias."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from gradwarden.runtime import ModelMap


@pytest.fixture
def config() -> BertConfig:
    sizes = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 2}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertConfig(vocab_size=30, max_position_embeddings=8, num_labels=4, **sizes, **dropout)


def classification(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    labels = inputs["labels"]
    given = {name: tensor for name, tensor in inputs.items() if name != "labels"}
    return functional.cross_entropy(model(**given).logits, labels, reduction="none")


def test_a_classifier(config: BertConfig, assert_exact: Any, token_batches: Any) -> None:
    model = BertForSequenceClassification(config).train()
    batches = [
        {**batch, "labels": torch.randint(0, 4, (len(batch["input_ids"]),))} for batch in token_batches
    ]
    engine = assert_exact(model, batches, classification)
    assert set(engine.paths.values()) == {"fast"}
    assert engine.notes == []


def test_two_segments(config: BertConfig, assert_exact: Any, token_batches: Any) -> None:
    model = BertForSequenceClassification(config).train()
    batches = [{**batch, "token_type_ids": (batch["input_ids"] > 9).long()} for batch in token_batches]
    engine = assert_exact(model, batches)
    assert set(engine.paths.values()) == {"fast"}


def test_a_masked_language_model_whose_head_is_tied(
    config: BertConfig, assert_exact: Any, token_batches: Any
) -> None:
    model = BertForMaskedLM(config).train()
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    engine = assert_exact(model, token_batches)
    assert set(engine.paths.values()) == {"fast"}


def test_layers_are_bands(config: BertConfig) -> None:
    layers = {
        layer.name: layer for layer in ModelMap.from_module(BertForSequenceClassification(config)).layers
    }
    assert [layers[f"bert.encoder.layer.{block}"].depth for block in range(3)] == [666_666, 333_333, 0]
    assert layers["bert.embeddings.LayerNorm"].depth == 1_000_000
    assert layers["bert.pooler.dense"].depth == layers["classifier"].depth == 0
