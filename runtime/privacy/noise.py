"""Gaussian noise for a sum of gradients, and the way of the noised sum to the optimizer.

Random bits come from AES-256 in counter mode (NIST SP 800-38A) under a key of the operating system, normal
numbers from these by the transform of Box and Muller.

Floating-point noise has gaps: from the low bits of a noised number it may show which numbers it cannot have
come from (Mironov, "On significance of the least significant bits for differential privacy", CCS 2012).
`SecureNoise` adds up four Gaussians and halves the sum, as Holohan and Braghin propose (2021,
arXiv:2107.10138): there are then more ways to come by a value than can be searched. That makes the attack
infeasible, not impossible.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

from gradwarden.policy.context import FloatArray
from gradwarden.runtime.privacy.clipping import GradientSum

_SUMMANDS = 4
_KEY, _BLOCK = 32, 16
"""Bytes of a key, and of what the cipher works on."""
_CHUNK = 1 << 17
"""Numbers drawn at once: they and what they are made from stay in the cache."""
_SENT = 1 << 23
"""Numbers that are sent to another device at once."""


class NoiseSource(Protocol):
    """Draws standard normal numbers."""

    def fill(self, target: Tensor) -> None:
        """Fill a contiguous vector on the CPU, float32 or float64."""


class FastNoise:
    """Noise at the precision of the sum. seed: None for a key from the operating system.

    The same seed gives the same numbers for sums of the same sizes, however many threads torch uses. rank: of
    the process that draws; with one seed, each has numbers of its own.
    """

    def __init__(self, seed: int | None = None, rank: int = 0) -> None:
        self._bits = _Bits(os.urandom(_KEY) if seed is None else _key(seed, rank))
        self._uniform = torch.empty(_CHUNK, dtype=torch.float32, device="cpu")
        self._least = torch.tensor(2.0**-31, dtype=torch.float32, device="cpu")

    def fill(self, target: Tensor) -> None:
        """See `NoiseSource`."""
        for part in _chunks(target):
            if part.dtype == torch.float32:
                self._fill(part)
            else:
                part.copy_(torch.from_numpy(self._bits.gaussians(len(part))))

    def _fill(self, part: Tensor) -> None:
        """Fill with numbers up to sqrt(2 ln 2^31) = 6.6: one in 2e10 would be greater."""
        pairs = (len(part) + 1) // 2
        words = torch.frombuffer(self._bits.draw(8 * pairs), dtype=torch.int32)
        radius, angle = self._uniform[: 2 * pairs].copy_(words).view(2, pairs)
        # In [2^-31, 1], closely spaced near 0: the logarithm of 0 is not finite.
        torch.add(self._least, radius.abs_(), alpha=2.0**-31, out=radius).log_().mul_(-2.0).sqrt_()
        angle.mul_(math.pi * 2.0**-31)
        rest = len(part) - pairs
        torch.cos(angle, out=part[:pairs]).mul_(radius)
        torch.sin(angle[:rest], out=part[pairs:]).mul_(radius[:rest])


def _key(seed: int, rank: int) -> bytes:
    return hashlib.sha256(b"%d %d" % (seed, rank) if rank else b"%d" % seed).digest()


class SecureNoise:
    """Noise against attacks on its low bits, in float64."""

    def __init__(self) -> None:
        self._bits = _Bits(os.urandom(_KEY))

    def fill(self, target: Tensor) -> None:
        """See `NoiseSource`."""
        for part in _chunks(target):
            summands = [self._bits.gaussians(len(part)) for _ in range(_SUMMANDS)]
            part.copy_(torch.from_numpy(sum(summands) / 2.0))


class _Bits:
    """Random bits of a cipher; a key is used for one stream only."""

    def __init__(self, key: bytes) -> None:
        self._stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(_BLOCK))).encryptor()
        self._zeros, self._drawn = b"", bytearray()

    def draw(self, count: int) -> memoryview:
        """Return so many random bytes; the next call overwrites them."""
        if len(self._zeros) < count:
            self._zeros, self._drawn = bytes(count), bytearray(count + _BLOCK)
        drawn = memoryview(self._drawn)
        self._stream.update_into(memoryview(self._zeros)[:count], drawn[: count + _BLOCK])
        return drawn[:count]

    def gaussians(self, count: int) -> FloatArray:
        """Return normal numbers, float64."""
        pairs = (count + 1) // 2
        words = np.frombuffer(self.draw(16 * pairs), dtype=np.uint64) >> np.uint64(11)
        # In (0, 1]: the logarithm of 0 is not finite.
        uniform = (words.astype(np.float64) + 1.0) * 2.0**-53
        radius = np.sqrt(-2.0 * np.log(uniform[:pairs]))
        angle = 2.0 * np.pi * uniform[pairs:]
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def add_noise(sums: GradientSum, sigma: float, source: NoiseSource, copy: int = 0, copies: int = 1) -> None:
    """Add Gaussian noise of standard deviation `sigma` to every element, in place.

    Call it in every step, whether or not the batch held private rows. What the source draws must be secret.

    copies: how many processes hold sums for the same elements, which are then added up. Each noises a part of
    the elements, `copy` (from 0) says which: so every element is noised once.
    """
    flats = [(total, total.reshape(-1)) for total in sums.values()]
    own = [_share(flat, copy, copies) for _, flat in flats]
    for window in _windows(own):
        sizes = [len(part) for part in window]
        drawn = torch.empty(sum(sizes), dtype=window[0].dtype, device="cpu")
        source.fill(drawn)
        pieces = torch.split_with_sizes(drawn.to(window[0].device), sizes)
        for part, piece in zip(window, pieces, strict=True):
            part.add_(piece, alpha=sigma)
    for total, flat in flats:
        if not total.is_contiguous():
            total.copy_(flat.view(total.shape))


def _share(flat: Tensor, copy: int, copies: int) -> Tensor:
    start, end = (len(flat) * place // copies for place in (copy, copy + 1))
    return flat[start:end]


def _windows(vectors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield parts of vectors, in turn: as many as numbers are drawn for at once.

    Parts that are handed out together lie on one device, at one precision. So the many short sums of a model
    take one draw, not one each.
    """
    window: list[Tensor] = []
    room, kind = 0, None
    for vector in vectors:
        while len(vector):
            if not room or kind != (vector.device, vector.dtype):
                if window:
                    yield window
                window, kind = [], (vector.device, vector.dtype)
                room = _CHUNK if vector.device.type == "cpu" else _SENT
            part, vector = vector[:room], vector[room:]
            window.append(part)
            room -= len(part)
    if window:
        yield window


