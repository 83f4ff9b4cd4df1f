"""Gaussian noise for a sum of gradients, and the way of the noised sum to the optimizer."""

from __future__ import annotations

import torch

from gradwarden.runtime.privacy.clipping import GradientSum


def add_noise(sums: GradientSum, sigma: float, generator: torch.Generator) -> None:
    """Add Gaussian noise of standard deviation `sigma` to every element, in place.

    Call it in every step, whether or not the batch held private rows. The generator's seed must be secret.
    """
    for total in sums.values():
        noise = torch.randn(total.shape, generator=generator, dtype=total.dtype, device=generator.device)
        total.add_(noise.to(total.device), alpha=sigma)


def add_to_gradients(sums: GradientSum, normaliser: float) -> None:
    """Add the sums, divided by a constant, to the parameters' gradients. The sums are used up.

    What a parameter's precision cannot hold becomes the greatest number that it can: an infinite gradient
    would refuse the step, and so tell of noised values in a step that no budget pays for.
    """
    for parameter, total in sums.items():
        greatest = torch.finfo(parameter.dtype).max
        share = total.div_(normaliser).clamp_(-greatest, greatest).to(parameter.dtype)
        if parameter.grad is None:
            parameter.grad = share
        else:
            parameter.grad.add_(share).clamp_(-greatest, greatest)
