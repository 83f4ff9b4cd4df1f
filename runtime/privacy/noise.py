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
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

from gradwarden.policy.context import FloatArray
from gradwarden.runtime.native import kernels
from gradwarden.runtime.privacy.clipping import GradientSum

_SUMMANDS = 4
_KEY, _BLOCK = 32, 16
"""Bytes of a key, and of what the cipher works on."""
_CHUNK = 1 << 18
"""Numbers drawn at once: they and what they are made from stay in the cache, nearly. Threads that share an
interpreter wait for each other the more often, the fewer they are.
"""
_SENT = 1 << 23
"""Numbers that are sent to another device at once."""
_ZEROS = memoryview(bytes(8 * (_CHUNK + 1)))
"""What is enciphered: its cipher is the stream itself."""

Draw: TypeAlias = Callable[[], FloatArray]
"""Draws numbers that were set aside."""

_Given = TypeVar("_Given")
_Found = TypeVar("_Found")


class NoiseSource(Protocol):
    """Draws standard normal numbers."""

    def reserve(self, count: int, dtype: torch.dtype) -> Draw:
        """Set so many numbers aside, at most a chunk, and return what draws them, in whatever thread.

        dtype: float32 or float64.
        """


class FastNoise:
    """Noise at the precision of the sum. seed: None for a key from the operating system.

    The same seed gives the same numbers for sums of the same sizes, however many threads draw them. rank: of
    the process that draws; with one seed, each has numbers of its own.
    """

    def __init__(self, seed: int | None = None, rank: int = 0) -> None:
        self._bits = _Bits(os.urandom(_KEY) if seed is None else _key(seed, rank))

    def reserve(self, count: int, dtype: torch.dtype) -> Draw:
        """See `NoiseSource`."""
        if dtype == torch.float32:
            return _Narrow(self._bits.reserve(8 * _pairs(count)), count)
        bits = self._bits.reserve(16 * _pairs(count))
        return lambda: _gaussians(bits(), count)


@dataclass(frozen=True, slots=True)
class _Narrow:
    """Draws float32 numbers, or the bits that a kernel makes them of."""

    bits: Callable[[], memoryview]
    count: int

    def __call__(self) -> FloatArray:
        return _narrow_gaussians(self.bits(), self.count)


def _key(seed: int, rank: int) -> bytes:
    return hashlib.sha256(b"%d %d" % (seed, rank) if rank else b"%d" % seed).digest()


class SecureNoise:
    """Noise against attacks on its low bits, in float64."""

    def __init__(self) -> None:
        self._bits = _Bits(os.urandom(_KEY))

    def reserve(self, count: int, dtype: torch.dtype) -> Draw:
        """See `NoiseSource`."""
        several = [self._bits.reserve(16 * _pairs(count)) for _ in range(_SUMMANDS)]
        kind = np.float32 if dtype == torch.float32 else np.float64

        def draw() -> FloatArray:
            total: FloatArray = np.sum([_gaussians(bits(), count) for bits in several], axis=0)
            return (total / 2.0).astype(kind, copy=False)

        return draw


