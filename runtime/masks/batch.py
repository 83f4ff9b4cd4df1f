"""What the engines are given for one batch, and its checks."""

from __future__ import annotations

import torch
from torch import Tensor

from gradwarden.runtime.errors import MaskError


def checked_weights(weights: Tensor, bands: int) -> Tensor:
    """Return the weights [B, bands] as float64 on the CPU. Raises MaskError for a bad shape or value."""
    if weights.dim() != 2 or weights.shape[1] != bands:
        raise MaskError(
            f"weights have shape {tuple(weights.shape)}, but must have one row per example "
            f"and one column for each of {bands} bands"
        )
    weights = weights.detach().to(device="cpu", dtype=torch.float64)
    array = weights.numpy()
    # Comparisons with what is not a number fail. Reductions of numpy take a fraction of the time of torch's.
    if array.size and not 0.0 <= array.min() <= array.max() < float("inf"):
        raise MaskError("weights must be finite and at least 0")
    return weights


def checked_owners(owners: Tensor, examples: int) -> Tensor:
    """Return which example each row [R], or each position [R, T], belongs to, as int64 on the CPU.

    Raises MaskError for a bad shape, type or number; -1 is nobody.
    """
    if owners.is_floating_point() or owners.is_complex() or owners.dtype == torch.bool:
        raise MaskError(f"owners are numbers of examples, not of type {owners.dtype}")
    if owners.dim() not in (1, 2):
        raise MaskError(
            f"owners have shape {tuple(owners.shape)}, but are for rows [R] or for positions of rows [R, T]"
        )
    owners = owners.detach().to(device="cpu", dtype=torch.int64)
    if owners.numel() and not -1 <= int(owners.min()) <= int(owners.max()) < examples:
        raise MaskError(
            f"owners name example {int(owners.max())}, but there are {examples}"
            if int(owners.max()) >= examples
            else f"owners name example {int(owners.min())}",
            help="number the examples from 0, in the order of their losses; -1 is for what is nobody's",
        )
    return owners


def checked_losses(losses: Tensor, batch: int) -> None:
    """Raise MaskError unless there is one loss for each of the armed examples."""
    if losses.dim() != 1 or losses.shape[0] != batch:
        raise MaskError(
            f"losses have shape {tuple(losses.shape)}, but {batch} examples are armed: expected ({batch},)",
            help="compute one loss per example: `reduction='none'`, then a mean over each example's own part",
        )


def require_graph(losses: Tensor) -> None:
    """Raise MaskError if nothing can be differentiated."""
    if not losses.requires_grad:
        raise MaskError("the losses do not depend on any trainable parameter")


def checked_normaliser(normaliser: float) -> float:
    """Return the normaliser. Raises MaskError unless it is a positive, finite number."""
    if not 0 < normaliser < float("inf"):
        raise MaskError(f"the normaliser must be positive and finite, not {normaliser}")
    return float(normaliser)


def chosen_rows(rows: Tensor | None, batch: int) -> Tensor:
    """Return which examples a backward pass is for, as bool [B] on the CPU; all where none are named."""
    if rows is None:
        return torch.ones(batch, dtype=torch.bool, device="cpu")
    if rows.dtype != torch.bool or rows.shape != (batch,):
        raise MaskError(f"rows must be a bool tensor of shape ({batch},)")
    return rows.cpu()
