"""What a refused step must put back: random number generators, module buffers and gradients.

Parameters and optimizer state need no copy: nothing writes them before the commit gate has passed.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Snapshot:
    """The state of every global generator and of the model's buffers, taken before a step's forward pass.

    Covers torch on the CPU and on the devices that hold the model, `random`, and numpy's legacy generator.
    Generators that the caller made itself are the caller's.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = list(model.parameters())
        self._torch = torch.get_rng_state()
        devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
        self._cuda: dict[torch.device, Tensor] = {d: torch.cuda.get_rng_state(d) for d in devices}
        self._random = random.getstate()
        self._numpy: Any = np.random.get_state()
        self._buffers = [
            (module, name, buffer, None if buffer is None else buffer.detach().clone())
            for module in model.modules()
            for name, buffer in module._buffers.items()
        ]

    def restore(self) -> None:
        """Put everything back and drop all gradients."""
        torch.set_rng_state(self._torch)
        for device, state in self._cuda.items():
            torch.cuda.set_rng_state(state, device)
        random.setstate(self._random)
        np.random.set_state(self._numpy)
        with torch.no_grad():
            for module, name, buffer, value in self._buffers:
                # By name as well: a forward pass may put another tensor in a buffer's place.
                module._buffers[name] = buffer
                if buffer is not None and value is not None:
                    buffer.copy_(value)
        for parameter in self._parameters:
            parameter.grad = None
