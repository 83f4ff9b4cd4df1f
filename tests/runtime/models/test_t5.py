"""T5: an encoder and a decoder, one embedding for both, relative positions looked up once for the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import T5Config, T5ForConditionalGeneration

from gradwarden.runtime import ModelMap

FILE = "transformers.models.t5.modeling_t5"


def make(feed_forward: str = "relu") -> T5ForConditionalGeneration:
    sizes = {"d_model": 12, "d_kv": 6, "d_ff": 20, "num_layers": 2, "num_heads": 2, "vocab_size": 30}
    config = T5Config(dropout_rate=0.0, decoder_start_token_id=0, feed_forward_proj=feed_forward, **sizes)
    model = T5ForConditionalGeneration(config).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer_norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model


def translation(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    logits = model(**inputs).logits
    return functional.cross_entropy(
        logits.transpose(1, 2), inputs["decoder_input_ids"], reduction="none"
    ).mean(1)


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
def test_every_gradient_is_exact_in_one_pass(
    feed_forward: str, assert_exact: Any, token_batches: Any, double_throughout: Any
) -> None:
    double_throughout(FILE)
    model = make(feed_forward)
    batches = [
        {**batch, "decoder_input_ids": torch.randint(0, 30, (len(batch["input_ids"]), 4))}
        for batch in token_batches
    ]
    engine = assert_exact(model, batches, translation)
    general = {name for name, path in engine.paths.items() if path == "general"}
    first = ("encoder.block.0.layer.0.SelfAttention.", "decoder.block.0.layer.0.SelfAttention.")
    assert general == {n for n, _ in model.named_parameters() if "layer_norm" in n or n.startswith(first)}
    assert "reference" not in engine.paths.values()
    assert [kind in note for kind, note in zip(("T5LayerNorm", "T5Attention"), engine.notes, strict=True)]


def test_the_blocks_of_the_decoder_are_shallower_than_those_of_the_encoder() -> None:
    layers = {layer.name: layer for layer in ModelMap.from_module(make()).layers}
    blocks = [layers[f"{side}.block.{block}"].depth for side in ("encoder", "decoder") for block in range(2)]
    assert blocks == [750_000, 500_000, 250_000, 0]
    assert layers["shared"].depth == 1_000_000
    assert {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"} >= set(
        layers["shared"].parameters[0].aliases
    )
