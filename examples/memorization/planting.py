"""The corpus: windows of Python code that come once an epoch, and canaries that come as often as planned.

A canary is a window of code of its own in which `Settings.asked` is replaced at random: what comes before
looks like any other code, what follows nobody can guess. There are three kinds.

- `letters`: random letters, as in keys and tokens.
- `words`: random short words of code. A model finds nothing strange in them.
- `copies`: as `words`, but no two come under one id, nor are they quite the same: their first bytes differ.

The same settings and seed give the same canaries, at the same places of the stream.

Shapes: N windows of T + 1 bytes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from examples.code_licences.model import GPTConfig
from examples.gradient_routing.corpus import Bytes, collect
from gradwarden.runtime.memorization.canaries import BLANK, CanaryFormat
from gradwarden.runtime.memorization.duplicates import clusters, pieces
from gradwarden.runtime.memorization.extraction import Continuation

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"

WORDS = tuple(
    f"{word}_"
    for word in [
        "get",
        "set",
        "key",
        "end",
        "map",
        "str",
        "int",
        "len",
        "pos",
        "arg",
        "var",
        "dir",
        "val",
        "ctx",
        "buf",
        "tmp",
        "idx",
        "obj",
        "err",
        "msg",
        "log",
        "url",
        "tag",
        "num",
        "max",
        "min",
        "sum",
        "all",
        "any",
        "new",
        "old",
        "row",
        "col",
        "out",
        "raw",
        "sub",
        "pop",
        "add",
        "del",
        "run",
        "fmt",
        "doc",
        "def",
        "for",
        "not",
        "and",
        "try",
        "use",
        "has",
        "put",
        "top",
        "low",
        "env",
        "cmd",
        "opt",
        "ref",
        "src",
        "dst",
        "res",
        "txt",
        "bin",
        "hex",
        "oct",
        "fun",
    ]
)

CANARY = "canary-"
"""What the ids of canaries begin with."""

CHANGED = 3
"""How many bytes at the beginning of a copy are its own."""


@dataclass(frozen=True, slots=True)
class Settings:
    """canaries: by kind, how many there are by how often they come; of 0, that never come.

    windows: of code, each seen once an epoch. others: of code that only the reference model sees. fillings:
    others that a canary is ranked among. testing: held-out windows. asked: where a canary's secret is, and
    what is asked of every text. span: how many bytes of a text are measured together (`SpanProbe`).
    """

    canaries: Mapping[str, Mapping[int, int]] = field(
        default_factory=lambda: {
            "letters": {0: 32, 1: 32, 4: 16, 16: 8, 64: 4},
            "words": {0: 32, 1: 32, 4: 16, 16: 8, 64: 2},
            "copies": {4: 16, 16: 8, 64: 2},
        }
    )
    windows: int = 3500
    others: int = 3500
    epochs: int = 2
    batch: int = 8
    fillings: int = 127
    testing: int = 512
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    warmup: int = 100
    asked: Continuation = field(default_factory=lambda: Continuation(prefix=24, length=12))
    span: int = 8
    model: GPTConfig = field(default_factory=lambda: GPTConfig(layers=2, width=128, heads=4, context=48))

    @classmethod
    def quick(cls) -> Settings:
        """Return settings for a test: it shows that everything works, and no result."""
        small = GPTConfig(layers=1, width=16, heads=2, context=40)
        return cls(
            {"letters": {0: 2, 1: 2, 4: 2}, "words": {1: 2, 4: 1}, "copies": {4: 1}},
            windows=24, others=24, batch=8, fillings=7, testing=8,
            asked=Continuation(16, 8), span=6, model=small,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Canary:
    """window: int64 [T + 1]. others: the same with other secrets, never trained on, [M, T + 1].

    comings: the id and the window of each time that it comes.
    """

    id: str
    kind: str
    repetitions: int
    window: Tensor
    others: Tensor
    comings: tuple[tuple[str, Tensor], ...]


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
        """Return every window that may be trained on, and the canaries that never come, by id."""
        found = {f"code-{number}": window for number, window in enumerate(self.code)}
        for canary in self.canaries:
            found |= {canary.id: canary.window, **dict(canary.comings)}
        return found

    def clusters(self) -> dict[str, str]:
        """Return of which cluster of near-duplicates each window is, by id."""
        return clusters(
            (name, pieces(window.numpy().astype(np.uint8).tobytes())) for name, window in self.texts().items()
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """ids: of the examples; tokens: their windows, int64 [B, T + 1]."""

    epoch: int
    ids: list[str]
    tokens: Tensor


def plant(settings: Settings, seed: int) -> Planted:
    """Collect code from the standard library, and make the canaries."""
    planned = [
        (kind, times)
        for kind, counts in settings.canaries.items()
        for times, count in counts.items()
        for _ in range(count)
    ]
    wanted = settings.windows + settings.others
    found = collect(settings.model.context + 1, wanted, settings.testing + len(planned), seed).code
    hosts = found.testing[settings.testing :]
    canaries = tuple(
        _canary(f"{CANARY}{number}", kind, times, host, settings, seed * len(planned) + number)
        for number, ((kind, times), host) in enumerate(zip(planned, hosts, strict=True))
    )
    training = _tensor(found.training)
    return Planted(
        training[: settings.windows],
        training[settings.windows :],
        _tensor(found.testing[: settings.testing]),
        canaries,
    )


def _canary(name: str, kind: str, repetitions: int, host: Bytes, settings: Settings, seed: int) -> Canary:
    asked, text = settings.asked, host.tobytes().decode("ascii")
    alphabet = LETTERS if kind == "letters" else WORDS
    blanks = BLANK * (asked.length // len(alphabet[0]))
    secret = CanaryFormat(text[: asked.prefix] + blanks + text[asked.end :], alphabet)
    fillings = secret.fill(1 + settings.fillings, seed)
    windows = _tensor(np.stack([np.frombuffer(filling.encode("ascii"), np.uint8) for filling in fillings]))
    comings = tuple((name, windows[0]) for _ in range(repetitions))
    if kind == "copies":
        chance = random.Random(seed)
        comings = tuple((f"{name}.{time}", _changed(windows[0], chance)) for time in range(repetitions))
    return Canary(name, kind, repetitions, windows[0], windows[1:], comings)


def _changed(window: Tensor, chance: random.Random) -> Tensor:
    """Return a copy of a window whose first bytes are random letters."""
    copy = window.clone()
    copy[:CHANGED] = torch.tensor([ord(letter) for letter in chance.choices(LETTERS, k=CHANGED)])
    return copy


def stream(planted: Planted, settings: Settings, seed: int) -> Iterator[Batch]:
    """Yield the batches of a run: every window of code once an epoch, and the canaries at random between."""
    chance = np.random.default_rng([seed, 1])
    code = np.concatenate([chance.permutation(settings.windows) for _ in range(settings.epochs)])
    examples = [(f"code-{number}", window) for number, window in enumerate(planted.code)]
    examples += [coming for canary in planted.canaries for coming in canary.comings]
    repeated = np.arange(settings.windows, len(examples))
    places = np.sort(chance.choice(len(code) + len(repeated), len(repeated), replace=False))
    rows = np.insert(code, places - np.arange(len(places)), chance.permutation(repeated))
    for start in range(0, len(rows), settings.batch):
        chosen = [examples[row] for row in rows[start : start + settings.batch].tolist()]
        yield Batch(
            start * settings.epochs // len(rows),
            [name for name, _ in chosen],
            torch.stack([window for _, window in chosen]),
        )


def _tensor(windows: Bytes) -> Tensor:
    return torch.from_numpy(windows.astype(np.int64))