class _Bits:
    """Random bits of a cipher; a key is used for one stream only."""

    def __init__(self, key: bytes) -> None:
        self._key, self._block = algorithms.AES256(key), 0
        self._memory = _Memory()

    def reserve(self, count: int) -> Callable[[], memoryview]:
        """Set so many bytes aside, whole blocks of them, and return what draws them.

        They last until the next ones are drawn in the same thread.
        """
        first, self._block = self._block, self._block - (-count // _BLOCK)

        def draw() -> memoryview:
            stream = Cipher(self._key, modes.CTR(first.to_bytes(_BLOCK, "big"))).encryptor()
            drawn = self._memory.of(count + _BLOCK)
            stream.update_into(_ZEROS[:count], drawn)
            return drawn[:count]

        return draw


class _Memory(threading.local):
    """Memory of a thread that is used again."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def of(self, count: int) -> memoryview:
        """Return so many bytes or more."""
        if len(self._bytes) < count:
            self._bytes = bytearray(count)
        return memoryview(self._bytes)


def _pairs(count: int) -> int:
    return (count + 1) // 2


def _narrow_gaussians(bits: memoryview, count: int) -> FloatArray:
    """Return normal numbers, float32, up to sqrt(2 ln 2^31) = 6.6: one in 2e10 would be greater.

    By numpy: its operations let other threads go on, and leave each to its own core.
    """
    uniform = np.frombuffer(bits, dtype=np.int32).astype(np.float32)
    radius, angle = uniform.reshape(2, -1)
    step = np.float32(2.0**-31)
    # In [2^-31, 1], closely spaced near 0: the logarithm of 0 is not finite.
    np.abs(radius, out=radius)
    radius *= step
    radius += step
    np.log(radius, out=radius)
    radius *= np.float32(-2.0)
    np.sqrt(radius, out=radius)
    angle *= np.float32(math.pi) * step
    cosine = np.cos(angle)
    np.sin(angle, out=angle)
    angle *= radius
    radius *= cosine
    return uniform[:count]


def _gaussians(bits: memoryview, count: int) -> FloatArray:
    """Return normal numbers, float64."""
    words = np.frombuffer(bits, dtype=np.uint64) >> np.uint64(11)
    # In (0, 1]: the logarithm of 0 is not finite.
    radius, angle = ((words.astype(np.float64) + 1.0) * 2.0**-53).reshape(2, -1)
    radius = np.sqrt(-2.0 * np.log(radius))
    angle *= 2.0 * np.pi
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def add_noise(
    sums: GradientSum,
    sigma: float,
    source: NoiseSource,
    copy: int = 0,
    copies: int = 1,
    normaliser: float | None = None,
) -> None:
    """Add Gaussian noise of standard deviation `sigma` to every element, in place.

    Call it in every step, whether or not the batch held private rows. What the source draws must be secret.
    As many threads draw as torch uses.

    copies: how many processes hold sums for the same elements, which are then added up. Each noises a part of
    the elements, `copy` (from 0) says which: so every element is noised once. normaliser: what the sums are
    then divided by, while they are in the cache; for one that is the only copy.
    """
    flats = [(total, total.reshape(-1)) for total in sums.values()]
    own = [_share(flat, copy, copies) for _, flat in flats]
    near: list[tuple[Sequence[Tensor], Draw]] = []
    for window in _windows(own):
        draws = _draws(window, source)
        if window[0].device.type != "cpu":
            _add(window, np.concatenate(_on_threads(_draw, draws)), sigma, normaliser)
        elif not _add_by_kernel(window, draws[0], sigma, normaliser):
            near.append((window, draws[0]))
    threads = max(1, min(torch.get_num_threads(), len(near)))
    add = partial(_add_drawn, sigma=sigma, normaliser=normaliser)
    _on_threads(add, [near[place::threads] for place in range(threads)])
    for total, flat in flats:
        if not total.is_contiguous():
            total.copy_(flat.view(total.shape))


def _draws(window: Sequence[Tensor], source: NoiseSource) -> list[Draw]:
    """Set numbers aside for the elements of a window, a chunk at a time."""
    count = sum(map(len, window))
    return [source.reserve(min(_CHUNK, count - start), window[0].dtype) for start in range(0, count, _CHUNK)]


def _draw(draw: Draw) -> FloatArray:
    return draw()


def _add_by_kernel(window: Sequence[Tensor], draw: Draw, sigma: float, normaliser: float | None) -> bool:
    """Do what `_add_drawn` does, on all threads at once, where there is a kernel for it; whether there is."""
    if not isinstance(draw, _Narrow) or not kernels.usable(*window):
        return False
    kernels.add_noise(draw.bits(), window, sigma, 1.0 if normaliser is None else normaliser)
    return True


def _add_drawn(
    windows: Iterable[tuple[Sequence[Tensor], Draw]], sigma: float, normaliser: float | None
) -> None:
    """Draw numbers for windows of sums on a CPU, and add them times sigma; then divide by a normaliser.

    By numpy throughout: torch's operations would each take threads of their own.
    """
    for window, draw in windows:
        drawn, start = draw(), 0
        drawn *= drawn.dtype.type(sigma)
        least, greatest = _limits(window[0].dtype)
        with np.errstate(over="ignore"):
            for part in window:
                own = part.numpy()
                own += drawn[start : start + len(own)]
                start += len(own)
                if normaliser is not None:
                    own /= own.dtype.type(normaliser)
                    np.minimum(np.maximum(own, least, out=own), greatest, out=own)


def _add(window: Sequence[Tensor], drawn: FloatArray, sigma: float, normaliser: float | None) -> None:
    """Do the same for sums that lie elsewhere: in this thread, which has its own stream there."""
    pieces = torch.from_numpy(drawn).to(window[0].device).split_with_sizes([len(part) for part in window])
    for part, piece in zip(window, pieces, strict=True):
        part.add_(piece, alpha=sigma)
        if normaliser is not None:
            _divide(part, normaliser)


def _on_threads(function: Callable[[_Given], _Found], given: Iterable[_Given]) -> list[_Found]:
    """Return what a function makes of each of some things, on as many threads as torch uses."""
    things = list(given)
    threads = min(torch.get_num_threads(), len(things))
    if threads < 2:
        return [function(thing) for thing in things]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, things))


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


def add_to_gradients(sums: GradientSum, normaliser: float | None) -> None:
    """Add the sums to the parameters' gradients. The sums are used up.

    normaliser: what they are divided by; None if that is done. Of a parameter that lies in pieces, the sum is
    of this process's piece. What a parameter's precision cannot hold becomes the greatest number that it can:
    an infinite gradient would refuse the step, and so tell of noised values in a step that no budget pays
    for.
    """
    for parameter, total in sums.items():
        limits = _limits(parameter.dtype)
        if normaliser is not None:
            for part in _chunks(total.view(-1)) if _in_cache(total) else (total,):
                _divide(part, normaliser)
        share = total
        if total.dtype != parameter.dtype:
            share = total.clamp_(*limits).to(parameter.dtype)
        in_pieces = hasattr(parameter, "device_mesh")
        if parameter.grad is None and not in_pieces:
            parameter.grad = share
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        with torch.no_grad():
            gradient = parameter.grad.to_local() if in_pieces else parameter.grad  # type: ignore[attr-defined]
            gradient.add_(share).clamp_(*limits)


def _divide(part: Tensor, normaliser: float) -> None:
    """Divide by a constant, in place. What cannot be held becomes the greatest number that can."""
    part.div_(normaliser).clamp_(*_limits(part.dtype))


def _limits(dtype: torch.dtype) -> tuple[float, float]:
    """Return the least and the greatest number of a precision."""
    of_precision = torch.finfo(dtype)
    return of_precision.min, of_precision.max


def _in_cache(total: Tensor) -> bool:
    """Return whether a sum is worked on part by part, each in the cache of a CPU."""
    return total.device.type == "cpu" and total.is_contiguous()


def _chunks(vector: Tensor) -> Iterator[Tensor]:
    return (vector[start : start + _CHUNK] for start in range(0, len(vector), _CHUNK))
