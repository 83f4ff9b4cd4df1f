"""An autoencoder of 8x8 digits whose code has two halves with parameters of their own.

Shapes: B images, P = 64 pixels in 0..1, K numbers in each half of the code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

PIXELS = 64


@dataclass(frozen=True, slots=True)
class AutoencoderConfig:
    """half: numbers in each half of the code. own_encoders: no common trunk, an encoder for each half."""

    width: int = 128
    half: int = 16
    own_encoders: bool = False


class SplitAutoencoder(nn.Module):
    """Images [B, P] in; reconstructions [B, P] and codes [B, 2K] out, the top half of the code first."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        width, half = config.width, config.half
        if config.own_encoders:
            self.trunk: nn.Module = nn.Identity()
            self.top: nn.Module = nn.Sequential(_trunk(width), nn.Linear(width, half, bias=False))
            self.bottom: nn.Module = nn.Sequential(_trunk(width), nn.Linear(width, half, bias=False))
        else:
            self.trunk = _trunk(width)
            self.top = nn.Linear(width, half, bias=False)
            self.bottom = nn.Linear(width, half, bias=False)
        self.decoder = make_decoder(2 * half, width)

    def encode(self, images_BP: Tensor) -> Tensor:  # noqa: N803
        seen = self.trunk(images_BP)
        return torch.cat([self.top(seen), self.bottom(seen)], dim=1)

    def forward(self, images_BP: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803
        code = self.encode(images_BP)
        return self.decoder(code), code


def make_decoder(inputs: int, width: int) -> nn.Sequential:
    """Return a network from part of a code to an image: the model's own, or a certificate."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, PIXELS)
    )


def reconstruction_losses(reconstructions_BP: Tensor, images_BP: Tensor) -> Tensor:  # noqa: N803
    """Return the mean absolute error of each image, [B]."""
    return (reconstructions_BP - images_BP).abs().mean(dim=1)


def sparsity_losses(codes: Tensor) -> Tensor:
    """Return the L1 norm of each code, [B]."""
    return codes.abs().sum(dim=1)


def _trunk(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(PIXELS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
