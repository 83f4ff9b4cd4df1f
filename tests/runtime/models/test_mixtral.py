"""Mixtral: a router sends tokens to experts, so rows move by what they hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from gradwarden.runtime import ModelMap

FILE = "transformers.models.mixtral.modeling_mixtral"


def make(experts: str) -> MixtralForCausalLM:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    config = MixtralConfig(
        hidden_size=16,
        intermediate_size=24,
        vocab_size=30,
        max_position_embeddings=16,
        num_local_experts=3,
        num_experts_per_tok=2,
        experts_implementation=experts,
        **heads,
    )
    return MixtralForCausalLM(config).train()


def test_experts_and_router_are_exact_as_pieces(
    assert_exact: Any, token_batches: Any, language_loss: Any, double_throughout: Any
) -> None:
    double_throughout(FILE)
    model = make("eager")
    engine = assert_exact(model, token_batches, language_loss)
    assert "reference" not in engine.paths.values()
    assert engine.paths["model.layers.0.mlp.experts.gate_up_proj"] == "general"
    assert engine.paths["model.layers.1.mlp.gate.weight"] == "general"
    assert engine.paths["model.layers.0.self_attn.q_proj.weight"] == "fast"
    text = "\n".join(engine.notes)
    assert "MixtralExperts" in text
    assert "MixtralTopKRouter" in text


@pytest.mark.parametrize("experts", ["eager", "batched_mm", "grouped_mm"])
def test_every_way_of_running_the_experts(
    experts: str, assert_exact: Any, token_batches: Any, language_loss: Any
) -> None:
    torch.set_default_dtype(torch.float32)
    engine = assert_exact(make(experts), token_batches, language_loss, within=2e-3)
    assert "reference" not in engine.paths.values()


def test_router_logits_among_the_results(
    assert_exact: Any, token_batches: Any, double_throughout: Any
) -> None:
    double_throughout(FILE)
    model = make("eager")

    def losses(model: Any, inputs: Any) -> torch.Tensor:
        result = model(**inputs, output_router_logits=True)
        batch = len(inputs["input_ids"])
        routing = sum(logits.view(batch, -1).logsumexp(1).square() for logits in result.router_logits)
        return result.logits.pow(2).flatten(1).mean(1) + 0.1 * routing

    engine = assert_exact(model, token_batches, losses)
    assert "reference" not in engine.paths.values()


def test_blocks_are_bands_with_their_experts() -> None:
    layers = {layer.name: layer for layer in ModelMap.from_module(make("eager")).layers}
    assert [layers[f"model.layers.{block}"].depth for block in range(2)] == [500_000, 0]
    names = {parameter.name for parameter in layers["model.layers.1"].parameters}
    assert {"model.layers.1.mlp.experts.down_proj", "model.layers.1.mlp.gate.weight"} <= names
