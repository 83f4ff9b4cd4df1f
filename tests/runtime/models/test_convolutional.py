"""A residual network with group norms, and a U-Net with skip connections and transposed convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradwarden.runtime import ModelMap


class Residual(nn.Module):
    """Two convolutions around which the input, or its projection, is led."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.norm1, self.norm2 = nn.GroupNorm(2, width), nn.GroupNorm(2, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(width_in, width, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.norm1(self.conv1(x)), inplace=True)
        return functional.relu(self.norm2(self.conv2(h)) + self.shortcut(x), inplace=True)


class ResNet(nn.Module):
    """[B, 3, H, W] -> [B, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.layer1 = nn.Sequential(Residual(4, 4, 1), Residual(4, 4, 1))
        self.layer2 = nn.Sequential(Residual(4, 6, 2), Residual(6, 6, 1))
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer2(self.layer1(functional.relu(self.norm(self.stem(x)))))
        return self.fc(functional.adaptive_avg_pool2d(h, 1).flatten(1))


class Double(nn.Module):
    """Two convolutions with a group norm each."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(width_in, width, 3, padding=1),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.norm1, self.norm2 = nn.GroupNorm(2, width), nn.GroupNorm(2, width)

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(self.norm2(self.second(functional.silu(self.norm1(self.first(x))))))


class Up(nn.Module):
    """Doubles the resolution by a transposed convolution and takes the skip connection in."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(width_in, width, 2, stride=2)
        self.conv = Double(2 * width, width)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv(torch.cat([self.up(x), skip], dim=1))


class UNet(nn.Module):
    """[B, 2, H, W] -> [B, 2, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 1)
        self.down = nn.ModuleList([Double(4, 4), Double(4, 6)])
        self.middle = Double(6, 8)
        self.up = nn.ModuleList([Up(8, 6), Up(6, 4)])
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, skips = self.stem(x), []
        for block in self.down:
            h = block(h)
            skips.append(h)
            h = functional.max_pool2d(h, 2)
        h = self.middle(h)
        for block in self.up:
            h = block(h, skips.pop())
        return self.head(h)


def images(channels: int) -> list[dict[str, Tensor]]:
    return [{"x": torch.randn(batch, channels, 8, 8)} for batch in (5, 4, 5)]


def test_a_residual_network(assert_exact: Any) -> None:
    engine = assert_exact(ResNet(), images(3))
    assert set(engine.paths.values()) == {"fast"}
    assert engine.notes == []


def test_a_u_net(assert_exact: Any) -> None:
    engine = assert_exact(UNet(), images(2))
    assert set(engine.paths.values()) == {"fast"}
    assert engine.notes == []


def test_the_way_up_of_a_u_net_is_shallower_than_the_way_down() -> None:
    layers = {p.name: layer for layer in ModelMap.from_module(UNet()).layers for p in layer.parameters}
    blocks = [
        layers[f"{path}.weight"].depth for path in ("down.0.first", "down.1.first", "up.0.up", "up.1.up")
    ]
    assert blocks == [750_000, 500_000, 250_000, 0]
    assert layers["stem.weight"].depth == 1_000_000
    assert layers["middle.first.weight"].depth == 500_000
    assert layers["head.weight"].depth == 0
