"""Sending what a batch's plan says to the device that computes, without waiting for that.

A copy from ordinary memory waits until the device has done all it was asked before, and what the host would
have prepared meanwhile comes late. A copy from pinned memory takes its place in the queue instead.
"""

from __future__ import annotations

import torch
from torch import Tensor


def queue(device: torch.device) -> object:
    """Return what does a device's work in order now; what was sent to another queue may not be there yet."""
    return torch.cuda.current_stream(device) if device.type == "cuda" else device


def send(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return a tensor of the CPU on a device, at a precision: its own where None."""
    tensor = tensor if dtype is None else tensor.to(dtype)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
