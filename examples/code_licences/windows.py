"""Batches of windows: one example is `context` bytes of one file, drawn anew each epoch.

An epoch visits every training file once, in a shuffled order, at a random offset; both are fixed by the seed
and the epoch. The example's id is the file's id, so exposures are counted per file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from examples.code_licences.corpus import Corpus
from examples.code_licences.model import PADDING


@dataclass(frozen=True, slots=True)
class Batch:
    """examples: records (id and metadata), one per row. inputs, targets: [B, T]; targets are one byte on."""

    epoch: int
    examples: tuple[dict[str, Any], ...]
    inputs: Tensor
    targets: Tensor


class CorpusTooSmallError(Exception):
    """A corpus that does not fill one batch."""


class Windows:
    """The training stream of a corpus, and its held-out part.

    Raises CorpusTooSmallError where the training files do not fill a batch.
    """

    def __init__(self, corpus: Corpus, context: int, batch: int, seed: int = 0) -> None:
        self.context = context
        self.batch = batch
        self._seed = seed
        self._records = [file.record() for file in corpus.files]
        self._contents = corpus.contents
        self._training = [i for i, file in enumerate(corpus.files) if not file.held_out]
        if len(self._training) < batch:
            files = f"{len(self._training)} training files"
            raise CorpusTooSmallError(f"{files} do not fill a batch of {batch}; take a larger corpus")
        self._held_out = [i for i, file in enumerate(corpus.files) if file.held_out]

    @property
    def training(self) -> list[int]:
        """The numbers of the files that are trained on."""
        return self._training

    def dataset(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the id and the metadata of every file."""
        return [(r["id"], {key: value for key, value in r.items() if key != "id"}) for r in self._records]

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of one epoch; files that do not fill a last batch wait for the next epoch."""
        random = np.random.default_rng((self._seed, epoch))
        order = random.permutation(self._training)
        offsets = random.random(len(order))
        for start in range(0, len(order) - self.batch + 1, self.batch):
            chosen = slice(start, start + self.batch)
            yield self.batch_of(epoch, order[chosen].tolist(), offsets[chosen].tolist())

    def forever(self) -> Iterator[Batch]:
        """Yield epoch after epoch."""
        epoch = 0
        while True:
            yield from self.epoch(epoch)
            epoch += 1

    def held_out(self, windows_per_file: int = 4) -> Iterator[Batch]:
        """Yield windows spread evenly over every held-out file, in a fixed order."""
        chosen = [i for i in self._held_out for _ in range(windows_per_file)]
        offsets = [j / max(1, windows_per_file - 1) for _ in self._held_out for j in range(windows_per_file)]
        for start in range(0, len(chosen), self.batch):
            part = slice(start, start + self.batch)
            yield self.batch_of(0, chosen[part], offsets[part])

    def batch_of(self, epoch: int, chosen: Sequence[int], offsets: Sequence[float]) -> Batch:
        """Cut a window out of each chosen file; `offsets` in [0, 1] are shares of the room to move."""
        inputs = torch.zeros(len(chosen), self.context, dtype=torch.long)
        targets = torch.full_like(inputs, PADDING)
        for row, (index, offset) in enumerate(zip(chosen, offsets, strict=True)):
            content = self._contents[index]
            start = round(offset * max(0, len(content) - self.context - 1))
            window = torch.frombuffer(bytearray(content[start : start + self.context + 1]), dtype=torch.uint8)
            inputs[row, : len(window) - 1] = window[:-1]
            targets[row, : len(window) - 1] = window[1:]
        return Batch(epoch, tuple(self._records[index] for index in chosen), inputs, targets)