def add_to_gradients(sums: GradientSum, normaliser: float) -> None:
    """Add the sums, divided by a constant, to the parameters' gradients. The sums are used up.

    Of a parameter that lies in pieces, the sum is of this process's piece. What a parameter's precision
    cannot hold becomes the greatest number that it can: an infinite gradient would refuse the step, and so
    tell of noised values in a step that no budget pays for.
    """
    for parameter, total in sums.items():
        greatest = torch.finfo(parameter.dtype).max
        for part in _chunks(total.view(-1)) if _in_cache(total) else (total,):
            part.div_(normaliser).clamp_(-greatest, greatest)
        share = total.to(parameter.dtype)
        in_pieces = hasattr(parameter, "device_mesh")
        if parameter.grad is None and not in_pieces:
            parameter.grad = share
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        with torch.no_grad():
            gradient = parameter.grad.to_local() if in_pieces else parameter.grad  # type: ignore[attr-defined]
            gradient.add_(share).clamp_(-greatest, greatest)


def _in_cache(total: Tensor) -> bool:
    """Return whether a sum is worked on part by part, each in the cache of a CPU."""
    return total.device.type == "cpu" and total.is_contiguous()


def _chunks(vector: Tensor) -> Iterator[Tensor]:
    return (vector[start : start + _CHUNK] for start in range(0, len(vector), _CHUNK))
