"""What can be got out of a model of a text that it was trained on: by continuing it, and by guessing it.

**Reconstruction.** A text is extracted where greedy decoding, given its first `prefix` tokens, gives the next
`length` tokens verbatim (Carlini et al. 2021, arXiv:2012.07805; 2023, arXiv:2202.07646). As
long as it has been right, greedy decoding stands before the text's own tokens; so up to its first error it
is what one forward pass over the text says, and no token need be generated (`reproduced`).

**Exposure** (Carlini et al. 2019, arXiv:1802.08232, section 4.2): log2 |R| - log2 rank, where the rank of a
canary is its place among the fillings R of its format by perplexity. Here R is a sample that the model has
never seen, the canary itself added, and the rank in it is exact. A canary that was never trained on is at any
rank with the same chance, and has an exposure of log2 e = 1.44 bits in the mean; one that no other filling
beats has log2 |R|, the most that a sample can show.

Shapes: B or N texts, T tokens, V vocabulary. A model takes int64 tokens [B, T] and returns the logits of each
next token [B, T, V]; its mode (`eval`) is the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from gradwarden.policy.context import FloatArray
from gradwarden.policy.frozen import frozen
from gradwarden.runtime.errors import MemorizationError

LanguageModel: TypeAlias = Callable[[Tensor], Tensor]

BATCH = 64
"""Texts in one forward pass."""

_ROUNDING = 0.02
"""By how many nats a loss may be wrong; in half precision it is by less."""


@frozen
class Continuation:
    """Which part of a text is asked for: `length` tokens, given the `prefix` before them."""

    prefix: int
    length: int

    @property
    def end(self) -> int:
        return self.prefix + self.length

    def check(self, tokens: Tensor) -> None:
        """Raise MemorizationError for texts that are too short to be continued like this."""
        if min(self.prefix, self.length) < 1:
            raise MemorizationError("a continuation needs at least one token before it, and one in it")
        if tokens.dim() != 2 or tokens.shape[1] < self.end:
            raise MemorizationError(
                f"to be continued from {self.prefix} by {self.length} tokens, texts need {self.end}, not "
                f"the shape {list(tokens.shape)}",
                help="give tokens [texts, tokens], all of one length",
            )


def greedy(logits: Tensor, targets: Tensor, losses: Tensor | None = None) -> Tensor:
    """Return which tokens greedy decoding gives after the text's own, bool [B, T].

    logits: [B, T, V], those that predict `targets`: int64 [B, T]; one below 0 is no token, and not given.
    losses: the cross-entropy of each token in nats [B, T], where it is at hand: it decides most of them.
    """
    if losses is not None:
        return _greedy_by_loss(logits.detach(), targets, losses.detach())
    logits, place = logits.detach(), targets.clamp_min(0).unsqueeze(-1)
    own = logits.gather(-1, place).squeeze(-1)
    # On CPUs the greatest value is found several times faster than its place, which only ties need.
    best = logits.scatter(-1, place, -torch.inf).amax(dim=-1)
    right, tied = (own > best) & (targets >= 0), own == best
    if tied.any():
        right[tied] = logits[tied].argmax(dim=-1) == targets[tied]
    return right


def _greedy_by_loss(logits: Tensor, targets: Tensor, losses: Tensor) -> Tensor:
    """Look at those tokens alone that have neither more than half of the probability nor less than 1 / V."""
    given = targets >= 0
    right = given & (losses < math.log(2) - _ROUNDING)
    open_ = given & ~right & (losses < math.log(logits.shape[-1]) + _ROUNDING)
    right[open_] = logits[open_].argmax(dim=-1) == targets[open_]
    return right


def reproduced(logits: Tensor, tokens: Tensor, asked: Continuation) -> FloatArray:
    """Return which share of its continuation greedy decoding gives of each text before its first error.

    logits: of each next token, [B, T, V] or one place shorter. tokens: [B, T]. Returns float64 [B]; 1.0: the
    text is extracted.
    """
    asked.check(tokens)
    right = greedy(logits[:, asked.prefix - 1 : asked.end - 1], tokens[:, asked.prefix : asked.end])
    shares: FloatArray = np.logical_and.accumulate(right.cpu().numpy(), axis=1).mean(axis=1)
    return shares


@torch.no_grad()
def reconstruct(model: LanguageModel, tokens: Tensor, asked: Continuation, batch: int = BATCH) -> FloatArray:
    """Return the share of each text [N, T] that the model reproduces (`reproduced`), float64 [N]."""
    asked.check(tokens)
    parts = [reproduced(model(part), part, asked) for part in torch.split(tokens[:, : asked.end], batch)]
    return np.concatenate(parts) if parts else np.zeros(0)


@torch.no_grad()
def continue_greedily(model: LanguageModel, prefixes: Tensor, length: int) -> Tensor:
    """Return the tokens that greedy decoding gives after each prefix [B, K]: int64 [B, length].

    One forward pass for each token: to read what a model says. To tell what it reproduces, `reconstruct`
    needs one in all.
    """
    tokens = prefixes
    for _ in range(length):
        tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(dim=-1)], dim=1)
    return tokens[:, prefixes.shape[1] :]


@torch.no_grad()
def log_perplexities(model: LanguageModel, tokens: Tensor, first: int = 1, batch: int = BATCH) -> FloatArray:
    """Return -log2 of the probability of each text's tokens from place `first` on, given those before them.

    tokens: [N, T]. Returns bits, float64 [N] (Secret Sharer, definition 1).
    """
    parts = []
    for part in torch.split(tokens, batch):
        nats = functional.cross_entropy(
            model(part)[:, first - 1 : -1].transpose(1, 2).double(), part[:, first:], reduction="none"
        )
        parts.append(nats.sum(dim=1).cpu().numpy() / math.log(2))
    return np.concatenate(parts) if parts else np.zeros(0)


def exposure(canary: float, references: FloatArray) -> float:
    """Return the exposure of a canary in bits: log2 |R| - log2 rank, with R its references and itself.

    canary, references: perplexities or their logarithms, all to one base. Ties count against the canary being
    known, so that a model that tells nothing apart exposes nothing.
    """
    rank = 1 + int(np.count_nonzero(references <= canary))
    return math.log2(len(references) + 1) - math.log2(rank)


class ReconstructionProbe:
    """Looks, on a sampled schedule, which examples the model continues verbatim: a signal for policies.

        probe = ReconstructionProbe(model, Continuation(prefix=32, length=24), every=8, share=0.5)
        for step, batch in enumerate(loader):
            signals = {"reconstruction": probe.signal(batch.ids)}
            with governor.step(batch.examples, signals=signals) as proposal:
                proposal.backward(per_example_loss(model(batch.tokens), batch.tokens))
            probe.look(step, batch.ids, batch.tokens)

    every, share: at each step that `every` divides, at this share of the batch's examples, drawn by the seed
    and the step. So how often an example is looked at goes with how often it comes. It costs share / every
    of a forward pass a step; none where the loop hands over the logits that it has, those before the step.

    An example keeps the greatest share that was ever found, also when it is no longer reproduced: what the
    model knew once it learns again faster.
    """

    def __init__(
        self, model: LanguageModel, asked: Continuation, *, every: int = 1, share: float = 1.0, seed: int = 0
    ) -> None:
        if every < 1 or not 0.0 < share <= 1.0:
            raise MemorizationError("a probe looks every 1 or more steps, at a share above 0 and at most 1")
        self._model, self._asked = model, asked
        self._every, self._share, self._seed = every, share, seed
        self._found: dict[str, float] = {}

    def signal(self, ids: Sequence[str]) -> list[float]:
        """Return the greatest share found of each example, 0.0 where none was looked at."""
        return [self._found.get(name, 0.0) for name in ids]

    def look(
        self, step: int, ids: Sequence[str], tokens: Tensor, logits: Tensor | None = None
    ) -> dict[str, float]:
        """Look at a batch if it is due; return the share found now of each example that was looked at.

        tokens: [B, T], in the order of `ids`. logits: [B, T, V] or one place shorter, where they are at hand.
        """
        rows = self._due(step, len(ids))
        if not rows:
            return {}
        if len(rows) < len(ids):
            tokens, logits = tokens[rows], None if logits is None else logits.detach()[rows]
        if logits is None:
            shares = reconstruct(self._model, tokens, self._asked)
        else:
            shares = reproduced(logits, tokens, self._asked)
        found = {ids[row]: share for row, share in zip(rows, shares.tolist(), strict=True)}
        for name, share in found.items():
            self._found[name] = max(share, self._found.get(name, 0.0))
        return found

    def _due(self, step: int, count: int) -> list[int]:
        if step % self._every:
            return []
        if self._share == 1.0:
            return list(range(count))
        drawn = np.random.default_rng([self._seed, step]).random(count)
        return np.flatnonzero(drawn < self._share).tolist()

    def state_dict(self) -> dict[str, float]:
        """Return the greatest share found, by id: for a run that is resumed."""
        return dict(self._found)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Replace everything found."""
        self._found = dict(state)
