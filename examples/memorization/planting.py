"""The corpus: windows of Python code that come once an epoch, and canaries that come as often as planned.

A canary is a window of code of its own in which `Settings.asked` is replaced by random letters: what comes
before looks like any other code, what follows nobody can guess. The same settings and seed give the same
canaries, at the same places of the stream.

Shapes: N windows of T + 1 bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from examples.code_licences.model import GPTConfig
from examples.gradient_routing.corpus import Bytes, collect
from gradwarden.runtime.memorization.canaries import BLANK, CanaryFormat
from gradwarden.runtime.memorization.extraction import Continuation


@dataclass(frozen=True, slots=True)
class Settings:
    """repetitions: how many canaries there are, by how often they come; of 0, that never come.

    windows: of code, each seen once an epoch. others: of code that only the reference model sees. fillings:
    others that a canary is ranked among. testing: held-out windows. asked: where a canary's secret is, and
    what is asked of every text.
    """

    repetitions: dict[int, int] = field(default_factory=lambda: {0: 32, 1: 16, 4: 16, 16: 12, 64: 8})
    windows: int = 3500
    others: int = 3500
    epochs: int = 2
    batch: int = 8
    fillings: int = 127
    testing: int = 512
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    warmup: int = 20
    asked: Continuation = field(default_factory=lambda: Continuation(prefix=24, length=12))
    model: GPTConfig = field(default_factory=lambda: GPTConfig(layers=2, width=128, heads=4, context=48))

    @classmethod
    def quick(cls) -> Settings:
        """Return settings for a test: it shows that everything works, and no result."""
        small = GPTConfig(layers=1, width=16, heads=2, context=32)
        return cls(
            {0: 2, 1: 2, 4: 2}, windows=24, others=24, batch=8, fillings=7, testing=8,
            asked=Continuation(16, 8), model=small,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Canary:
    """window: int64 [T + 1]. others: the same with other secrets, never trained on, [M, T + 1]."""

    id: str
    repetitions: int
    window: Tensor
    others: Tensor


@dataclass(frozen=True, slots=True)
class Planted:
    """A corpus with canaries in it.

    code: int64 [N, T + 1]. other: code that only the reference model sees. testing: held-out windows.
    """

    code: Tensor
    other: Tensor
    testing: Tensor
    canaries: tuple[Canary, ...]

    def texts(self) -> dict[str, Tensor]:
        """Return every window that may be trained on, by id."""
        code = {f"code-{number}": window for number, window in enumerate(self.code)}
        return code | {canary.id: canary.window for canary in self.canaries}


@dataclass(frozen=True, slots=True)
class Batch:
    """ids: of the examples; tokens: their windows, int64 [B, T + 1]."""

    epoch: int
    ids: list[str]
    tokens: Tensor


def plant(settings: Settings, seed: int) -> Planted:
    """Collect code from the standard library, and make the canaries."""
    levels = [times for times, count in settings.repetitions.items() for _ in range(count)]
    wanted = settings.windows + settings.others
    found = collect(settings.model.context + 1, wanted, settings.testing + len(levels), seed).code
    hosts = found.testing[settings.testing :]
    canaries = tuple(
        _canary(f"canary-{number}", level, host, settings, seed * len(levels) + number)
        for number, (level, host) in enumerate(zip(levels, hosts, strict=True))
    )
    training = _tensor(found.training)
    return Planted(
        training[: settings.windows],
        training[settings.windows :],
        _tensor(found.testing[: settings.testing]),
        canaries,
    )


def _canary(name: str, repetitions: int, host: Bytes, settings: Settings, seed: int) -> Canary:
    asked, text = settings.asked, host.tobytes().decode("ascii")
    secret = CanaryFormat(text[: asked.prefix] + BLANK * asked.length + text[asked.end :])
    fillings = secret.fill(1 + settings.fillings, seed)
    windows = np.stack([np.frombuffer(filling.encode("ascii"), np.uint8) for filling in fillings])
    return Canary(name, repetitions, _tensor(windows[0]), _tensor(windows[1:]))


def stream(planted: Planted, settings: Settings, seed: int) -> Iterator[Batch]:
    """Yield the batches of a run: every window of code once an epoch, and the canaries at random between."""
    chance = np.random.default_rng([seed, 1])
    code = np.concatenate([chance.permutation(settings.windows) for _ in range(settings.epochs)])
    repeated = np.repeat(
        np.arange(len(planted.canaries)), [canary.repetitions for canary in planted.canaries]
    )
    places = np.sort(chance.choice(len(code) + len(repeated), len(repeated), replace=False))
    rows = np.insert(code, places - np.arange(len(places)), ~chance.permutation(repeated))
    for start in range(0, len(rows), settings.batch):
        chosen = rows[start : start + settings.batch].tolist()
        yield Batch(
            start * settings.epochs // len(rows),
            [f"code-{row}" if row >= 0 else planted.canaries[~row].id for row in chosen],
            torch.stack([planted.code[row] if row >= 0 else planted.canaries[~row].window for row in chosen]),
        )


def _tensor(windows: Bytes) -> Tensor:
    return torch.from_numpy(windows.astype(np.int64))
