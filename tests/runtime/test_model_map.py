"""Model maps of live models."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradwarden.policy.model_map import Layer, bind
from gradwarden.policy.program import Band, Selector
from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.model_map import ModelMap


class Block(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.norm = nn.LayerNorm(width)


class GPT(nn.Module):
    def __init__(self, blocks: int, tied: bool = True) -> None:
        super().__init__()
        self.prefix = nn.Parameter(torch.zeros(4))
        self.words = nn.Embedding(9, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.places = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 9, bias=False)
        if tied:
            self.head.weight = self.words.weight


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.bn1 = nn.BatchNorm2d(4)
        for stage in range(1, 5):
            blocks = nn.Sequential(*(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)) for _ in range(2)))
            setattr(self, f"layer{stage}", blocks)
        self.fc = nn.Linear(4, 2)


def by_name(model_map: ModelMap) -> dict[str, Layer]:
    return {p.name: layer for layer in model_map.layers for p in layer.parameters}


def test_a_language_model_has_its_blocks_in_order_and_embeddings_at_the_input() -> None:
    model_map = ModelMap.from_module(GPT(4, tied=False))
    layers = by_name(model_map)
    assert model_map.model == "GPT"
    assert model_map.blocks == 4
    assert [layers[f"blocks.{i}.norm.weight"].depth for i in range(4)] == [750_000, 500_000, 250_000, 0]
    assert [layers[f"blocks.{i}.experts.2.bias"].block for i in range(4)] == [0, 1, 2, 3]
    assert {layers[n].depth for n in ("prefix", "words.weight", "places.weight")} == {1_000_000}
    assert {layers[n].depth for n in ("norm.weight", "norm.bias", "head.weight")} == {0}
    assert [layer.depth for layer in model_map.layers] == sorted(
        (layer.depth for layer in model_map.layers), reverse=True
    )


def test_a_tied_tensor_is_one_parameter_at_its_deepest_use() -> None:
    layers = by_name(ModelMap.from_module(GPT(2)))
    assert "head.weight" not in layers
    assert layers["words.weight"].depth == 1_000_000
    (parameter,) = layers["words.weight"].parameters
    assert parameter.aliases == ("head.weight",)
    assert parameter.shape == (9, 4)


def test_a_tied_tensor_is_placed_by_its_embedding_even_if_the_head_was_registered_first() -> None:
    class Headfirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
            self.head = nn.Linear(4, 9, bias=False)
            self.words = nn.Embedding(9, 4)
            self.words.weight = self.head.weight

    layers = by_name(ModelMap.from_module(Headfirst()))
    assert layers["words.weight"].depth == 1_000_000
    assert layers["words.weight"].parameters[0].aliases == ("head.weight",)


def test_a_sequential_model_counts_its_children_with_parameters() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    layers = by_name(ModelMap.from_module(nn.Sequential(model)))
    assert [layers[f"0.{i}.weight"].depth for i in (0, 2, 4)] == [666_666, 333_333, 0]
    assert [layers[f"0.{i}.weight"].block for i in (0, 2, 4)] == [0, 1, 2]


def test_a_residual_network_counts_the_blocks_of_its_stages() -> None:
    model_map = ModelMap.from_module(Residual())
    layers = by_name(model_map)
    assert model_map.blocks == 8
    assert layers["conv1.weight"].depth == layers["bn1.bias"].depth == 1_000_000
    assert layers["layer1.0.0.weight"].block == 0
    assert layers["layer4.1.1.weight"].block == 7
    assert layers["layer4.1.1.weight"].depth == layers["fc.weight"].depth == 0


class Coder(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(Block() for _ in range(blocks))
        self.norm = nn.LayerNorm(4)


class EncoderDecoder(nn.Module):
    def __init__(self, first: str, second: str, blocks: tuple[int, int]) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 4)
        for name, count in zip((first, second), blocks, strict=True):
            self.add_module(name, Coder(count))
        self.head = nn.Linear(4, 9)


@pytest.mark.parametrize("blocks", [(2, 2), (3, 2)])
@pytest.mark.parametrize("names", [("encoder", "decoder"), ("down_blocks", "up_blocks")])
def test_the_blocks_of_an_encoder_come_before_those_of_its_decoder(
    names: tuple[str, str], blocks: tuple[int, int]
) -> None:
    layers = by_name(ModelMap.from_module(EncoderDecoder(*names, blocks)))
    order = [f"{name}.block.{i}" for name, n in zip(names, blocks, strict=True) for i in range(n)]
    count = len(order)
    assert [layers[f"{path}.norm.weight"].block for path in order] == list(range(count))
    assert layers[f"{names[0]}.norm.weight"].depth == layers[f"{order[blocks[0] - 1]}.norm.weight"].depth
    assert layers["words.weight"].depth == 1_000_000
    assert layers["head.weight"].depth == layers[f"{names[1]}.norm.weight"].depth == 0


def test_two_towers_are_not_run_one_after_the_other() -> None:
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.text, self.vision = nn.Module(), nn.Module()
            self.text.encoder, self.vision.encoder = Coder(2), Coder(3)

    layers = by_name(ModelMap.from_module(Towers()))
    assert layers["vision.encoder.block.0.norm.weight"].block == 0


def test_any_other_model_is_taken_in_the_order_of_registration() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(2, 3), nn.GRU(3, 3)

    layers = by_name(ModelMap.from_module(Odd()))
    assert layers["one.weight"].depth == 500_000
    assert layers["two.weight_hh_l0"].depth == 0


@pytest.mark.parametrize("model", [GPT(3), Residual(), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))])
def test_every_parameter_is_in_the_map_once_and_can_be_bound(model: nn.Module) -> None:
    model_map = ModelMap.from_module(model)
    known = dict(model.named_parameters(remove_duplicate=False))
    listed = [known[p.name] for p in model_map.parameters]
    assert {id(p) for p in listed} == {id(p) for p in model.parameters()}
    assert len(listed) == len(list(model.parameters()))
    bands = (Band("shallow", (Selector("top", 300_000),)), Band("deep", (Selector("rest"),)))
    bound = bind(bands, model_map)
    assert sum(len(band.parameters) for band in bound) == len(listed)
    again = ModelMap.from_yaml(model_map.to_yaml())
    assert again == model_map
    assert isinstance(again, ModelMap)


@pytest.mark.parametrize("model", [nn.ReLU(), nn.Sequential(nn.LazyLinear(3))])
def test_models_without_usable_parameters_are_refused(model: nn.Module) -> None:
    with pytest.raises(MaskError):
        ModelMap.from_module(model)
