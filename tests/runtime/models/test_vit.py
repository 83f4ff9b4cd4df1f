"""ViT: patches by convolution, a class token and positions that are plain parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from gradwarden.runtime import ModelMap


@pytest.fixture
def model() -> ViTForImageClassification:
    sizes = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 2}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = ViTConfig(image_size=8, patch_size=4, num_labels=4, **sizes, **dropout)
    return ViTForImageClassification(config).train()


def images() -> list[dict[str, torch.Tensor]]:
    return [{"pixel_values": torch.randn(batch, 3, 8, 8)} for batch in (5, 4, 5)]


def test_every_gradient_is_exact_in_one_pass(model: ViTForImageClassification, assert_exact: Any) -> None:
    engine = assert_exact(model, images())
    assert {name for name, path in engine.paths.items() if path == "general"} == {
        "vit.embeddings.cls_token",
        "vit.embeddings.position_embeddings",
        "vit.embeddings.patch_embeddings.projection.weight",
        "vit.embeddings.patch_embeddings.projection.bias",
    }
    assert "reference" not in engine.paths.values()
    (note,) = engine.notes
    assert "ViTEmbeddings" in note


def test_layers_are_bands(model: ViTForImageClassification) -> None:
    layers = {layer.name: layer for layer in ModelMap.from_module(model).layers}
    assert [layers[f"vit.layers.{block}"].depth for block in range(3)] == [666_666, 333_333, 0]
    assert layers["vit.embeddings"].depth == 1_000_000
    assert layers["vit.layernorm"].depth == layers["classifier"].depth == 0
