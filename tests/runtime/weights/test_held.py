"""A model's weights have the digest that they have in a file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from gradwarden.runtime.checkpoints import save_checkpoint
from gradwarden.runtime.weights.held import held_root


class Odd(nn.Module):
    """Weights of several types, shapes and layouts, two of them tied."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 5)
        self.two = nn.Linear(3, 5)
        self.two.weight = self.one.weight
        self.turned = nn.Parameter(torch.arange(12.0).view(3, 4).T)
        self.large = nn.Parameter(torch.randn(700_001))
        self.norm = nn.BatchNorm1d(4)
        for name, value in {
            "truth": torch.tensor([True, False]),
            "brain": torch.randn(3, dtype=torch.bfloat16),
            "quarter": torch.randn(3).to(torch.float8_e4m3fn),
            "number": torch.tensor(7),
            "none": torch.zeros(0, 4),
        }.items():
            self.register_buffer(name, value)


def test_it_is_that_of_the_file_and_of_no_other_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Odd()
    tree = save_checkpoint(model, tmp_path / "model.safetensors").tree
    names = [tensor.name for tensor in tree.tensors]
    assert held_root(model, names) == tree.root.hex()
    assert held_root(model, names[1:]) != tree.root.hex()
    with torch.no_grad():
        model.large[-1] += 1
    assert held_root(model, names) != tree.root.hex()


def test_what_a_model_does_not_have_is_not_compared(tmp_path: Path) -> None:
    model = Odd()
    assert held_root(model, ["one.weight", "three.weight"]) is None
    assert held_root(model, []) == save_checkpoint(nn.Tanh(), tmp_path / "empty.safetensors").tree.root.hex()
