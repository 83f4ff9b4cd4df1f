"""Llama: rotary positions, grouped queries, its own class of norm, gated MLPs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gradwarden.runtime import ModelMap
from gradwarden.runtime.masks import make_engine

FILES = "transformers.models.llama.modeling_llama", "transformers.integrations.sdpa_attention"


@pytest.fixture
def model() -> LlamaForCausalLM:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3}
    config = LlamaConfig(
        hidden_size=16, intermediate_size=20, vocab_size=30, max_position_embeddings=16, **heads
    )
    model = LlamaForCausalLM(config).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model


def norms(engine: Any) -> set[str]:
    return {name for name, path in engine.paths.items() if path != "fast"}


def test_every_gradient_is_exact_in_one_pass(
    model: LlamaForCausalLM, assert_exact: Any, token_batches: Any, language_loss: Any, double_throughout: Any
) -> None:
    double_throughout(FILES[0])
    engine = assert_exact(model, token_batches, language_loss)
    assert set(engine.paths.values()) == {"fast", "general"}
    assert norms(engine) == {name for name, _ in model.named_parameters() if "norm" in name}
    (note,) = engine.notes
    assert "LlamaRMSNorm" in note
    assert engine.paths["model.norm.weight"] == "general"


def test_norms_that_run_in_single_precision_cost_no_more_than_their_rounding(
    model: LlamaForCausalLM, assert_exact: Any, token_batches: Any, language_loss: Any
) -> None:
    engine = assert_exact(model, token_batches, language_loss, within=1e-5)
    assert "reference" not in engine.paths.values()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_either_attention(
    model: LlamaForCausalLM,
    attention: str,
    assert_exact: Any,
    token_batches: Any,
    language_loss: Any,
    double_throughout: Any,
) -> None:
    double_throughout(FILES[0])
    model.set_attn_implementation(attention)
    engine = assert_exact(model, token_batches[:2], language_loss)
    assert "reference" not in engine.paths.values()


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_activation_checkpointing_recomputes_each_norm_by_itself(
    model: LlamaForCausalLM, assert_exact: Any, token_batches: Any, language_loss: Any, double_throughout: Any
) -> None:
    double_throughout(FILES[0])
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    engine = assert_exact(model, token_batches, language_loss)
    assert "reference" not in engine.paths.values()


def test_blocks_are_bands(model: LlamaForCausalLM) -> None:
    layers = {layer.name: layer for layer in ModelMap.from_module(model).layers}
    assert [layers[f"model.layers.{block}"].depth for block in range(3)] == [666_666, 333_333, 0]
    assert layers["model.embed_tokens"].depth == 1_000_000
    assert layers["model.norm"].depth == layers["lm_head"].depth == 0


def test_what_the_norms_take_does_not_keep_the_planner_from_stopping_below_a_band(
    model: LlamaForCausalLM, bands_of: Any, token_batches: Any, language_loss: Any
) -> None:
    masks = make_engine(model, bands_of(model), "fused")
    inputs = token_batches[0]
    for weights in (torch.ones(5, 3), torch.tensor([[1.0, 0.0, 0.0]] * 5)):
        masks.arm(weights)
        masks.backward(language_loss(model, inputs), 1.0)
    ways = {choice.name: choice.way for choice in masks.explain()}
    assert [ways[f"model.layers.{block}"] for block in range(3)] == ["stop", "stop", "weigh"]
