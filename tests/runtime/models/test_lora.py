"""Adapters by peft's own layers on a frozen GPT-2 and a frozen Llama, in bands of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from gradwarden.policy.program import Selector
from gradwarden.runtime import ModelMap

LLAMA = "transformers.models.llama.modeling_llama"


def adapted(base: Any, **options: Any) -> Any:
    """Return a model with adapters that are not zero, as they would be before the first step."""
    model = get_peft_model(base, LoraConfig(r=3, lora_alpha=6, lora_dropout=0.0, **options)).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                parameter.normal_(std=0.3)
    return model.double()


def gpt2() -> Any:
    sizes = {"n_embd": 12, "n_head": 2, "n_layer": 2, "vocab_size": 30, "n_positions": 8}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **dropout, bos_token_id=1, eos_token_id=1))


def llama() -> Any:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    return LlamaForCausalLM(
        LlamaConfig(hidden_size=16, intermediate_size=20, vocab_size=30, max_position_embeddings=16, **heads)
    )


def by_factor(bands_of: Any, model: Any, *more: Selector) -> Any:
    """Bind the factors A and B of the adapters to bands of their own; the frozen base is the rest."""
    factors = (Selector("names", patterns=("*lora_B*",)), Selector("names", patterns=("*lora_A*",)))
    return bands_of(model, *factors, *more, Selector("rest"))


def trained(engine: Any) -> set[str]:
    return set(engine.paths.values())


@pytest.mark.parametrize(
    ("make", "targets"),
    [(gpt2, ["c_attn", "c_proj", "c_fc"]), (llama, ["q_proj", "v_proj", "down_proj", "lm_head"])],
)
def test_adapters_are_exact_in_one_pass(
    make: Any,
    targets: list[str],
    assert_exact: Any,
    bands_of: Any,
    token_batches: Any,
    language_loss: Any,
    double_throughout: Any,
) -> None:
    double_throughout(LLAMA)
    model = adapted(make(), target_modules=targets, fan_in_fan_out=make is gpt2)
    engine = assert_exact(model, token_batches, language_loss, bands=by_factor(bands_of, model))
    assert trained(engine) == {"fast"}
    assert all("lora_" in name for name in engine.paths)
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if "lora_" not in name)


def test_adapters_of_an_embedding_and_a_layer_trained_in_full(
    assert_exact: Any, bands_of: Any, token_batches: Any, language_loss: Any, double_throughout: Any
) -> None:
    double_throughout(LLAMA)
    model = adapted(llama(), target_modules=["embed_tokens", "q_proj"], modules_to_save=["lm_head"])
    bands = by_factor(bands_of, model, Selector("names", patterns=("*lora_embedding*",)))
    engine = assert_exact(model, token_batches, language_loss, bands=bands)
    paths = {name: path for name, path in engine.paths.items() if path != "fast"}
    assert paths == {name: "general" for name in engine.paths if "lora_embedding" in name}
    assert any("lm_head" in name for name in engine.paths)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_adapters_with_a_trained_magnitude(
    make: Any,
    assert_exact: Any,
    bands_of: Any,
    token_batches: Any,
    language_loss: Any,
    double_throughout: Any,
) -> None:
    """DoRA: the factors and the norm of the adapted weight, which has no rows that belong to examples."""
    double_throughout(LLAMA)
    targets = ["c_attn"] if make is gpt2 else ["q_proj", "down_proj"]
    model = adapted(make(), target_modules=targets, use_dora=True, fan_in_fan_out=make is gpt2)
    bands = by_factor(bands_of, model, Selector("names", patterns=("*magnitude*",)))
    engine = assert_exact(model, token_batches, language_loss, bands=bands)
    assert trained(engine) == {"general"}
    (note,) = engine.notes
    assert "`Linear`" in note


def test_adapters_in_bands_by_depth(assert_exact: Any, token_batches: Any, language_loss: Any) -> None:
    model = adapted(gpt2(), target_modules=["c_attn"], fan_in_fan_out=True)
    engine = assert_exact(model, token_batches, language_loss)
    assert trained(engine) == {"fast"}
    layers = {p.name: layer for layer in ModelMap.from_module(model).layers for p in layer.parameters}
    name = "base_model.model.transformer.h.{}.attn.c_attn.lora_A.default.weight"
    assert [layers[name.format(block)].depth for block in range(2)] == [500_000, 0]
