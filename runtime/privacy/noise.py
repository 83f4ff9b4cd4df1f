"""Gaussian noise for a sum of gradients, and the way of the noised sum to the optimizer.

torch's generator (a Mersenne twister, seeded with 64 bits) is fast, and not made for secrets: who knows
enough of its output can tell the rest. `SecureNoise` draws from AES-256 in counter mode (NIST SP 800-38A)
under a key of the operating system.

Floating-point noise has gaps: from the low bits of a noised number it may show which numbers it cannot have
come from (Mironov, "On significance of the least significant bits for differential privacy", CCS 2012).
`SecureNoise` adds up four Gaussians and halves the sum, as Holohan and Braghin propose (2021,
arXiv:2107.10138): there are then more ways to come by a value than can be searched. That makes the attack
infeasible, not impossible.
"""

from __future__ import annotations

import os
from typing import Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

from gradwarden.policy.context import FloatArray
from gradwarden.runtime.privacy.clipping import GradientSum

_SUMMANDS = 4
_CHUNK = 1 << 16
"""Numbers drawn at once: they and what they are made from stay in the cache."""


class NoiseSource(Protocol):
    """Draws standard normal numbers."""

    def normal(self, total: Tensor) -> Tensor:
        """Return numbers of the shape, precision and device of a tensor."""


class FastNoise:
    """Noise of a torch generator on the CPU. seed: None for one from the operating system."""

    def __init__(self, seed: int | None = None) -> None:
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def normal(self, total: Tensor) -> Tensor:
        """See `NoiseSource`."""
        drawn = torch.randn(total.shape, generator=self._generator, dtype=total.dtype, device="cpu")
        return drawn.to(total.device)


class SecureNoise:
    """Noise of a cryptographic generator, by the transform of Box and Muller in float64."""

    def __init__(self) -> None:
        cipher = Cipher(algorithms.AES256(os.urandom(32)), modes.CTR(os.urandom(16)))
        self._stream = cipher.encryptor()

    def normal(self, total: Tensor) -> Tensor:
        """See `NoiseSource`."""
        count = total.numel()
        drawn = np.empty(count)
        for start in range(0, count, _CHUNK):
            size = min(_CHUNK, count - start)
            drawn[start : start + size] = sum(self._gaussians(size) for _ in range(_SUMMANDS)) / 2.0
        return torch.from_numpy(drawn).to(total).view(total.shape)

    def _gaussians(self, count: int) -> FloatArray:
        pairs = (count + 1) // 2
        words = np.frombuffer(self._stream.update(bytes(16 * pairs)), dtype=np.uint64) >> np.uint64(11)
        # In (0, 1]: the logarithm of 0 is not finite.
        uniform = (words.astype(np.float64) + 1.0) * 2.0**-53
        radius = np.sqrt(-2.0 * np.log(uniform[:pairs]))
        angle = 2.0 * np.pi * uniform[pairs:]
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def add_noise(sums: GradientSum, sigma: float, source: NoiseSource) -> None:
    """Add Gaussian noise of standard deviation `sigma` to every element, in place.

    Call it in every step, whether or not the batch held private rows. What the source draws must be secret.
    """
    for total in sums.values():
        total.add_(source.normal(total), alpha=sigma)


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
