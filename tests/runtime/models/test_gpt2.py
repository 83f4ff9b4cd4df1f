"""GPT-2: `Conv1D` layers, learned positions and a head tied to the embedding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gradwarden.runtime import ModelMap


@pytest.fixture
def model() -> GPT2LMHeadModel:
    sizes = {"n_embd": 12, "n_head": 2, "n_layer": 3, "vocab_size": 30, "n_positions": 8}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(**sizes, **dropout, bos_token_id=1, eos_token_id=1)
    return GPT2LMHeadModel(config).train()


def test_every_gradient_is_exact_in_one_pass(
    model: GPT2LMHeadModel, assert_exact: Any, token_batches: Any, language_loss: Any
) -> None:
    engine = assert_exact(model, token_batches, language_loss)
    assert set(engine.paths.values()) == {"fast"}
    assert engine.notes == []


def test_without_an_attention_mask(
    model: GPT2LMHeadModel, assert_exact: Any, token_batches: Any, language_loss: Any
) -> None:
    plain = [{"input_ids": batch["input_ids"]} for batch in token_batches]
    engine = assert_exact(model, plain, language_loss)
    assert set(engine.paths.values()) == {"fast"}


def test_blocks_are_bands_and_the_tied_head_is_at_the_input(model: GPT2LMHeadModel) -> None:
    layers = {layer.name: layer for layer in ModelMap.from_module(model).layers}
    assert [layers[f"transformer.h.{block}"].depth for block in range(3)] == [666_666, 333_333, 0]
    assert layers["transformer.wte"].depth == layers["transformer.wpe"].depth == 1_000_000
    assert layers["transformer.wte"].parameters[0].aliases == ("lm_head.weight",)
    assert layers["transformer.ln_f"].depth == 0


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_activation_checkpointing(
    model: GPT2LMHeadModel, assert_exact: Any, token_batches: Any, language_loss: Any
) -> None:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    engine = assert_exact(model, token_batches, language_loss)
    assert set(engine.paths.values()) == {"fast"}


def test_a_subclass_with_its_own_forward_is_not_taken_for_the_stock_layer(
    model: GPT2LMHeadModel, assert_exact: Any, token_batches: Any, language_loss: Any
) -> None:
    layer = model.transformer.h[1].mlp.c_fc
    stock = type(layer)

    class Doubled(stock):  # type: ignore[misc, valid-type]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    layer.__class__ = Doubled
    engine = assert_exact(model, token_batches, language_loss)
    slow = {name for name, path in engine.paths.items() if path != "fast"}
    assert slow == {"transformer.h.1.mlp.c_fc.weight", "transformer.h.1.mlp.c_fc.bias"}
