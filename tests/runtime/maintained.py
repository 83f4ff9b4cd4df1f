"""What tests of maintained bands look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PULL = "maintain base { within deep  strength 0.5 }\n"
BOUND = "maintain base { within deep  drift at most 2% }\n"


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def values(governor: Any, band: str = "deep") -> Tensor:
    """The parameters of a band as one vector."""
    return flat(governor.parameters[band]).clone()


def drift(governor: Any, anchor: Tensor, band: str = "deep") -> float:
    return float((values(governor, band) - anchor).norm() / anchor.norm())


def anchor_files(lab: Any) -> list[Path]:
    return sorted(lab.folder.glob("*.anchor-*"))
