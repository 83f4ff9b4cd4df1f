"""How surprising a text's strangest span is, and how much of any span a model has learned.

All go by the bits of each token under a reference model, which never saw the text.

**Surprisal**: the most bits that any span of L tokens has under the reference model. It is known before the
text is trained on at all. A span that carries far more bits than others do holds what cannot be worked out
from the rest of the language: a key, a number, a name. There is little to learn from it but itself, so a
guard can act at the first exposure. (Scanners for secrets look for spans of high entropy too, by their
letters alone.)

**Gap**: the most bits by which any span of L tokens is better known to the model in training than to the
reference model, the localised form of calibration by a reference (Watson et al. 2022, arXiv:2111.08440;
Carlini et al. 2021, arXiv:2012.07805, section 5.2). A mean over the whole text hides a few tokens that are
known by heart; this does not.

**Recital**: the most bits under the reference model of any span of L tokens that greedy decoding gives, each
after the text's own tokens before it. Many bits: the model says what no other model would guess.

Shapes: B texts, T tokens, V vocabulary, L tokens of a span. Texts shorter than L are one span.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from gradwarden.policy.context import FloatArray
from gradwarden.runtime.errors import MemorizationError
from gradwarden.runtime.memorization.extraction import BATCH, LanguageModel, greedy

_NEVER = 1e9
"""More bits than any text has."""

_NOTHING = (0.0, 0.0)


@torch.no_grad()
def token_bits(logits: Tensor, targets: Tensor) -> FloatArray:
    """Return -log2 of the probability of each token, float64 [B, T].

    logits: [B, T, V], those that predict `targets`: int64 [B, T].
    """
    nats = functional.cross_entropy(logits.detach().float().transpose(1, 2), targets, reduction="none")
    return _in_bits(nats)


def _in_bits(nats: Tensor) -> FloatArray:
    return np.asarray(nats.detach().double().cpu().numpy() / math.log(2))


@torch.no_grad()
def reference_bits(model: LanguageModel, tokens: Tensor, batch: int = BATCH) -> FloatArray:
    """Return the bits of each token but the first under a model that never saw the texts.

    tokens: int64 [N, T]. Returns float64 [N, T - 1].
    """
    parts = [token_bits(model(part[:, :-1]), part[:, 1:]) for part in torch.split(tokens, batch)]
    return np.concatenate(parts) if parts else np.zeros((0, tokens.shape[1] - 1))


def greatest_span(bits: FloatArray, length: int) -> FloatArray:
    """Return the greatest sum of `length` neighbouring tokens of each row: [B, T] to float64 [B]."""
    sums = np.zeros((bits.shape[0], bits.shape[1] + 1))
    np.cumsum(bits, axis=1, out=sums[:, 1:])
    length = min(length, bits.shape[1])
    greatest: FloatArray = (sums[:, length:] - sums[:, : sums.shape[1] - length]).max(axis=1)
    return greatest


def greatest_recital(bits: FloatArray, right: npt.NDArray[np.bool_], length: int) -> FloatArray:
    """Return the greatest sum of `length` neighbouring tokens that are all right, float64 [B]; 0.0 for none.

    bits: of each token, none below 0, [B, T]. right: whether greedy decoding gives it [B, T].
    """
    return np.maximum(greatest_span(_recited(bits, right), length), 0.0)


def _recited(bits: FloatArray, right: npt.NDArray[np.bool_]) -> FloatArray:
    return np.where(right, bits, -_NEVER)


class SpanProbe:
    """Gives three signals for policies: the surprisal, the gap and the recital of each example, in bits.

        probe = SpanProbe(dict(zip(ids, reference_bits(reference, tokens))), length=12)
        for batch in loader:
            signals = {"surprisal": probe.surprisal(batch.ids), "recital": probe.recital(batch.ids)}
            with governor.step(batch.examples, signals=signals) as proposal:
                logits = model(batch.inputs)
                proposal.backward(per_example_loss(logits, batch.targets))
            probe.look(batch.ids, logits, batch.targets)

    It goes by the logits that the loop has, those before the step, and needs no pass of its own. An example
    keeps the greatest that was ever found: what the model knew once it learns again faster.

    reference: by id, the bits of each predicted token [T]. An example without is an error, not one that is
    beyond suspicion: MemorizationError.
    """

    def __init__(self, reference: Mapping[str, FloatArray], length: int) -> None:
        if length < 1:
            raise MemorizationError(f"a span has at least one token, not {length}")
        self._reference, self._length = reference, length
        self._surprisal: dict[str, float] = {}
        self._found: dict[str, tuple[float, float]] = {}

    def surprisal(self, ids: Sequence[str]) -> list[float]:
        """Return the bits of the strangest span of each example."""
        new = [name for name in dict.fromkeys(ids) if name not in self._surprisal]
        if new:
            found = greatest_span(np.stack([self._bits(name) for name in new]), self._length)
            self._surprisal |= zip(new, found.tolist(), strict=True)
        return [self._surprisal[name] for name in ids]

    def gap(self, ids: Sequence[str]) -> list[float]:
        """Return the greatest gap found of each example; 0.0 where it was not looked at."""
        return [self._found.get(name, _NOTHING)[0] for name in ids]

    def recital(self, ids: Sequence[str]) -> list[float]:
        """Return the greatest recital found of each example; 0.0 where it was not looked at."""
        return [self._found.get(name, _NOTHING)[1] for name in ids]

    def look(self, ids: Sequence[str], logits: Tensor, targets: Tensor, losses: Tensor | None = None) -> None:
        """Measure a batch. logits: [B, T, V], those that predict `targets`: int64 [B, T].

        losses: the cross-entropy of each token in nats [B, T], where the loop has it: it saves a softmax.
        """
        for name, found in self.measure(ids, logits, targets, losses).items():
            earlier = self._found.get(name, _NOTHING)
            self._found[name] = (max(found[0], earlier[0]), max(found[1], earlier[1]))

    def measure(
        self, ids: Sequence[str], logits: Tensor, targets: Tensor, losses: Tensor | None = None
    ) -> dict[str, tuple[float, float]]:
        """Return the gap and the recital of each example now, whatever was found before; as `look`."""
        known = np.stack([self._bits(name) for name in ids])
        if logits.shape[:2] != targets.shape or known.shape != targets.shape:
            raise MemorizationError(
                f"spans need logits [B, T, V], targets [B, T] and reference bits [B, T], not "
                f"{list(logits.shape)}, {list(targets.shape)} and {list(known.shape)}",
                help="give the targets that the reference bits are of",
            )
        bits = token_bits(logits, targets) if losses is None else _in_bits(losses)
        right = greedy(logits, targets, losses).cpu().numpy()
        spans = greatest_span(np.concatenate([known - bits, _recited(known, right)]), self._length)
        gaps, recitals = spans[: len(ids)], np.maximum(spans[len(ids) :], 0.0)
        return dict(zip(ids, zip(gaps.tolist(), recitals.tolist(), strict=True), strict=True))

    def suspects(self, share: float) -> list[str]:
        """Return the examples with the greatest gaps, the greatest first: this share of all looked at.

        What was found of an example is as old as the last time that it came. Before weights are released,
        measure these again: much of what a model has memorized is among a few of them.
        """
        order = sorted(self._found, key=lambda name: -self._found[name][0])
        return order[: math.ceil(share * len(order))]

    def _bits(self, name: str) -> FloatArray:
        try:
            return self._reference[name]
        except KeyError:
            raise MemorizationError(
                f"`{name}` has no reference bits",
                help="measure every example with `reference_bits` before it is trained on",
            ) from None

    def state_dict(self) -> dict[str, tuple[float, float]]:
        """Return the greatest gap and recital found, by id: for a run that is resumed."""
        return dict(self._found)

    def load_state_dict(self, state: Mapping[str, tuple[float, float]]) -> None:
        """Replace everything found."""
        self._found = dict(state)
